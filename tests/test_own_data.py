"""Data that is not BraTS, through the whole demo, from the phantom command to predict."""

import re
import subprocess
from pathlib import Path

import numpy as np
from whole_sweep import FEWSCAN, WholeSweep, fewscan

from fewscan.experiments.results import Result, RunRecord
from fewscan.harness.predict import predict, write_prediction
from fewscan.storage.nifti import read_nifti


def test_what_is_in_the_store_is_said(whole_sweep: WholeSweep) -> None:
    assert "channels        FLAIR, T1ce" in whole_sweep.checked
    assert "along axis 1, voxels normalised by percentiles" in whole_sweep.checked
    assert "train 1, validation 1, test 1 (as given)" in whole_sweep.checked


def test_all_runs_are_scored_by_the_classes_of_the_data_set(whole_sweep: WholeSweep) -> None:
    assert "multiclass" in whole_sweep.said
    plan = whole_sweep.plan
    results = [Result.read(plan.folder_of(run)) for run in plan.runs]
    assert len(results) == 10
    keys = {key for result in results for key in result.test if "class_dice" in key}
    assert {key.partition("/")[2] for key in keys} == {"", "oedema", "core"}
    for run in plan.runs:
        assert RunRecord.read(plan.folder_of(run)).slices.channels == ("FLAIR", "T1ce")


def test_the_report_is_about_the_classes_of_the_data_set(whole_sweep: WholeSweep) -> None:
    fewscan("report", whole_sweep.study)
    page = (whole_sweep.plan.folder.report / "report.html").read_text()
    assert re.search(r"Dice,\s+oedema", page)
    assert re.search(r"Dice,\s+core", page)
    assert "necrotic" not in page


def test_every_run_segments_a_scan_on_its_own_grid(whole_sweep: WholeSweep, tmp_path: Path) -> None:
    """By the command in a process of its own once; by what it calls for the others."""
    plan = whole_sweep.plan
    scan = sorted((whole_sweep.scans / "imagesTr").glob("phantom_00002_*"))
    image = read_nifti(scan[0])
    for run in plan.runs:
        folder, out = plan.folder_of(run).path, tmp_path / f"{run.run_id}.nii.gz"
        if run == plan.runs[-1]:
            subprocess.run([FEWSCAN, "predict", folder, *scan, out], check=True)
        else:
            write_prediction(predict(str(folder), scan), out)
        written = read_nifti(out)
        assert written.voxels_XYZ.shape == (70, 48, 152)
        assert np.array_equal(written.affine, image.affine)
        if run.place.labels is not None:
            assert set(np.unique(written.voxels_XYZ)) <= {0, 1, 2}
