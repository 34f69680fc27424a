"""AP and ⌈Dice⌉ of ten patients: counts of scores, against sklearn and a loop over thresholds."""

import resource
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks import published
from benchmarks.measure import side_by_side, typical
from benchmarks.results import Finding
from benchmarks.setting import Setting
from fewscan.experiments.metrics import THRESHOLDS, PixelScores, PooledScores
from fewscan.experiments.predictor import PREDICTION_BATCH
from fewscan.storage.slices import SliceStore

_FALSE_SHARE = 0.02
"""of the tissue that scores as high as a lesion"""


def measure(setting: Setting) -> list[Finding]:
    """All pixels of all scans pooled, with scores that are right more often than not."""
    store = setting.store()
    memory = _memory(store)  # first, because the peak of a process never falls
    patients = [_patient(store, subject) for subject in store.subjects]
    scores = np.concatenate([scores_NHW.ravel() for scores_NHW, _ in patients])
    mask = np.concatenate([mask_NHW.ravel() for _, mask_NHW in patients])
    results: dict[str, tuple[float, float]] = {}

    def plainly() -> None:
        dice = published.best_dice(scores, mask, THRESHOLDS.tolist())
        results["published"] = published.average_precision(scores, mask), dice

    def fast() -> None:
        counted = sum((_counted(*patient) for patient in patients), PixelScores())
        results["here"] = counted.average_precision(), counted.best_dice()[0]

    # One whole loop over 1000 thresholds takes a minute: two rounds, and no warm-up for it.
    fast()
    costs = side_by_side(plainly, fast, min(setting.rounds, 2), warm_up=False)
    assert results["published"] == results["here"], results
    plain_s, fast_s = (typical(way, "wall_s") for way in (costs.plain, costs.fast))
    return [
        Finding(
            f"AP + ⌈Dice⌉ of {len(patients)} patients",
            costs.ratios("wall_s"),
            "×",
            at_least=100,
            published=f"{plain_s:.3g} s",
            here=f"{fast_s:.3g} s",
            core_ratios=costs.ratios("core_s"),
            note=f"{len(scores):,} pixels, all 1000 thresholds, exactly equal to the last bit",
        ),
        memory,
    ]


def _patient(store: SliceStore, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores (float32) and lesion mask of a scan, both NHW: noise in tissue, more in the lesion."""
    slices = store.read_subject(subject)
    rng = np.random.default_rng(store.subject(subject).row)
    mask_NHW = slices.labels_NHW > 0
    tissue_NHW = slices.images_NCHW.any(axis=1)
    noise_NHW = np.abs(rng.normal(0, 0.1, mask_NHW.shape)).astype(np.float32)
    false_NHW = rng.random(mask_NHW.shape) < _FALSE_SHARE
    return (noise_NHW + np.float32(0.3) * (mask_NHW | false_NHW)) * tissue_NHW, mask_NHW


def _counted(scores_NHW: np.ndarray, mask_NHW: np.ndarray) -> PixelScores:
    """As `score` counts a scan: a batch of predictions at a time."""
    pixels = PixelScores()
    for start in range(0, len(mask_NHW), PREDICTION_BATCH):
        part = slice(start, start + PREDICTION_BATCH)
        pixels.update(torch.from_numpy(scores_NHW[part]), torch.from_numpy(mask_NHW[part]))
    return pixels


def _memory(store: SliceStore) -> Finding:
    """How much the peak grows with the patients, in that of keeping their scores.

    From two patients on, by when the allocator has what it asks for; the largest come first.
    """
    subjects = sorted(store.subjects, key=lambda id_: -len(store.subject(id_).positions))

    def counted(some: Sequence[str]) -> None:
        pixels = PooledScores()
        for subject in some:
            pixels.add(subject, _counted(*_patient(store, subject)))

    def pooled(some: Sequence[str]) -> None:
        patients = [_patient(store, subject) for subject in some]
        assert sum(mask_NHW.size for _, mask_NHW in patients)

    growths_MB = []
    for work in (counted, pooled):
        two, all_ = (_peak_MB(partial(work, some)) for some in (subjects[:2], subjects))
        growths_MB.append(max(0.0, all_ - two))
    return Finding(
        f"memory for {len(subjects) - 2} patients more, while scoring",
        (growths_MB[0] / growths_MB[1] if growths_MB[1] else 0.0,),
        "×",
        at_most=0.1,
        published=f"{growths_MB[1]:.0f} MB to keep scores and masks alone",
        here=f"{growths_MB[0]:.0f} MB",
        note="by the largest resident size of the process; what is kept is 512 KiB of counts, "
        "and 10 bytes for each half-precision number that occurs in a patient",
    )


def _peak_MB(work: Callable[[], object]) -> float:
    """The largest resident size of this process so far, after `work`."""
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
