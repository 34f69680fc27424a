"""Synthetic scans in the shape of BraTS 2021, or of another data set, for trying without data.

A subject is a function of seed and number alone: `anatomy` draws its head, `lesions` its tumour and
what merely looks like one, `scanner` the four modalities; here it becomes files.

Letters: X, Y, Z the axes of the file; V the voxels of a brain; M the modalities.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewscan.storage.anatomy import BOX_ZYX, Head, doubled, draw_head
from fewscan.storage.atomic import sync_folder, write_json
from fewscan.storage.errors import ScanError, disk_full_explained
from fewscan.storage.lesions import Tumour, draw_foci, grow, pushes, spots, vessels
from fewscan.storage.nifti import write_nifti
from fewscan.storage.nnunet import LABELS
from fewscan.storage.phantom_nnunet import case_files, describe, write_case
from fewscan.storage.scanner import MODALITIES, Layer, acquire
from fewscan.storage.workers import in_processes

SHAPE_XYZ = (240, 240, 155)
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
"""of BraTS: X runs to the patient's left, Y backwards, Z upwards, 1 mm"""
GENERATOR = 1
"""raise it when the same seed no longer gives the same scans"""
_CORNER_ZYX = (3, 24, 44)
_RECORD = "phantom.json"
Form = Literal["brats", "nnunet"]
FORMS: dict[Form, dict[str, str]] = {"brats": {}, "nnunet": {"form": "nnunet"}}
"""what a folder's record says of its form"""


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


def write_phantoms(
    out: Path,
    subjects: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    form: Form = "brats",
) -> None:
    """Write subjects 0 to `subjects` − 1 as `out/BraTS2021_00000/BraTS2021_00000_flair.nii.gz` ….

    Complete subjects are left alone, so a killed run goes on. `workers` are processes, by default
    one a core; `progress` is told how many subjects are there, at first and after each. The form
    "nnunet" is the raw data set of `phantom_nnunet`.

    Raises `ScanError` if `out` holds anything but phantoms of this seed and form, `DiskFullError`
    if there is no room.
    """
    if subjects < 1 or seed < 0:
        found = f"{subjects} subjects of seed {seed}"
        raise ScanError(found, expected="at least one subject and a seed of 0 or more")
    _claim(out, {"generator": GENERATOR, "seed": seed} | FORMS[form])
    files = partial(_brats_files if form == "brats" else case_files, out)
    missing = [k for k in range(subjects) if not all(path.is_file() for path in files(k))]
    report = progress or (lambda complete: None)
    report(subjects - len(missing))
    write = partial(_write_subject if form == "brats" else _write_case, out, seed)
    written = in_processes(write, missing, workers or len(os.sched_getaffinity(0)))
    for complete, _ in enumerate(written, start=subjects - len(missing) + 1):
        report(complete)
    if form == "nnunet":
        describe(out, len(list((out / LABELS).glob("*.nii.gz"))))


def subject_id(index: int) -> str:
    """The name of subject `index`, as BraTS 2021 would have it."""
    return f"BraTS2021_{index:05d}"


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Make `out` the folder of this seed and form, or refuse it."""
    path = out / _RECORD
    if not out.exists() or (out.is_dir() and not any(out.glob("[!.]*"))):
        with disk_full_explained(out):
            out.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        return
    found = _record_in(out)
    if found != record:
        raise ScanError(
            f"the folder holds {'other things' if found is None else found}",
            where=out,
            expected=f"nothing, or phantoms of {record}",
            remedy="choose another folder, or delete this one",
        )


def _record_in(out: Path) -> Any:
    try:
        return json.loads((out / _RECORD).read_bytes())
    except (OSError, ValueError):
        return None


def _write_subject(out: Path, seed: int, index: int) -> None:
    folder = out / subject_id(index)
    unfinished = out / f".{folder.name}.partial"
    phantom = make_phantom(index, seed)
    volumes = [*phantom.images_MXYZ, phantom.labels_XYZ]
    with disk_full_explained(folder):
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for name, volume_XYZ in zip(_file_names(folder), volumes, strict=True):
                write_nifti(unfinished / name, volume_XYZ, AFFINE)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
            sync_folder(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _write_case(out: Path, seed: int, index: int) -> None:
    phantom = make_phantom(index, seed)
    with disk_full_explained(out):
        write_case(out, index, phantom.images_MXYZ, phantom.labels_XYZ, AFFINE)


def _file_names(folder: Path) -> list[str]:
    return [f"{folder.name}_{kind}.nii.gz" for kind in (*MODALITIES, "seg")]


def _brats_files(out: Path, index: int) -> list[Path]:
    folder = out / subject_id(index)
    return [folder / name for name in _file_names(folder)]


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
    """What is bright or dark, and no tumour."""
    cortex_V = _fine(head.cortex_ZYX, voxels_V)
    ventricles_V = _fine(head.ventricles_ZYX, voxels_V)
    deep = voxels_V[(cortex_V > 5) & (ventricles_V < -2)]
    inside = voxels_V[ventricles_V > 1]
    age = rng.uniform()
    halo_mm = 1 + 5 * age * rng.uniform()
    thinning_V = np.maximum(cortex_V - 2, 0) * np.float32(0.08)
    halo_V = np.clip(1 + ventricles_V / np.float32(halo_mm), 0, 1) * (ventricles_V < 0)
    return [
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
    return doubled(field_ZYX, BOX_ZYX).ravel()[voxels_V]


def _cover(depth_V: np.ndarray, width_mm: float) -> np.ndarray:
    """Share of a voxel inside a surface that is `width_mm` blurred."""
    return np.clip(depth_V / np.float32(width_mm) + np.float32(0.5), 0, 1)


def _in_box(scan_ZYX: np.ndarray) -> np.ndarray:
    return scan_ZYX[tuple(slice(c, c + n) for c, n in zip(_CORNER_ZYX, BOX_ZYX, strict=True))]
