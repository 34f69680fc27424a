"""Scoring the test split, once, at the end.

Scores are computed in float32 whatever the training used: half of the bits would make ties, and a
reconstruction error is a small difference of large numbers.

Letters in names: N slices, C channels, P patients, K classes, H and W rows and columns.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checkpoint import load_model
from experiments.data import open_store
from experiments.devices import Devices
from experiments.metrics import ClassOverlap, PixelScores, mean_class_dice
from experiments.scoring import anomaly_score, remove_small_components
from experiments.spec import Anomaly, Evaluation
from storage.atomic import write_bytes
from storage.runs import RunFolder
from storage.slices import SliceStore

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """What a model says of some slices."""

    scores_NHW: Tensor
    """The higher, the more lesion; not negative."""
    labels_NHW: Tensor | None = None
    """The class of each pixel, from a model that knows classes."""


Predictor = Callable[[Tensor], Prediction]
"""From float32 images_NCHW on the device to a prediction."""


@dataclass(frozen=True)
class Case:
    """One patient: the pixels of all kept slices, counted."""

    subject: str
    pixels: PixelScores
    overlap: ClassOverlap | None
    """From a model that knows classes."""


def score_anomalies(spec: Anomaly, folder: RunFolder, devices: Devices) -> dict[str, Any]:
    """The stage of `Anomaly`: the pre-trained network's own anomaly score, without any label."""
    store = open_store(folder, spec.data)
    model = load_model(folder.sibling(spec.init).model).float().to(devices.device)

    def predict(images_NCHW: Tensor) -> Prediction:
        return Prediction(anomaly_score(images_NCHW, model(images_NCHW)))

    return {"kind": spec.kind, **evaluate(predict, spec.evaluation, store, folder, devices)}


@torch.no_grad()
def evaluate(
    predict: Predictor,
    evaluation: Evaluation,
    store: SliceStore,
    folder: RunFolder,
    devices: Devices,
) -> dict[str, Any]:
    """Score validation and test split; writes `cases.csv`, returns the numbers for `result.json`.

    `best_dice` is the published ⌈Dice⌉, whose threshold is chosen on the test split itself;
    `dice_at_validation_threshold` is what can be had without looking. A number that is not defined
    (no lesion in the split) is None.
    """
    scan = _Scan(predict, store, devices)
    chosen = _pooled([scan.case(subject) for subject in store.split.validation])
    dice, threshold = chosen.best_dice()
    cases = [scan.case(subject) for subject in store.split.test]
    pooled = _pooled(cases)
    best_dice, best_threshold = pooled.best_dice()
    test = {
        "ap": pooled.average_precision(),
        "best_dice": best_dice,
        "best_dice_threshold": best_threshold,
        "dice_at_validation_threshold": dice_at(pooled, threshold),
        **_class_means(store.classes, cases),
    }
    if evaluation.min_component_voxels:
        subjects = store.split.test
        sums = [scan.without_specks(s, best_threshold, evaluation) for s in subjects]
        test["best_dice_without_specks"] = float(np.divide(*np.sum(sums, axis=0)))
    write_bytes(folder.cases, _csv(store.classes, cases, threshold))
    validation = {"ap": chosen.average_precision(), "dice": dice, "threshold": threshold}
    return {"validation": _defined(validation), "test": _defined(test)}


@dataclass(frozen=True)
class _Scan:
    """Runs a model over the slices of one patient after the other."""

    predict: Predictor
    store: SliceStore
    devices: Devices

    def case(self, subject: str) -> Case:
        slices = self.store.read_subject(subject)
        pixels, overlap = PixelScores(), None
        for start in range(0, len(slices.images_NCHW), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            prediction = self._predict(slices.images_NCHW[part])
            truth_NHW = torch.from_numpy(slices.labels_NHW[part]).to(self.devices.device)
            pixels.update(prediction.scores_NHW, truth_NHW > 0)
            if prediction.labels_NHW is not None:
                overlap = overlap or ClassOverlap(range(1, len(self.store.classes) + 1))
                overlap.update(prediction.labels_NHW, truth_NHW)
        return Case(subject, pixels, overlap)

    def without_specks(
        self, subject: str, threshold: float, evaluation: Evaluation
    ) -> tuple[int, int]:
        """Twice the hits, and predicted plus true pixels, without small components."""
        slices = self.store.read_subject(subject)
        scores = [
            self._predict(slices.images_NCHW[start : start + EVALUATION_BATCH]).scores_NHW.cpu()
            for start in range(0, len(slices.images_NCHW), EVALUATION_BATCH)
        ]
        mask_ZHW = (torch.cat(scores).half() > threshold).numpy()
        mask_ZHW = remove_small_components(mask_ZHW, evaluation.min_component_voxels)
        truth_ZHW = slices.labels_NHW > 0
        return 2 * int((mask_ZHW & truth_ZHW).sum()), int(mask_ZHW.sum() + truth_ZHW.sum())

    def _predict(self, images_NCHW: np.ndarray) -> Prediction:
        return self.predict(torch.from_numpy(images_NCHW).to(self.devices.device, torch.float32))


def dice_at(scores: PixelScores, threshold: float) -> float:
    """Dice at a threshold that another split chose; nan if that split had no lesion."""
    return math.nan if math.isnan(threshold) else scores.dice_at(threshold)


def _pooled(cases: Sequence[Case]) -> PixelScores:
    return sum((case.pixels for case in cases), PixelScores())


def _class_means(classes: Sequence[str], cases: Sequence[Case]) -> dict[str, float]:
    """Dice per patient in 3D, averaged over patients, then over classes (MIDL 2023)."""
    overlaps = [case.overlap for case in cases if case.overlap is not None]
    if not overlaps:
        return {}
    dice_PK = np.stack([overlap.dice() for overlap in overlaps])
    each = {
        f"class_dice/{name}": mean_class_dice(dice_PK[:, [k]]) for k, name in enumerate(classes)
    }
    return {"class_dice_mean": mean_class_dice(dice_PK), **each}


def _csv(classes: Sequence[str], cases: Sequence[Case], threshold: float) -> bytes:
    """One row a patient; an empty field is a number that is not defined for that patient."""
    rows = [_row(classes, case, threshold) for case in cases]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)
    return text.getvalue().encode()


def _row(classes: Sequence[str], case: Case, threshold: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "subject": case.subject,
        "pixels": case.pixels.pixels,
        "lesion_pixels": case.pixels.positives,
        "ap": case.pixels.average_precision(),
        "dice_at_validation_threshold": dice_at(case.pixels, threshold),
    }
    if case.overlap is not None:
        dice_K = case.overlap.dice()
        row |= {f"dice_{name}": float(dice_K[k]) for k, name in enumerate(classes)}
    return row


def _defined(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
