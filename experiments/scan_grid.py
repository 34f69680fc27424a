"""What networks say of slices, back on the scan's own grid: for new scans, and for their scores.

Preprocessing is undone by interpolating probabilities, bilinearly as the images were, and choosing
afterwards.

Letters in names: N slices, K maps, H and W rows and columns of a slice.
"""

import torch.nn.functional as F
from torch import Tensor

from fewscan.experiments.predictor import Predictor
from fewscan.storage.geometry import Frame


def spacing_on_the_scan(
    scan_mm: tuple[float, float, float], frame: Frame
) -> tuple[float, float, float]:
    """Between the slices, rows and columns of the scan itself, from that between its voxels."""
    rows_mm, columns_mm = (mm for axis, mm in enumerate(scan_mm) if axis != frame.axis)
    return scan_mm[frame.axis], rows_mm, columns_mm


def on_the_scan(maps_NKHW: Tensor, frame: Frame) -> Tensor:
    """Cut out what the slice fills, and bring it to the size that it has in the scan."""
    inner_NKHW = maps_NKHW[:, :, *frame.window]
    if frame.inner_HW == frame.shape_HW:
        return inner_NKHW
    return F.interpolate(inner_NKHW, frame.shape_HW, mode="bilinear", align_corners=False)


def labelled_on_the_scan(
    predictor: Predictor, maps_NKHW: Tensor, frame: Frame, threshold: float | None
) -> tuple[Tensor, Tensor | None]:
    """Maps at the scan's own resolution, and the `Predictor.labels` that they give there."""
    back_NKHW = on_the_scan(maps_NKHW, frame)
    return back_NKHW, predictor.labels(back_NKHW, threshold)
