import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from fewscan.experiments.devices import Devices
from fewscan.experiments.evaluate import Prediction, evaluate
from fewscan.experiments.segment import prediction
from fewscan.experiments.spec import Evaluation, Target
from fewscan.experiments.surfaces import surface_scores
from fewscan.storage.runs import RunFolder
from fewscan.storage.slices import SliceStore


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


CPU = Devices()
SPACING_MM = (1.0, 20 / 16, 20 / 16)
"""Slices of 20² voxels of 1 mm became 16²."""
VOXEL_MM3 = (20 / 16) ** 2


def read_rows(folder: RunFolder) -> list[dict[str, str]]:
    return list(csv.DictReader(folder.cases.open()))


def flair(images_NCHW: Tensor) -> Prediction:
    """A predictor without a network: how bright FLAIR is, and a class from it."""
    bright_NHW = images_NCHW[:, 0].clamp(0, 1)
    return Prediction(bright_NHW, (bright_NHW > 0.9).long() * 2)


def pooled(store: SliceStore, ids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    slices = store.read(ids)
    scores = slices.images_NCHW[:, 0].astype(np.float32).clip(0, 1).astype(np.float16)
    return scores, slices.labels_NHW


def test_the_numbers_are_those_of_all_test_pixels_at_once(
    store: SliceStore, folder: RunFolder
) -> None:
    result = evaluate(flair, Evaluation(), store, folder, CPU)
    scores, labels = pooled(store, store.split.test)
    truth = labels > 0
    ap = average_precision_score(truth.ravel(), scores.ravel())
    assert result["test"]["pooled_ap"] == pytest.approx(ap, rel=1e-12)
    threshold = result["validation"]["threshold"]
    predicted = scores > np.float16(threshold)
    dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert result["test"]["pooled_dice_at_validation_threshold"] == pytest.approx(dice, rel=1e-12)
    assert result["test"]["pooled_best_dice"] >= dice
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_threshold_is_chosen_without_the_test_split(
    store: SliceStore, folder: RunFolder
) -> None:
    result = evaluate(flair, Evaluation(), store, folder, CPU)
    scores, labels = pooled(store, store.split.validation)
    dice = []
    for threshold in np.arange(1000) / 1000:
        predicted = scores > np.float16(threshold)
        dice.append(2 * (predicted & (labels > 0)).sum() / (predicted.sum() + (labels > 0).sum()))
    assert result["validation"]["pooled_best_dice"] == pytest.approx(max(dice), rel=1e-12)
    assert result["validation"]["threshold"] == np.argmax(dice) / 1000


def test_one_row_a_test_patient(store: SliceStore, folder: RunFolder) -> None:
    result = evaluate(flair, Evaluation(), store, folder, CPU)
    rows = read_rows(folder)
    assert [row["subject"] for row in rows] == list(store.split.test)
    for row in rows:
        slices = store.read_subject(row["subject"])
        truth = slices.labels_NHW == 2
        predicted = slices.images_NCHW[:, 0].astype(np.float32) > 0.9
        dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
        assert float(row["dice_oedema"]) == pytest.approx(dice, rel=1e-12)
        assert int(row["lesion_pixels"]) == (slices.labels_NHW > 0).sum()
        assert float(row["volume_mm3_oedema"]) == pytest.approx(predicted.sum() * VOXEL_MM3)
    mean = np.mean([float(row["dice_oedema"]) for row in rows])
    assert result["test"]["class_dice/oedema"] == pytest.approx(mean, rel=1e-12)


def test_dice_of_a_patient_is_at_the_threshold_of_validation(
    store: SliceStore, folder: RunFolder
) -> None:
    """In half precision on both sides, as the pooled one is."""
    result = evaluate(lambda x: Prediction(flair(x).scores_NHW), Evaluation(), store, folder, CPU)
    threshold = np.float16(result["validation"]["threshold"])
    rows = read_rows(folder)
    found, true = 0, 0
    for row in rows:
        scores, labels = pooled(store, (row["subject"],))
        predicted, truth = scores > threshold, labels > 0
        found, true = found + predicted.sum(), true + truth.sum()
        dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        assert float(row["dice_at_validation_threshold"]) == pytest.approx(dice, rel=1e-12)
    for name, pixels in (("volume_mm3_lesion", found), ("true_volume_mm3_lesion", true)):
        total_mm3 = sum(float(row[name]) for row in rows)
        assert total_mm3 == pytest.approx(pixels * VOXEL_MM3)
    for name in ("ap", "dice_at_validation_threshold", "nsd_lesion"):
        mean = np.mean([float(row[name]) for row in rows])
        assert result["test"][f"patient_{name}"] == pytest.approx(mean, rel=1e-12)


def test_surfaces_are_those_of_the_masks_in_millimetres(
    store: SliceStore, folder: RunFolder
) -> None:
    evaluate(flair, Evaluation(nsd_tolerance_mm=1.5), store, folder, Devices(threads=2))
    for row in read_rows(folder):
        slices = store.read_subject(row["subject"])
        predicted = slices.images_NCHW[:, 0].astype(np.float32) > 0.9
        truth = slices.labels_NHW == 2
        expected = surface_scores(predicted, truth, SPACING_MM, 1.5)
        assert (float(row["nsd_oedema"]), float(row["hd95_mm_oedema"])) == expected
        never_predicted = ("0.0", "inf") if (slices.labels_NHW == 1).any() else ("", "")
        assert (row["nsd_necrotic_core"], row["hd95_mm_necrotic_core"]) == never_predicted


def test_specks_can_be_removed(store: SliceStore, folder: RunFolder) -> None:
    """Everything is a speck if specks may be large; then nothing is found."""
    none = evaluate(flair, Evaluation(min_component_voxels=10**6), store, folder, CPU)
    assert none["test"]["pooled_best_dice_without_specks"] == 0
    some = evaluate(flair, Evaluation(min_component_voxels=1), store, folder, CPU)
    assert some["test"]["pooled_best_dice_without_specks"] > 0
    assert none["test"]["pooled_best_dice"] == some["test"]["pooled_best_dice"]


def test_what_is_not_defined_is_null(
    store: SliceStore, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split without lesions has no AP and no threshold."""
    read = SliceStore.read_subject

    def healthy(self: SliceStore, subject: str) -> object:
        slices = read(self, subject)
        slices.labels_NHW[...] = 0
        return slices

    monkeypatch.setattr(SliceStore, "read_subject", healthy)
    result = evaluate(flair, Evaluation(), store, folder, CPU)
    assert result["test"]["pooled_ap"] is None
    assert result["test"]["pooled_dice_at_validation_threshold"] is None
    assert result["validation"]["threshold"] is None
    assert {row["dice_at_validation_threshold"] for row in read_rows(folder)} == {""}


@pytest.mark.parametrize(
    ("target", "classes"), [("binary", 1), ("multiclass", 1), ("multiclass", 3)]
)
def test_a_prediction_is_the_probability_of_any_lesion(target: Target, classes: int) -> None:
    logits = torch.randn((2, 1 + classes, 4, 4), generator=torch.Generator().manual_seed(0))
    found = prediction(logits, target)
    background = logits.exp()[:, 0] / logits.exp().sum(dim=1)
    assert torch.allclose(found.scores_NHW, 1 - background, atol=1e-6)
    assert (found.labels_NHW is None) == (target == "binary")
