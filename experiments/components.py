"""Connected components of 3D masks, and the box that holds them.

scipy finds them. It is loaded where it is used: a machine without it can do everything else.

Letters in names: Z slices of a scan, H and W rows and columns of a slice.
"""

import importlib.util

import numpy as np

from fewscan.experiments.spec import Evaluation
from fewscan.storage.errors import RunError

NEIGHBOURS = np.ones((3, 3, 3), bool)
"""Voxels are connected to the 26 around them."""


def require_components(evaluation: Evaluation) -> None:
    """Raise `RunError` if the evaluation asks for components and scipy is not here.

    For the beginning of a run, before hours are spent. Nothing is loaded.
    """
    wanted = evaluation.lesion_wise or evaluation.postprocesses or evaluation.removes_specks
    if wanted and importlib.util.find_spec("scipy") is None:
        raise RunError(
            "scipy is not installed here, and the evaluation asks for connected components",
            where="evaluation",
            expected="scipy, which finds them",
            remedy="pip install scipy, or leave out evaluation.lesion_wise, postprocess and "
            "min_component_mm3",
        )


def components_of(mask_ZHW: np.ndarray) -> tuple[np.ndarray, int]:
    """int32 of the mask's shape, 1, 2, … in its components and 0 elsewhere; and how many."""
    from scipy import ndimage

    component_ZHW, components = ndimage.label(mask_ZHW, NEIGHBOURS)
    return component_ZHW, int(components)


def box_of(mask_ZHW: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box with all of the mask in it; None if it is empty."""
    box = []
    for others in ((1, 2), (0, 2), (0, 1)):
        there = np.flatnonzero(mask_ZHW.any(axis=others))
        if not there.size:
            return None
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    depth, height, width = box
    return depth, height, width
