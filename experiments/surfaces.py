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

import numpy as np
import torch

from fewscan.experiments.spec import Evaluation
from fewscan.storage.errors import RunError


def require_surfaces(evaluation: Evaluation) -> None:
    """Raise `RunError` if the evaluation asks for surfaces and MONAI is not here.

    For the beginning of a run, before hours are spent. Nothing is loaded.
    """
    if evaluation.nsd_tolerance_mm is not None and importlib.util.find_spec("monai") is None:
        raise RunError(
            "MONAI is not installed here, and the evaluation asks for NSD and HD95",
            where="evaluation.nsd_tolerance_mm",
            expected="MONAI, which computes them",
            remedy="pip install monai, or leave both out: --set evaluation.nsd_tolerance_mm=null",
        )


def surface_scores(
    prediction_ZHW: np.ndarray,
    truth_ZHW: np.ndarray,
    spacing_mm_ZHW: tuple[float, float, float],
    tolerance_mm: float,
) -> tuple[float, float]:
    """NSD at `tolerance_mm`, and HD95 in mm, of two bool masks of one scan in 3D.

    NSD: the share of both surfaces that is within the tolerance of the other, by area (Nikolov et
    al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy",
    2018). HD95: the larger of the two directed 95th percentiles of distances between border voxels.

    (nan, nan) if both masks are empty: there was nothing to find and nothing was found. (0, inf) if
    one of them is: no surface is near a surface that is not there.
    """
    empty = [not mask.any() for mask in (prediction_ZHW, truth_ZHW)]
    if any(empty):
        return (math.nan, math.nan) if all(empty) else (0.0, math.inf)
    monai = _monai_metrics()
    masks = [torch.from_numpy(mask)[None, None] for mask in (prediction_ZHW, truth_ZHW)]
    common: dict[str, Any] = {"include_background": True, "spacing": list(spacing_mm_ZHW)}
    nsd = monai.compute_surface_dice(*masks, [tolerance_mm], use_subvoxels=True, **common)
    hd95 = monai.compute_hausdorff_distance(*masks, percentile=95, **common)
    return nsd.item(), hd95.item()


@cache
def _monai_metrics() -> Any:
    warnings.filterwarnings("ignore", "monai.metrics", FutureWarning)  # it warns of its own calls
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it loads mlflow if there is one
    return importlib.import_module("monai.metrics")
