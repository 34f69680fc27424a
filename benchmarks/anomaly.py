"""Anomaly scores: erosion and 5×5 median, against average pooling and unfold-and-median."""

import torch

from benchmarks import published
from benchmarks.measure import side_by_side, typical
from benchmarks.results import Finding
from benchmarks.setting import Setting
from experiments.evaluate import EVALUATION_BATCH
from experiments.scoring import anomaly_score


def measure(setting: Setting) -> list[Finding]:
    """One evaluation batch of real foreground, with outputs that differ a little everywhere."""
    store = setting.store()
    slices = store.read_subject(next(iter(store.subjects)))
    images_NCHW = torch.from_numpy(slices.images_NCHW[:EVALUATION_BATCH]).float()
    noise_NCHW = torch.randn(images_NCHW.shape, generator=torch.Generator().manual_seed(0))
    outputs_NCHW = images_NCHW + 0.1 * noise_NCHW
    expected_NHW = published.anomaly_score(images_NCHW, outputs_NCHW)
    assert torch.equal(anomaly_score(images_NCHW, outputs_NCHW), expected_NHW)
    costs = side_by_side(
        lambda: published.anomaly_score(images_NCHW, outputs_NCHW),
        lambda: anomaly_score(images_NCHW, outputs_NCHW),
        setting.rounds,
        plain_units=len(images_NCHW),
        fast_units=len(images_NCHW),
    )
    plain_ms, fast_ms = (1000 * typical(way, "wall_s") for way in (costs.plain, costs.fast))
    return [
        Finding(
            "anomaly score (erosion + 5×5 median), exactly equal",
            costs.ratios("wall_s"),
            "×",
            at_least=5,
            published=f"{plain_ms:.3g} ms a slice",
            here=f"{fast_ms:.3g} ms a slice",
        )
    ]
