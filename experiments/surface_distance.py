"""How far the surface of a predicted mask is from the true one, in millimetres: NSD and HD95.

MONAI computes both; what it has no number for is decided here. It is loaded where it is used, as it
takes seconds, and a machine without it can do everything else.

Letters in names: Z slices of a scan, H and W rows and columns of a slice.
"""

import importlib
import importlib.util
import math
import os
import warnings
from functools import cache
from typing import Any

import torch

from fewscan.experiments.measures import Masks, measures
from fewscan.experiments.spec import Evaluation
from fewscan.storage.errors import RunError


def require_surface_distances(evaluation: Evaluation) -> None:
    """Raise `RunError` if the evaluation asks for surfaces and MONAI is not here.

    For the beginning of a run, before hours are spent. Nothing is loaded.
    """
    if evaluation.measures_surfaces and importlib.util.find_spec("monai") is None:
        raise RunError(
            "MONAI is not installed here, and the evaluation asks for NSD and HD95",
            where="evaluation.nsd_tolerance_mm",
            expected="MONAI, which computes them",
            remedy="pip install monai, or leave both out: --set evaluation.nsd_tolerance_mm=null",
        )


@measures("nsd")
def surface_dice(masks: Masks, evaluation: Evaluation) -> float:
    """The share of both surfaces that is within the tolerance of the other, by area.

    Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck
    anatomy", 2018.
    """
    assert evaluation.nsd_tolerance_mm is not None
    if not masks.counts:
        return math.nan
    if not masks.predicted_ZHW.any():  # no surface is near a surface that is not there
        return 0.0
    tolerances_mm = [evaluation.nsd_tolerance_mm]
    common = {"include_background": True, "spacing": list(masks.spacing_mm_ZHW)}
    compute = _monai_metrics().compute_surface_dice
    return float(compute(*_batched(masks), tolerances_mm, use_subvoxels=True, **common).item())


@measures("hd95_mm")
def hausdorff_95(masks: Masks, evaluation: Evaluation) -> float:
    """The larger of the two directed 95th percentiles of distances between border voxels, in mm."""
    if not masks.counts:
        return math.nan
    if not masks.predicted_ZHW.any():
        return math.inf
    common = {"include_background": True, "spacing": list(masks.spacing_mm_ZHW)}
    compute = _monai_metrics().compute_hausdorff_distance
    return float(compute(*_batched(masks), percentile=95, **common).item())


def _batched(masks: Masks) -> tuple[torch.Tensor, torch.Tensor]:
    """As MONAI wants them: a batch of one, a class."""
    predicted, truth = (torch.from_numpy(m) for m in (masks.predicted_ZHW, masks.truth_ZHW))
    return predicted[None, None], truth[None, None]


@cache
def _monai_metrics() -> Any:
    warnings.filterwarnings("ignore", "monai.metrics", FutureWarning)  # it warns of its own calls
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it loads mlflow if there is one
    return importlib.import_module("monai.metrics")
