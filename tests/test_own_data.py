"""Data that is not BraTS, through the whole demo, from the phantom command to predict."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fewscan.experiments.results import Result, RunRecord
from fewscan.harness.plan import load_plan
from fewscan.storage.nifti import read_nifti

SPLIT = {"train": ["phantom_00000"], "validation": ["phantom_00001"], "test": ["phantom_00002"]}


def fewscan(*arguments: str | int | Path) -> str:
    """What a command prints, in a process of its own as a person gives it."""
    command = [sys.executable, "-m", "fewscan.harness.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def study(tiny_document: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny study of 10 runs on a store that is to be made."""
    finetune = {**tiny_document["finetune"], "label_counts": ["all"]}
    document = {**tiny_document, "store": str(tmp_path / "mine.zarr"), "finetune": finetune}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_whole_demo_on_an_nnunet_data_set(study: Path, tmp_path: Path) -> None:
    raw, store, split = tmp_path / "raw", tmp_path / "mine.zarr", tmp_path / "split.json"
    split.write_text(json.dumps(SPLIT))
    fewscan("phantom", raw, "--subjects", 3, "--format", "nnunet")
    fewscan("prepare", raw, store, "--size", 16, "--split", split)
    checked = fewscan("check", store)
    assert "channels        FLAIR, T1ce" in checked
    assert "along axis 1, voxels normalised by percentiles" in checked
    assert "train 1, validation 1, test 1 (as given)" in checked

    swept = fewscan("sweep", study)
    assert "multiclass" in swept
    plan = load_plan(study)
    results = [Result.read(plan.folder_of(run)) for run in plan.runs]
    assert len(results) == 10
    keys = {key for result in results for key in result.test if "class_dice" in key}
    assert {key.partition("/")[2] for key in keys} == {"", "oedema", "core"}
    for run in plan.runs:
        assert RunRecord.read(plan.folder_of(run)).slices.channels == ("FLAIR", "T1ce")

    fewscan("report", study)
    page = (plan.folder.report / "report.html").read_text()
    assert re.search(r"Dice,\s+oedema", page)
    assert re.search(r"Dice,\s+core", page)
    assert "necrotic" not in page

    scan = sorted((raw / "imagesTr").glob("phantom_00002_*"))
    for run in plan.runs:
        out = tmp_path / f"{run.run_id}.nii.gz"
        fewscan("predict", plan.folder_of(run).path, *scan, out)
        written, image = read_nifti(out), read_nifti(scan[0])
        assert written.voxels_XYZ.shape == (70, 48, 152)
        assert np.array_equal(written.affine, image.affine)
        if run.place.labels is not None:
            assert set(np.unique(written.voxels_XYZ)) <= {0, 1, 2}
