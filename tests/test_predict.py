"""A model on a scan: the evaluation's mask, on the scan's own grid, with its header."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from fake_nnunet import write_nnunet, write_simplest
from scipy import ndimage
from tiny import run_in_process
from torch import Tensor, nn

from fewscan.experiments.devices import Devices
from fewscan.experiments.postprocess import Fitted, Rule
from fewscan.experiments.predictor import Predictor, above
from fewscan.experiments.results import Result as RunResult
from fewscan.experiments.results import RunRecord
from fewscan.experiments.scan_grid import on_the_scan
from fewscan.experiments.spec import Postprocess
from fewscan.experiments.stages import run_stage
from fewscan.harness.cli import main
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.predict import predict, write_prediction
from fewscan.harness.study_file import parse_study
from fewscan.harness.trained import load_trained
from fewscan.storage.errors import FewscanError, RunError, ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.geometry import Turn, orientation
from fewscan.storage.nifti import read_nifti, write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.preprocess import preprocess
from fewscan.storage.runs import RunFolder
from fewscan.storage.scans import Scan, read_scan


@dataclass(frozen=True)
class Finished:
    """A study of one pre-training, one unsupervised run and two fine-tunings, all run."""

    scans: Path
    plan: Plan

    def folder(self, kind: str, target: str | None = None) -> RunFolder:
        """Of the score of the target's fine-tuning, or of the only run of an arm or kind."""
        (found,) = (
            self.plan.folder_of(run)
            for run in self.plan.runs
            if kind in (run.kind, run.place.arm.kind)
            and target in (None, run.place.target)
            and (kind != "score" or run in self.plan.grid)
        )
        return found


def finish(scans: Path, store: Path, place: Path) -> Finished:
    training = {"iterations": 60, "validate_every": 20, "batch_size": 8, "lr": 0.02}
    document = {
        "name": "tiny",
        "store": str(store),
        "folder": str(place),
        "network": {"width": 4, "depth": 2},
        "pretrain": {
            "denoise": {
                "scheme": {"kind": "denoise", "noise": {"resolution": 4}},
                "training": training,
            }
        },
        "finetune": {
            "label_counts": ["all"],
            "seeds": [0],
            "training": training,
            "augmentation": {"policy": "none"},
        },
        "resources": {"device": "cpu"},
    }
    plan = make_plan(parse_study(document, "tiny"))
    for run in plan.runs:
        plan.record(run).write(plan.folder_of(run))
        run_stage(plan.folder_of(run), Devices())
    return Finished(scans, plan)


@pytest.fixture(scope="module")
def finished(scans: Path, store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """On the tiny scans in BraTS 2021's names, slices of 20×20 made 16×16."""
    return finish(scans, store_path, tmp_path_factory.mktemp("study"))


def finish_own_data(place: Path, write: Callable[[Path, int], list[str]]) -> Finished:
    ids = write(place / "raw", 6)
    split = {"train": ids[:4], "validation": ids[4:5], "test": ids[5:]}
    (place / "split.json").write_text(json.dumps(split))
    prepare(place / "raw", place / "store", 16, 1, split=place / "split.json")
    return finish(place / "raw", place / "store", place / "study")


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """On an nnU-Net data set of 2 channels and 2 classes, sliced along its second axis."""
    return finish_own_data(tmp_path_factory.mktemp("own data"), write_nnunet)


@pytest.fixture(scope="module")
def simplest(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """On one channel and one class."""
    return finish_own_data(tmp_path_factory.mktemp("simplest"), write_simplest)


def patient(study: Finished) -> str:
    """One of the test split."""
    return study.plan.store.split.test[0]


def scan_folder(study: Finished) -> Path:
    return study.scans / patient(study)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def row_of(folder: RunFolder, subject: str) -> dict[str, str]:
    return next(row for row in csv.DictReader(folder.cases.open()) if row["subject"] == subject)


@pytest.mark.parametrize("data", ["finished", "own_data", "simplest"])
@pytest.mark.parametrize(
    ("kind", "target"), [("score", "binary"), ("score", "multiclass"), ("unsupervised", None)]
)
def test_on_the_stores_grid_it_is_the_mask_that_was_scored(
    data: str, kind: str, target: str | None, request: pytest.FixtureRequest
) -> None:
    """Its Dice with the truth is the one in `cases.csv`, which the evaluation wrote."""
    study: Finished = request.getfixturevalue(data)
    folder, subject, store = study.folder(kind, target), patient(study), study.plan.store
    trained = load_trained(folder.path)
    (files,) = (files for files in find_scans(study.scans).scans if files.id == subject)
    made, predictor = trained.slices, trained.predictor
    slices = preprocess(read_scan(files), store.size, made.axis, made.normalisation)
    spacing_mm = store.spacing_mm_ZHW(subject)[1:]
    batches = list(predictor.in_batches(torch.from_numpy(slices.images_NCHW), spacing_mm))
    found = torch.cat([_defined(predictor.labels(maps, trained.threshold)) for maps in batches])
    truth = store.read_subject(subject).labels_NHW
    row = row_of(folder, subject)
    if target == "multiclass":
        expected = {f"dice_{name}": k for k, name in enumerate(store.classes, start=1)}
        for column, k in expected.items():
            if row[column]:
                assert float(row[column]) == pytest.approx(dice(found.numpy() == k, truth == k))
    else:
        expected_dice = float(row["dice_at_chosen_threshold"])
        assert expected_dice == pytest.approx(dice(found.numpy() > 0, truth > 0), rel=1e-12)
    assert found.any(), "nothing was found, so nothing was compared"


@pytest.mark.parametrize("data", ["finished", "own_data", "simplest"])
@pytest.mark.parametrize(
    ("kind", "target"), [("score", "binary"), ("score", "multiclass"), ("unsupervised", None)]
)
def test_on_the_scans_grid_it_is_the_file_that_was_scored(
    data: str, kind: str, target: str | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The file that is written has, with the scan's own labels, the Dice of `cases.csv`."""
    study: Finished = request.getfixturevalue(data)
    folder, subject, store = study.folder(kind, target), patient(study), study.plan.store
    (files,) = (files for files in find_scans(study.scans).scans if files.id == subject)
    threshold = None if target == "multiclass" else load_trained(folder.path).threshold
    prediction = predict(folder.path, files.channel_files, threshold=threshold)
    write_prediction(prediction, tmp_path / "found.nii.gz")
    found_XYZ = read_nifti(tmp_path / "found.nii.gz").voxels_XYZ
    truth_XYZ = read_scan(files).labels_XYZ
    assert truth_XYZ is not None
    row = row_of(folder, subject)
    if target == "multiclass":
        pairs = {
            name: (found_XYZ == prediction.files.label_values[k - 1], truth_XYZ == k)
            for k, name in enumerate(store.classes, start=1)
        }
    else:
        pairs = {"lesion": (found_XYZ > 0, truth_XYZ > 0)}
    for name, (found, truth) in pairs.items():
        expected = dice(found, truth) if truth.any() else math.nan
        said = float(row[f"dice_scan_{name}"] or "nan")
        assert said == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert found_XYZ.any(), "nothing was found, so nothing was compared"


def _defined(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels


def test_back_on_the_scan(own_data: Finished) -> None:
    """The volume of the prediction, slice by slice, is the store's slice brought back."""
    folder, subject = own_data.folder("score", "multiclass"), patient(own_data)
    files = sorted((own_data.scans / "imagesTr").glob(f"{subject}_*"))
    found = predict(folder.path, files)
    assert found.map_names == own_data.plan.store.classes == ("whole_gland_outer", "tumour")
    assert found.maps_XYZK.shape == (20, 6, 28, 2)
    assert found.labels_XYZ is not None
    assert found.labels_XYZ.shape == (20, 6, 28)
    trained, scan = load_trained(folder.path), read_scan(found.files)
    slices = preprocess(scan, 16, 1, "percentiles")
    batches = trained.predictor.in_batches(torch.from_numpy(slices.images_NCHW))
    (maps,) = (on_the_scan(batch, slices.frame) for batch in batches)
    kept = found.maps_XYZK[:, slices.first : slices.first + len(maps)]
    np.testing.assert_array_equal(kept.transpose(1, 3, 0, 2), maps[:, 1:].numpy())
    ml = np.count_nonzero(found.labels_XYZ == 1) * 1.5 * 4 / 1000
    assert found.volumes_ml["whole_gland_outer"] == pytest.approx(ml)


def test_an_anomaly_map_has_the_windows_of_the_scans_own_spacing(own_data: Finished) -> None:
    """With half the spacing the same windows have more pixels, and the map is another one."""
    folder, subject = own_data.folder("unsupervised"), patient(own_data)
    files = sorted((own_data.scans / "imagesTr").glob(f"{subject}_*"))
    found, trained = predict(folder.path, files), load_trained(folder.path)
    slices = preprocess(read_scan(found.files), 16, 1, "percentiles")
    images = torch.from_numpy(slices.images_NCHW)
    _, row_mm, column_mm = slices.frame.spacing_mm(own_data.plan.store.subjects[subject].spacing_mm)
    maps = {
        times: on_the_scan(
            next(trained.predictor.in_batches(images, (times * row_mm, times * column_mm))),
            slices.frame,
        ).numpy()
        for times in (1, 0.5)
    }
    kept = found.maps_XYZK[:, slices.first : slices.first + len(images)].transpose(1, 3, 0, 2)
    np.testing.assert_array_equal(kept, maps[1])
    assert not np.array_equal(kept, maps[0.5])


@pytest.mark.parametrize(("shape", "axis", "size"), [((20, 6, 28), 1, 28), ((24, 24, 5), 2, 24)])
def test_a_perfect_mask_comes_back_exactly_where_nothing_was_resized(
    shape: tuple[int, int, int], axis: int, size: int
) -> None:
    assert round_trip_dice(shape, axis, size) == 1


@pytest.mark.parametrize(
    ("side", "size", "least"), [(240, 128, 0.97), (60, 48, 0.97), (40, 64, 0.98)]
)
def test_a_perfect_mask_comes_back_nearly_exactly(side: int, size: int, least: float) -> None:
    assert round_trip_dice((side, side, 3), 2, size) > least


def round_trip_dice(shape: tuple[int, int, int], axis: int, size: int) -> float:
    """Of one-hot maps of what the store would hold of a ball of two classes; the worst class."""
    place = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2 - 0.7
    sides = [n for k, n in enumerate(shape) if k != axis]
    place[..., axis] = 0
    radius = np.linalg.norm(place, axis=-1)
    labels = np.select([radius < 0.2 * min(sides), radius < 0.4 * min(sides)], [2, 1], 0)
    image = np.full(shape, 100, np.int16)
    slices = preprocess(Scan((image,), labels.astype(np.uint8), np.eye(4), (1, 1, 1)), size, axis)
    assert slices.labels_NHW is not None
    maps = torch.nn.functional.one_hot(torch.from_numpy(slices.labels_NHW).long(), 3)
    back = on_the_scan(maps.permute(0, 3, 1, 2).float(), slices.frame).argmax(dim=1)
    volume = slices.frame.as_volume(back.permute(1, 2, 0).numpy())
    return min(dice(volume == k, labels == k) for k in (1, 2))


def test_the_files_header_and_codes_are_those_of_the_scan(
    finished: Finished, tmp_path: Path
) -> None:
    copy = tmp_path / "scan"
    shutil.copytree(scan_folder(finished), copy)
    for path in copy.iterdir():
        image = nibabel.load(path)
        image.header.set_sform(image.affine, code="mni")
        image.header.set_qform(image.affine, code="unknown")
        image.header["cal_max"] = 900
        nibabel.save(image, path)
    found = predict(finished.folder("score", "multiclass").path, copy)
    write_prediction(found, tmp_path / "labels.nii.gz", tmp_path / "maps.nii")
    labels, maps = (nibabel.load(tmp_path / name) for name in ("labels.nii.gz", "maps.nii"))
    scan = nibabel.load(next(copy.glob("*_flair.nii.gz")))
    for written in (labels, maps):
        assert np.array_equal(written.affine, scan.affine)
        assert (written.header["sform_code"], written.header["qform_code"]) == (4, 0)
        assert written.header.get_xyzt_units() == scan.header.get_xyzt_units()
        assert written.header["cal_max"] == 0
    assert (labels.shape, labels.get_data_dtype()) == ((20, 20, 6), np.uint8)
    assert (maps.shape, maps.get_data_dtype()) == ((20, 20, 6, 3), np.float32)
    assert np.array_equal(labels.get_fdata(), found.labels_XYZ)
    np.testing.assert_array_equal(maps.get_fdata(dtype=np.float32), found.maps_XYZK)


def test_labels_are_those_of_the_scans_edition(finished: Finished, tmp_path: Path) -> None:
    """BraTS 2023 calls enhancing tumour 3, where 2021 calls it 4."""
    run, old = finished.folder("score", "multiclass").path, scan_folder(finished)
    new = tmp_path / "BraTS-GLI-00001-000"
    new.mkdir()
    for was, now in (("flair", "t2f"), ("t1", "t1n"), ("t1ce", "t1c"), ("t2", "t2w")):
        shutil.copy(old / f"{old.name}_{was}.nii.gz", new / f"{new.name}-{now}.nii.gz")
    in_2021, in_2023 = predict(run, old).labels_XYZ, predict(run, new).labels_XYZ
    assert in_2021 is not None
    assert in_2023 is not None
    assert 4 in in_2021
    assert 3 not in in_2021
    assert np.array_equal(np.where(in_2021 == 4, 3, in_2021), in_2023)


def test_files_without_known_names_are_taken_in_their_order(
    finished: Finished, tmp_path: Path
) -> None:
    run, folder = finished.folder("score", "binary").path, scan_folder(finished)
    paths = [tmp_path / f"{k}.nii.gz" for k in range(4)]
    for path, part in zip(paths, ("flair", "t1", "t1ce", "t2"), strict=True):
        shutil.copy(folder / f"{folder.name}_{part}.nii.gz", path)
    found = predict(run, paths)
    assert np.array_equal(found.maps_XYZK, predict(run, folder).maps_XYZK)
    assert set(np.unique(found.labels_XYZ)) == {0, 1}


def test_of_a_pretraining_it_is_the_anomaly_map(finished: Finished) -> None:
    folder = scan_folder(finished)
    found = predict(finished.folder("pretrain").path, folder)
    assert found.labels_XYZ is None
    assert found.map_names == ("anomaly",)
    unsupervised = predict(finished.folder("unsupervised").path, folder)
    assert np.array_equal(found.maps_XYZK, unsupervised.maps_XYZK)
    threshold = load_trained(finished.folder("unsupervised").path).threshold
    given = predict(finished.folder("pretrain").path, folder, threshold=threshold)
    assert np.array_equal(given.labels_XYZ, unsupervised.labels_XYZ)


@pytest.mark.parametrize("stored", ["RAS", "LAS", "SPL", "ARI"])
def test_a_scan_in_another_orientation_gives_the_same_prediction_turned(
    finished: Finished, tmp_path: Path, stored: str
) -> None:
    run, folder = finished.folder("score", "multiclass").path, scan_folder(finished)
    straight = predict(run, folder)
    own = read_nifti(straight.files.channel_files[0])
    turn = Turn.between(orientation(own.affine), stored)
    affine = turn.affine(own.affine, own.voxels_XYZ.shape)
    assert orientation(affine) == stored
    for path in straight.files.channel_files:
        write_nifti(tmp_path / path.name, turn.there(read_nifti(path).voxels_XYZ), affine)
    turned = predict(run, tmp_path)
    assert straight.labels_XYZ is not None
    assert np.array_equal(turned.labels_XYZ, turn.there(straight.labels_XYZ))
    assert turned.volumes_ml == pytest.approx(straight.volumes_ml)


def test_mirroring_averages_over_the_four_mirror_images(finished: Finished) -> None:
    weights = torch.rand((1, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    image = torch.rand((2, 1, 6, 6), generator=torch.Generator().manual_seed(1))

    class Weighting(nn.Module):
        def forward(self, images_NCHW: Tensor) -> Tensor:
            logits = (images_NCHW * weights).logit()
            return torch.cat([torch.zeros_like(logits), logits], dim=1)

    result = Predictor((Weighting(),), "binary", mirror=True).maps(image)
    mean = sum(weights.flip(axes) for axes in ((), (2,), (3,), (2, 3))) / 4
    torch.testing.assert_close(result[:, 1:], image * mean)
    folder = scan_folder(finished)
    run = finished.folder("score", "binary").path
    plain, averaged = predict(run, folder), predict(run, folder, mirror=True)
    assert not np.array_equal(plain.maps_XYZK, averaged.maps_XYZK)
    assert np.abs(plain.maps_XYZK - averaged.maps_XYZK).mean() < 0.2


def test_thresholds_are_compared_in_half_precision() -> None:
    scores = torch.tensor([0.3, 0.3001, 0.301]).reshape(1, 1, 1, 3)
    assert above(scores, 0.3).flatten().tolist() == [False, False, True]


def test_a_logged_model_predicts_like_its_run(
    own_data: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from fewscan.harness.tracking.tracker import sync

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = own_data.folder("score", "binary")
    runs = tuple(run for run in own_data.plan.runs if run.run_id == folder.run_id)
    sync(replace(own_data.plan, runs=runs), uri)
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    models = client.search_logged_models(experiments)
    (model,) = (m for m in models if m.tags["fewscan.run_id"] == folder.run_id)
    scan = sorted((own_data.scans / "imagesTr").glob(f"{patient(own_data)}_*"))
    logged, local = predict(f"models:/{model.model_id}", scan), predict(folder.path, scan)
    assert np.array_equal(logged.labels_XYZ, local.labels_XYZ)
    np.testing.assert_allclose(logged.maps_XYZK, local.maps_XYZK, atol=1e-6)
    with pytest.raises(FewscanError, match="no such model") as caught:
        predict("models:/m-00000000000000000000000000000000", scan)
    assert "MLFLOW_TRACKING_URI" in str(caught.value.remedy)


def test_a_scan_with_other_channels(own_data: Finished, finished: Finished) -> None:
    with pytest.raises(ScanError, match="4 channels: flair, t1, t1ce, t2") as caught:
        predict(own_data.folder("score", "binary").path, scan_folder(finished))
    assert caught.value.expected == "the model's 2 channels: T2, CT"
    pair = sorted((own_data.scans / "imagesTr").glob("case_001_*"))
    with pytest.raises(ScanError, match="2 channels: T2, CT") as caught:
        predict(finished.folder("score", "binary").path, pair)
    assert caught.value.expected == "the model's 4 channels: flair, t1, t1ce, t2"


def moved(place: Path) -> None:
    path = next(place.glob("*_t2.nii.gz"))
    volume = read_nifti(path)
    affine = volume.affine.copy()
    affine[2, 3] += 7.5
    write_nifti(path, volume.voxels_XYZ, affine)


def cropped(place: Path) -> None:
    path = next(place.glob("*_t1.nii.gz"))
    volume = read_nifti(path)
    write_nifti(path, volume.voxels_XYZ[:, :-1], volume.affine)


def stacked(place: Path) -> None:
    path = next(place.glob("*_t1.nii.gz"))
    volume = read_nifti(path)
    write_nifti(path, np.stack([volume.voxels_XYZ] * 2, axis=-1), volume.affine)


@pytest.mark.parametrize(
    ("damage", "found", "where"),
    [
        (moved, "voxels up to 7.5 mm from those of", "_t2.nii.gz"),
        (cropped, r"shape \(20, 19, 6\)", "_t1.nii.gz"),
        (stacked, r"shape \(20, 20, 6, 2\)", "_t1.nii.gz"),
        (lambda place: next(place.glob("*_t1ce*")).unlink(), "missing: .*_t1ce", "scan"),
        (lambda place: shutil.rmtree(place), "no such file or folder", "scan"),
        (
            lambda place: [
                shutil.copy(p, place / f"BraTS2021_9_{p.name[16:]}") for p in place.iterdir()
            ],
            "2 scans: ",
            "scan",
        ),
    ],
)
def test_scans_that_cannot_be_used(
    finished: Finished,
    tmp_path: Path,
    damage: Callable[[Path], object],
    found: str,
    where: str,
) -> None:
    shutil.copytree(scan_folder(finished), tmp_path / "scan")
    damage(tmp_path / "scan")
    with pytest.raises(ScanError, match=found) as caught:
        predict(finished.folder("score", "binary").path, tmp_path / "scan")
    assert str(caught.value.where).endswith(where)


def test_a_channel_of_an_nnunet_scan_is_missing(own_data: Finished) -> None:
    path = own_data.scans / "imagesTr" / "case_001_0001.nii.gz"
    with pytest.raises(ScanError, match="missing: _0000"):
        predict(own_data.folder("score", "binary").path, path)


def test_runs_that_cannot_be_used(finished: Finished, tmp_path: Path) -> None:
    scan, study = scan_folder(finished), finished.plan.folder.path
    with pytest.raises(RunError, match="a study, not a run"):
        predict(study, scan)
    with pytest.raises(RunError, match="no such folder"):
        predict(study / "runs" / "nothing", scan)
    with pytest.raises(RunError, match="no run"):
        predict(tmp_path, scan)
    copy = tmp_path / "interrupted"
    shutil.copytree(finished.folder("score", "binary").path, copy)
    (copy / "result.json").unlink()
    with pytest.raises(RunError, match="not finished: it is interrupted"):
        predict(copy, scan)
    with pytest.raises(RunError, match="a threshold for a model of classes"):
        predict(finished.folder("score", "multiclass").path, scan, threshold=0.5)


def test_validation_without_a_lesion_leaves_no_threshold(
    finished: Finished, tmp_path: Path
) -> None:
    score = finished.folder("score", "binary")
    copy = tmp_path / score.run_id
    for run_id in (score.run_id, *RunRecord.read(score).spec.parents):
        shutil.copytree(score.sibling(run_id).path, tmp_path / run_id)
    result = json.loads((copy / "result.json").read_text())
    result["validation"]["threshold"] = None
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match="the run has no threshold") as caught:
        predict(copy, scan_folder(finished))
    assert "--threshold" in str(caught.value.remedy)
    assert predict(copy, scan_folder(finished), threshold=0.5).labels_XYZ is not None


def test_a_fine_tuning_has_the_threshold_of_its_score(finished: Finished, tmp_path: Path) -> None:
    score, trained = finished.folder("score", "binary"), finished.folder("finetune", "binary")
    scan = scan_folder(finished)
    assert load_trained(trained.path).threshold == load_trained(score.path).threshold is not None
    assert np.array_equal(
        predict(trained.path, scan).labels_XYZ, predict(score.path, scan).labels_XYZ
    )
    shutil.copytree(trained.path, tmp_path / trained.run_id)
    with pytest.raises(RunError, match="it has not been scored"):
        predict(tmp_path / trained.run_id, scan)


def test_a_postprocessed_score_predicts_what_it_scored(finished: Finished) -> None:
    """Of the finished study scores alone are made anew, and the file has the Dice of cases.csv."""
    study = finished.plan.study
    rules = Postprocess(largest_component=True, min_lesion_mm3=(2.0, 8.0), fill_holes=True)
    evaluation = replace(study.evaluation, postprocess=rules)
    plan = make_plan(replace(study, evaluation=evaluation))
    others = [run for run in plan.runs if run.kind != "score"]
    assert all(plan.folder_of(run).state() == "finished" for run in others)
    scores = [run for run in plan.grid if run.place.target == "binary"]
    run_in_process(plan, scores)
    (folder,) = map(plan.folder_of, scores)
    prediction = predict(folder.path, scan_folder(finished))
    truth_XYZ = read_nifti(*scan_folder(finished).glob("*_seg.nii.gz")).voxels_XYZ
    assert prediction.labels_XYZ is not None
    said = float(row_of(folder, patient(finished))["dice_scan_lesion"])
    assert said == pytest.approx(dice(prediction.labels_XYZ > 0, truth_XYZ > 0), rel=1e-12)


def test_the_rules_of_a_score_change_its_prediction(finished: Finished, tmp_path: Path) -> None:
    """Not at another threshold, where they were not fitted, and not that of its fine-tuning."""
    score, scan = finished.folder("score", "binary"), scan_folder(finished)
    for run_id in (score.run_id, *RunRecord.read(score).spec.parents):
        shutil.copytree(score.sibling(run_id).path, tmp_path / run_id)
    copy, (trained,) = RunFolder(tmp_path / score.run_id), RunRecord.read(score).spec.parents
    result = RunResult.read(copy)

    def mask(run: Path, threshold: float | None = None) -> np.ndarray:
        labels_XYZ = predict(run, scan, threshold=threshold).labels_XYZ
        assert labels_XYZ is not None
        return labels_XYZ

    plain = mask(score.path)
    components, _ = ndimage.label(plain, np.ones((3, 3, 3)))
    largest_mm3 = float(np.bincount(components.ravel())[1:].max())  # its voxels are 1 mm wide
    for mm3, some in ((largest_mm3, True), (1.2 * largest_mm3, False)):
        fitted = Fitted(1, (Rule("smallest lesion", (1,), mm3),))
        replace(result, postprocess=fitted.to_json()).write(copy)
        assert mask(copy.path).any() == some, "a pixel of the slices has 1.6 mm³"
    assert result.threshold is not None
    lower = result.threshold / 2
    assert not mask(copy.path, result.threshold).any()
    assert np.array_equal(mask(copy.path, lower), mask(score.path, lower))
    assert np.array_equal(mask(tmp_path / trained), plain)


def fewscan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command(finished: Finished, tmp_path: Path) -> None:
    run, scan = finished.folder("score", "binary").path, scan_folder(finished)
    out, maps = tmp_path / "lesion.nii.gz", tmp_path / "p.nii.gz"
    done = fewscan("predict", run, scan, out, "--probabilities", maps)
    assert done.exit_code == 0, done.output
    assert "lesion.nii.gz: lesion " in done.output
    assert " ml" in done.output
    expected = predict(run, scan)
    assert np.array_equal(read_nifti(out).voxels_XYZ, expected.labels_XYZ)
    assert np.array_equal(read_nifti(maps).voxels_XYZ, expected.maps_XYZK[..., 0])
    again = fewscan("predict", run, scan, out)
    assert again.exit_code == 1
    assert "the file exists" in again.output
    assert fewscan("predict", run, *expected.files.channel_files, out, "--overwrite").exit_code == 0
    inside = fewscan("predict", run, scan, expected.files.channel_files[0], "--overwrite")
    assert "belongs to the scan" in inside.output
    assert (
        "a file of its own"
        in fewscan("predict", run, scan, "a.nii", "--probabilities", "a.nii").output
    )
    nowhere = fewscan("predict", run, scan, tmp_path / "none" / "out.nii.gz")
    assert "no such folder" in nowhere.output
    assert "the name 'out.png'" in fewscan("predict", run, scan, tmp_path / "out.png").output
