"""Phantoms as an nnU-Net raw data set that BraTS is unlike, to try the whole study on such data.

The same heads as thick coronal slabs: the slices run along the second axis, in-plane voxels are not
square, nor is the slice. Two channels, of which the second has its background at −1024, as CT has;
two classes.

Letters: M the modalities flair, t1, t1ce, t2; X, Y, Z the axes of a phantom.
"""

from pathlib import Path

import numpy as np

from fewscan.storage.atomic import write_json
from fewscan.storage.conventions.nnunet import DATASET, IMAGES, LABELS
from fewscan.storage.nifti import write_nifti
from fewscan.storage.phantom.draw import AFFINE, Phantom

RECORD = {"form": "nnunet"}
"""what a folder's record says of its form"""
CHANNELS = ("FLAIR", "T1ce")
CLASSES = ("oedema", "core")
SHAPE_XYZ = (70, 48, 152)
SPACING_MM = (2, 4, 1)
BACKGROUND = (0, -1024)
_CORNER_XYZ = (52, 24, 3)
"""of the box in the phantom, which holds every brain"""
_MODALITIES = (0, 2)
_CLASS_OF = np.array([0, 2, 1, 0, 2], np.uint8)
"""by the phantom's label: necrosis and rim make the core"""


def case_files(out: Path, index: int) -> list[Path]:
    """The files of one case: the channels, then the labels."""
    case = f"phantom_{index:05d}"
    images = [out / IMAGES / f"{case}_{k:04d}.nii.gz" for k in range(len(CHANNELS))]
    return [*images, out / LABELS / f"{case}.nii.gz"]


def write_case(out: Path, index: int, phantom: Phantom) -> None:
    """Write one phantom as a case of the data set."""
    *channel_files, label_file = case_files(out, index)
    for folder in (out / IMAGES, out / LABELS):
        folder.mkdir(exist_ok=True)
    for path, modality, shift in zip(channel_files, _MODALITIES, BACKGROUND, strict=True):
        slabs_XYZ = _blocks(phantom.images_MXYZ[modality]).mean(axis=(1, 3, 5)).round() + shift
        write_nifti(path, slabs_XYZ.astype(np.int16), slab_affine(AFFINE))
    middle_XYZ = _blocks(phantom.labels_XYZ)[:, SPACING_MM[0] // 2, :, SPACING_MM[1] // 2, :, 0]
    write_nifti(label_file, _CLASS_OF[middle_XYZ], slab_affine(AFFINE))


def describe(out: Path) -> None:
    """Write the `dataset.json` of the cases that are in the folder."""
    cases = len(list((out / LABELS).glob("*.nii.gz")))
    description = {
        "channel_names": {str(k): name for k, name in enumerate(CHANNELS)},
        "labels": {"background": 0, **{name: k for k, name in enumerate(CLASSES, start=1)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(out / DATASET, description)


def slab_affine(affine: np.ndarray) -> np.ndarray:
    """Of the slabs: a block's centre is where its voxels' centres are in the mean."""
    to_phantom = np.diag([*map(float, SPACING_MM), 1.0])
    to_phantom[:3, 3] = np.array(_CORNER_XYZ) + (np.array(SPACING_MM) - 1) / 2
    return affine @ to_phantom


def _blocks(volume_XYZ: np.ndarray) -> np.ndarray:
    """The box as (blocks, voxels of a block) for each axis."""
    box = tuple(
        slice(corner, corner + count * size)
        for corner, count, size in zip(_CORNER_XYZ, SHAPE_XYZ, SPACING_MM, strict=True)
    )
    (x, y, z), (i, j, k) = SHAPE_XYZ, SPACING_MM
    return volume_XYZ[box].reshape(x, i, y, j, z, k)
