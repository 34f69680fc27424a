"""Scoring the test split, once, at the end.

Scores are computed in float32 whatever the training used: half of the bits would make ties, and a
reconstruction error is a small difference of large numbers.

Letters in names: N slices, C channels, P patients, K classes, H and W rows and columns.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewscan.experiments.cases import (
    DICE_AT_THRESHOLD,
    LESION,
    Row,
    Segmentation,
    case_row,
    column,
    mean_defined,
    to_csv,
)
from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.data import open_store
from fewscan.experiments.devices import Devices
from fewscan.experiments.metrics import PixelScores, mean_class_dice
from fewscan.experiments.scoring import anomaly_score, remove_small_components
from fewscan.experiments.spec import Anomaly, Evaluation
from fewscan.experiments.surfaces import require_surfaces
from fewscan.storage.atomic import write_bytes
from fewscan.storage.runs import RunFolder
from fewscan.storage.slices import Slices, SliceStore

EVALUATION_BATCH = 64
"""Fixed: a convolution's last bits depend on how many slices it is given at once."""
PATIENTS_WAITING = 8
"""Whose masks are in memory at most, until a thread has compared them."""


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
class Scored:
    """What a model says of one patient."""

    subject: str
    pixels: PixelScores
    """Of all kept slices."""
    scores_ZHW: np.ndarray
    """float16."""
    labels_ZHW: np.ndarray | None
    """uint8; from a model that knows classes."""
    truth_ZHW: np.ndarray
    """uint8."""


def score_anomalies(spec: Anomaly, folder: RunFolder, devices: Devices) -> dict[str, Any]:
    """The stage of `Anomaly`: the pre-trained network's own anomaly score, without any label."""
    require_surfaces(spec.evaluation)
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

    "pooled_…": of all pixels of all patients at once, as published. `pooled_best_dice` is ⌈Dice⌉,
    whose threshold is chosen on the test split itself; "…_at_validation_threshold" is what can be
    had without looking. "patient_…": the mean over patients of the column of `cases.csv`, and
    "class_…" likewise for each class, each by the rule of `experiments.cases`. A number that is not
    defined (no lesion in the split) is None. Raises `RunError` if MONAI is needed and missing.
    """
    require_surfaces(evaluation)
    scan = _Scan(predict, store, devices)
    chosen = _pooled(scored.pixels for scored in scan.each(store.split.validation))
    dice, threshold = chosen.best_dice()
    pooled, rows = _score_test_split(scan, evaluation, threshold)
    best_dice, best_threshold = pooled.best_dice()
    test = {
        "pooled_ap": pooled.average_precision(),
        "pooled_best_dice": best_dice,
        "pooled_best_dice_threshold": best_threshold,
        "pooled_dice_at_validation_threshold": dice_at(pooled, threshold),
        **_patient_means(store.classes, rows),
    }
    if evaluation.min_component_voxels:
        sums = [
            without_specks(scored, best_threshold, evaluation.min_component_voxels)
            for scored in scan.each(store.split.test)
        ]
        test["pooled_best_dice_without_specks"] = float(np.divide(*np.sum(sums, axis=0)))
    write_bytes(folder.cases, to_csv(rows))
    validation = {
        "pooled_ap": chosen.average_precision(),
        "pooled_best_dice": dice,
        "threshold": threshold,
    }
    return {"validation": _defined(validation), "test": _defined(test)}


def _score_test_split(
    scan: "_Scan", evaluation: Evaluation, threshold: float
) -> tuple[PixelScores, list[Row]]:
    """All pixels of the test split, and a row a patient; surfaces are measured in threads."""
    pooled = PixelScores()
    rows: list[Future[Row]] = []
    with ThreadPoolExecutor(scan.devices.threads) as threads:
        for scored in scan.each(scan.store.split.test):
            pooled += scored.pixels
            rows.append(threads.submit(_row, scored, scan.store, evaluation, threshold))
            if len(rows) > PATIENTS_WAITING:
                rows[-PATIENTS_WAITING].result()
    return pooled, [row.result() for row in rows]


def _row(scored: Scored, store: SliceStore, evaluation: Evaluation, threshold: float) -> Row:
    spacing_mm_ZHW = store.spacing_mm_ZHW(scored.subject)
    lesion = classes = None
    if not math.isnan(threshold):
        found_ZHW = (scored.scores_ZHW > np.float16(threshold)).view(np.uint8)
        truth_ZHW = (scored.truth_ZHW > 0).view(np.uint8)
        lesion = Segmentation((LESION,), found_ZHW, truth_ZHW, spacing_mm_ZHW)
    if scored.labels_ZHW is not None:
        classes = Segmentation(store.classes, scored.labels_ZHW, scored.truth_ZHW, spacing_mm_ZHW)
    return case_row(scored.subject, scored.pixels, lesion, classes, evaluation.nsd_tolerance_mm)


@dataclass(frozen=True)
class _Scan:
    """Runs a model over the slices of one patient after the other."""

    predict: Predictor
    store: SliceStore
    devices: Devices

    def each(self, subjects: Sequence[str]) -> Iterator[Scored]:
        """One patient after the other; the next one is read while this one is scored."""
        with ThreadPoolExecutor(1) as reader:
            coming: list[Future[Slices]] = []
            for subject, following in zip_longest(subjects, subjects[1:]):
                slices = coming.pop().result() if coming else self.store.read_subject(subject)
                if following is not None:
                    coming.append(reader.submit(self.store.read_subject, following))
                yield self._scored(subject, slices)

    def _scored(self, subject: str, slices: Slices) -> Scored:
        """All slices of a patient, a batch at a time."""
        pixels, scores, labels = PixelScores(), [], []
        for start in range(0, len(slices.images_NCHW), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            images_NCHW = torch.from_numpy(slices.images_NCHW[part])
            prediction = self.predict(images_NCHW.to(self.devices.device, torch.float32))
            truth_NHW = torch.from_numpy(slices.labels_NHW[part]).to(self.devices.device)
            pixels.update(prediction.scores_NHW, truth_NHW > 0)
            scores.append(prediction.scores_NHW.half().cpu().numpy())
            if prediction.labels_NHW is not None:
                labels.append(prediction.labels_NHW.to(torch.uint8).cpu().numpy())
        return Scored(
            subject,
            pixels,
            np.concatenate(scores),
            np.concatenate(labels) if labels else None,
            slices.labels_NHW,
        )


def without_specks(scored: Scored, threshold: float, max_voxels: int) -> tuple[int, int]:
    """Twice the hits, and predicted plus true pixels, without small components."""
    mask_ZHW = scored.scores_ZHW > np.float16(threshold)
    mask_ZHW = remove_small_components(mask_ZHW, max_voxels)
    truth_ZHW = scored.truth_ZHW > 0
    return 2 * int((mask_ZHW & truth_ZHW).sum()), int(mask_ZHW.sum() + truth_ZHW.sum())


def dice_at(scores: PixelScores, threshold: float) -> float:
    """Dice at a threshold that another split chose; nan if that split had no lesion."""
    return math.nan if math.isnan(threshold) else scores.dice_at(threshold)


def _pooled(parts: Iterable[PixelScores]) -> PixelScores:
    return sum(parts, PixelScores())


def _patient_means(classes: Sequence[str], rows: Sequence[Row]) -> dict[str, float]:
    """Means over patients; of the classes also the mean over them (MIDL 2023)."""
    names = ("ap", DICE_AT_THRESHOLD, f"nsd_{LESION}")
    means = {
        f"patient_{name}": mean_defined(column(rows, name)) for name in names if name in rows[0]
    }
    for kind in ("dice", "nsd"):
        columns = [f"{kind}_{name}" for name in classes]
        if f"dice_{classes[0]}" in rows[0] and columns[0] in rows[0]:
            values_PK = np.stack([column(rows, name) for name in columns], axis=1)
            each = {
                f"class_{kind}/{n}": mean_defined(v)
                for n, v in zip(classes, values_PK.T, strict=True)
            }
            means |= {f"class_{kind}_mean": mean_class_dice(values_PK), **each}
    return means


def _defined(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
