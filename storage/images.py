"""The images of a scan, whatever format they are in: NIfTI, or pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fewscan.storage.catalog import ScanFiles
from fewscan.storage.conventions.convention import PICTURES, ends_with
from fewscan.storage.errors import ScanError
from fewscan.storage.nifti import (
    Grid,
    Volume,
    read_grid,
    read_nifti,
    read_volumes,
    write_nifti,
    write_nifti_like,
)
from fewscan.storage.pictures import picture_affine, picture_shape, read_picture


def read_channels(files: ScanFiles) -> list[Volume]:
    """A volume for each channel; a file that holds several is read once. Raises `ScanError`."""
    if not files.volumes:
        return [_read_one(path) for path in files.channel_files]
    read = {path: _read_all(path) for path in set(files.channel_files)}
    for path, volumes in read.items():
        if len(volumes) <= max(files.volumes):
            raise ScanError(
                f"{len(volumes)} channels in one file",
                where=path,
                expected=f"at least {max(files.volumes) + 1}, along its fourth axis",
                remedy="give a file for each channel, or correct the description of the data set",
            )
    return [read[path][k] for path, k in zip(files.channel_files, files.volumes, strict=True)]


def read_labels(path: Path) -> Volume:
    """A segmentation. Raises `ScanError`."""
    return _read_one(path, is_label=True)


def count_channels(path: Path) -> int:
    """How many channels a file holds: along its fourth axis, or colours. Raises `ScanError`."""
    if _is_picture(path):
        return len(_read_all(path))
    shape = read_grid(path).shape
    return shape[3] if len(shape) > 3 else 1


def grid_of(files: ScanFiles) -> Grid:
    """The grid of a scan, by the header of its first file. Raises `ScanError`."""
    path = files.channel_files[0]
    if _is_picture(path):
        return Grid(picture_shape(path), picture_affine(path), "mm", has_orientation=True)
    grid = read_grid(path)
    return replace(grid, shape=grid.shape[:3]) if files.volumes else grid


def write_like(path: Path, array: np.ndarray, template: Path) -> None:
    """Write `array` as NIfTI on the grid of the file `template`, of any format.

    A fourth axis holds one volume a class. Raises `ScanError`.
    """
    if _is_picture(template):
        write_nifti(path, array, picture_affine(template))
    else:
        write_nifti_like(path, array, template)


def _is_picture(path: Path) -> bool:
    return ends_with(path.name, PICTURES)


def _read_one(path: Path, is_label: bool = False) -> Volume:
    if not _is_picture(path):
        return read_nifti(path)
    colours = _read_all(path, is_label)
    first_XYZ = colours[0].voxels_XYZ
    if not all(np.array_equal(colour.voxels_XYZ, first_XYZ) for colour in colours):
        raise ScanError(
            f"a picture of {len(colours)} colours",
            where=path,
            expected="one value a pixel",
            remedy="save the classes as values 1, 2, …"
            if is_label
            else "name a channel for each colour (in nnU-Net's dataset.json: R, G, B), or convert "
            "it to grey values",
        )
    return colours[0]


def _read_all(path: Path, is_label: bool = False) -> tuple[Volume, ...]:
    if not _is_picture(path):
        return read_volumes(path)
    affine = picture_affine(path)
    colours = read_picture(path, is_label)
    return tuple(
        Volume(it_HWZ, Grid(it_HWZ.shape, affine, "mm", has_orientation=True)) for it_HWZ in colours
    )
