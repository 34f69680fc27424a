"""Anomaly scores: erosion and OpenCV's median, against average pooling and unfold-and-median."""

import torch

from benchmarks import published
from benchmarks.measure import side_by_side, typical
from benchmarks.results import Finding
from benchmarks.setting import Setting
from fewscan.experiments.anomaly import PUBLISHED_MM, reconstruction_anomaly
from fewscan.experiments.predictor import PREDICTION_BATCH


def measure(setting: Setting) -> list[Finding]:
    """A batch of a scan as it is predicted, with outputs that differ a little everywhere."""
    store = setting.store()
    slices = store.read_subject(next(iter(store.subjects)))
    images_NCHW = torch.from_numpy(slices.images_NCHW[:PREDICTION_BATCH]).float()
    noise_NCHW = torch.randn(images_NCHW.shape, generator=torch.Generator().manual_seed(0))
    outputs_NCHW = images_NCHW + 0.1 * noise_NCHW
    expected_NHW = published.anomaly_score(images_NCHW, outputs_NCHW)
    assert torch.equal(
        reconstruction_anomaly(images_NCHW, outputs_NCHW, PUBLISHED_MM), expected_NHW
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = _compared(images_NCHW, outputs_NCHW, setting.rounds, None)
    finally:
        torch.set_num_threads(threads)
    return [_compared(images_NCHW, outputs_NCHW, setting.rounds, 5), alone]


def _compared(
    images_NCHW: torch.Tensor, outputs_NCHW: torch.Tensor, rounds: int, at_least: float | None
) -> Finding:
    costs = side_by_side(
        lambda: published.anomaly_score(images_NCHW, outputs_NCHW),
        lambda: reconstruction_anomaly(images_NCHW, outputs_NCHW, PUBLISHED_MM),
        rounds,
        plain_units=len(images_NCHW),
        fast_units=len(images_NCHW),
    )
    plain_ms, fast_ms = (1000 * typical(way, "wall_s") for way in (costs.plain, costs.fast))
    return Finding(
        f"anomaly score, threads of torch: {torch.get_num_threads()}",
        costs.ratios("wall_s"),
        "×",
        at_least=at_least,
        published=f"{plain_ms:.3g} ms a slice",
        here=f"{fast_ms:.3g} ms a slice",
        core_ratios=costs.ratios("core_s"),
        note="erosion and OpenCV's 5×5 median against average pooling and unfold-and-median, "
        "exactly equal",
    )
