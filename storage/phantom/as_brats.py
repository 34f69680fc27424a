"""Phantoms as BraTS 2021 has its scans: `BraTS2021_00000/BraTS2021_00000_flair.nii.gz` ….

Letters: M the modalities flair, t1, t1ce, t2; X, Y, Z the axes of a phantom.
"""

import shutil
from pathlib import Path

from fewscan.storage.atomic import sync_folder
from fewscan.storage.nifti import write_nifti
from fewscan.storage.phantom.draw import AFFINE, Phantom
from fewscan.storage.phantom.scanner import MODALITIES

RECORD: dict[str, str] = {}
"""what a folder's record says of its form"""


def case_files(out: Path, index: int) -> list[Path]:
    """The files of one subject: the modalities, then the labels."""
    folder = out / f"BraTS2021_{index:05d}"
    return [folder / f"{folder.name}_{kind}.nii.gz" for kind in (*MODALITIES, "seg")]


def write_case(out: Path, index: int, phantom: Phantom) -> None:
    """Write one subject; its folder is there whole or not at all."""
    files = case_files(out, index)
    folder = files[0].parent
    unfinished = out / f".{folder.name}.partial"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for file, volume_XYZ in zip(files, [*phantom.images_MXYZ, phantom.labels_XYZ], strict=True):
            write_nifti(unfinished / file.name, volume_XYZ, AFFINE)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        sync_folder(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def describe(out: Path) -> None:
    """BraTS has no description of a folder."""
