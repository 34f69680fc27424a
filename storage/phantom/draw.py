"""One subject of a phantom: a head drawn, made ill and scanned; nothing is written here.

A subject is a function of seed and number alone: `anatomy` draws its head, `lesions` its tumour and
what merely looks like one, `scanner` the four modalities.

Letters: X, Y, Z the axes of the file; V the voxels of a brain; M the modalities.
"""

from dataclasses import dataclass

import numpy as np

from fewscan.storage.phantom.anatomy import BOX_ZYX, Head, doubled, draw_head
from fewscan.storage.phantom.lesions import Tumour, draw_foci, grow, pushes, spots, vessels
from fewscan.storage.phantom.scanner import MODALITIES, Layer, acquire

SHAPE_XYZ = (240, 240, 155)
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
"""of BraTS: X runs to the patient's left, Y backwards, Z upwards, 1 mm"""
_CORNER_ZYX = (3, 24, 44)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic subject."""

    images_MXYZ: np.ndarray
    """(4, 240, 240, 155) int16: flair, t1, t1ce, t2; exactly 0 outside the brain"""
    labels_XYZ: np.ndarray
    """(240, 240, 155) uint8: 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing rim"""


def make_phantom(index: int, seed: int = 0) -> Phantom:
    """Draw subject `index` of `seed`; it depends on no other subject."""
    rng = np.random.default_rng((seed, index))
    foci = draw_foci(rng)
    head = draw_head(rng, pushes(rng, foci))
    tumour = grow(rng, foci, head, enhancing=rng.uniform() > 0.15)
    brain_ZYX = doubled(head.brain_ZYX, BOX_ZYX) > 0
    voxels_V = np.flatnonzero(brain_ZYX)
    layers = [*healthy_layers(head, voxels_V), *_distractors(rng, head, voxels_V)]
    lesion_layers, labels_V = _lesions(rng, tumour, voxels_V)
    images_MV = acquire(rng, voxels_V, [*layers, *lesion_layers])
    images = np.zeros((len(MODALITIES), *SHAPE_XYZ[::-1]), np.int16)
    for image_ZYX, values_V in zip(images, images_MV, strict=True):
        _in_box(image_ZYX)[brain_ZYX] = values_V
    labels_ZYX = np.zeros(SHAPE_XYZ[::-1], np.uint8)
    _in_box(labels_ZYX)[brain_ZYX] = labels_V
    return Phantom(images.transpose(0, 3, 2, 1), labels_ZYX.T)


def healthy_layers(head: Head, voxels_V: np.ndarray) -> list[Layer]:
    """Grey matter, nuclei and fluid, over white matter."""
    cortex_V = _fine(head.cortex_ZYX, voxels_V)
    return [
        Layer("grey", _cover(head.sulcus_mm + head.ribbon_mm - cortex_V, 1.5)),
        Layer("nuclei", _cover(_fine(head.nuclei_ZYX, voxels_V), 2)),
        Layer("fluid", _cover(head.sulcus_mm - cortex_V, 1)),
        Layer("fluid", _cover(_fine(head.ventricles_ZYX, voxels_V), 1)),
    ]


def _distractors(rng: np.random.Generator, head: Head, voxels_V: np.ndarray) -> list[Layer]:
    """What is bright or dark, and no tumour: what skull stripping left, spots, vessels."""
    cortex_V = _fine(head.cortex_ZYX, voxels_V)
    ventricles_V = _fine(head.ventricles_ZYX, voxels_V)
    deep = voxels_V[(cortex_V > 5) & (ventricles_V < -2)]
    inside = voxels_V[ventricles_V > 1]
    age = rng.uniform()
    halo_mm = 1 + 5 * age * rng.uniform()
    thinning_V = np.maximum(cortex_V - 2, 0) * np.float32(0.08)
    halo_V = np.clip(1 + ventricles_V / np.float32(halo_mm), 0, 1) * (ventricles_V < 0)
    left_mm = np.float32(rng.uniform(1, 4))
    return [
        Layer("dura", _cover(left_mm - _fine(head.brain_ZYX, voxels_V), 1)),
        Layer("spot", halo_V * np.float32(age)),
        Layer("spot", spots(rng, deep, rng.poisson(40 * age), (0.8, 3.0)).ravel()[voxels_V]),
        Layer("calcium", spots(rng, deep, rng.poisson(2), (0.8, 2.5)).ravel()[voxels_V]),
        Layer("vessel", spots(rng, inside, rng.poisson(3), (1.0, 3.0)).ravel()[voxels_V]),
        Layer("vessel", _cover(vessels(rng).ravel()[voxels_V] - thinning_V, 1)),
    ]


def _lesions(
    rng: np.random.Generator, tumour: Tumour, voxels_V: np.ndarray
) -> tuple[list[Layer], np.ndarray]:
    oedema_V, core_V, necrosis_V = (
        _fine(field, voxels_V)
        for field in (tumour.oedema_ZYX, tumour.core_ZYX, tumour.necrosis_ZYX)
    )
    labels_V = np.where(oedema_V > 0, 2, 0).astype(np.uint8)
    labels_V[core_V > 0] = 4
    labels_V[necrosis_V > 0] = 1
    layers = [
        Layer("oedema", _cover(oedema_V, rng.uniform(1, 5))),
        Layer("rim", _cover(core_V, 1.5)),
        Layer("necrosis", _cover(necrosis_V, 1.5)),
    ]
    return layers, labels_V


def _fine(field_ZYX: np.ndarray, voxels_V: np.ndarray) -> np.ndarray:
    values_V: np.ndarray = doubled(field_ZYX, BOX_ZYX).ravel()[voxels_V]
    return values_V


def _cover(depth_V: np.ndarray, width_mm: float) -> np.ndarray:
    """Share of a voxel inside a surface that is `width_mm` blurred."""
    return np.clip(depth_V / np.float32(width_mm) + np.float32(0.5), 0, 1)


def _in_box(scan_ZYX: np.ndarray) -> np.ndarray:
    return scan_ZYX[tuple(slice(c, c + n) for c, n in zip(_CORNER_ZYX, BOX_ZYX, strict=True))]
