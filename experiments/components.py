"""Connected components of 3D masks, and the box that holds them.

Letters in names: Z slices of a scan, H and W rows and columns of a slice.
"""

import numpy as np

NEIGHBOURS = np.ones((3, 3, 3), bool)
"""Voxels are connected to the 26 around them."""


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
