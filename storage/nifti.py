"""NIfTI files: bytes on disk ↔ voxels and where they lie in the patient.

The only module that knows nibabel, which reads the header; ISA-L undoes the gzip stream in half of
zlib's time. What a file means (modality, labels) is decided in `scans`.

Lengths are in millimetres here, whatever unit the header has. Rounding that other readers tolerate
is tolerated: as in nifti1_io.c, the reference reader, a quaternion a hair too long is made one of
length 1, and a slope without a finite intercept has the intercept 0.

Letters: X, Y, Z the array's own axes.
"""

import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip, igzip_lib

from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import FewscanError, ScanError

_MOST_INFLATED = 1032  # deflate cannot make more of a byte
_INFLATED_AT_ONCE = 2**17
_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_HEADER = 540
_COPY_AGAIN = "copy or download the file again"
_UNHEARD = logging.Logger("nibabel", logging.CRITICAL + 1)
"""its own words, of what it mends, do not say of which file"""
_UNITS = {1: "metre", 2: "mm", 3: "micron"}
_MILLIMETRES = {"metre": 1000.0, "mm": 1.0, "micron": 0.001}
_LONGEST_QUATERNION = 1.01
"""a longer one is damage, not rounding"""
_FLATTEST = 1e-6
"""volume of a voxel, as a part of that of a box with its edges, below which it has no volume"""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a file lie."""

    shape: tuple[int, ...]
    """three lengths, or more; an image with two axes is one slice: (H, W, 1)"""
    affine: np.ndarray
    """(4, 4) float64, voxel index → millimetres"""
    unit: str
    """of the header's lengths: metre, mm, micron; mm as well if it does not say one"""
    has_orientation: bool
    """whether the header says how the patient lies; else the affine is made of the spacing"""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis."""
        return spacing_of(self.affine)


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional image on its grid."""

    voxels_XYZ: np.ndarray
    """values in the file's own type, native byte order; float64 if the header scales them"""
    grid: Grid

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, voxel index → millimetres."""
        return self.grid.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis."""
        return self.grid.spacing_mm


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance between neighbouring voxels along each axis, in millimetres."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return x, y, z


def read_nifti(path: Path) -> Volume:
    """Read a `.nii` or `.nii.gz` file (NIfTI-1 or 2, one file for header and image).

    Raises `ScanError` if it cannot be read, is damaged, is no NIfTI, or is not three-dimensional.
    """
    with _damage_explained(path):
        data = _gunzipped(path)
        header = _header(data, path)
        return Volume(_scaled(_voxels(data, header, path), header), _grid(header, path))


def read_volumes(path: Path) -> tuple[Volume, ...]:
    """Read the volumes along the fourth axis of a file; it is one if there are three axes.

    Raises `ScanError` as `read_nifti` does.
    """
    with _damage_explained(path):
        data = _gunzipped(path)
        header = _header(data, path)
        raw_XYZN = _scaled(_voxels(data, header, path, axes=(3, 4)), header)
        volumes = np.moveaxis(raw_XYZN, 3, 0) if raw_XYZN.ndim == 4 else [raw_XYZN]
        grid = _grid(header, path)
        grid = replace(grid, shape=grid.shape[:3])
        return tuple(Volume(raw_XYZ, grid) for raw_XYZ in volumes)


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone, in a millisecond. Raises `ScanError`."""
    with _damage_explained(path):
        return _grid(_header_of(path), path)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write `array` as NIfTI-1, gzipped if `path` ends in `.gz`, atomically.

    The bytes depend on nothing but the arguments: the gzip header carries neither name nor time.
    """
    require_nifti_name(path)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    _write(path, image)


def write_nifti_like(path: Path, array: np.ndarray, template: Path) -> None:
    """Write `array` on the grid of the file `template`: its affines with their codes, its units.

    A fourth axis of `array` holds one volume a class. Raises `ScanError`.
    """
    require_nifti_name(path)
    with _damage_explained(template):
        header = _header_of(template)
    assert array.shape[:3] == _shape(header)[:3]
    is_second = isinstance(header, nibabel.Nifti2Header)
    if array.ndim == 3 and header["dim"][0] == 2:
        array = array[:, :, 0]
    spacing = header["pixdim"][1:4].tolist()  # in the template's unit, as its affines are
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_zooms((*spacing, 1.0)[: array.ndim])
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the template's window of brightness
    header["descrip"] = b"fewscan"
    # Without an affine nibabel keeps the header's own two, and their codes.
    _write(path, (nibabel.Nifti2Image if is_second else nibabel.Nifti1Image)(array, None, header))


def require_nifti_name(path: Path) -> None:
    """Raise `ScanError` unless `path` ends like a NIfTI file."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ScanError(
            f"the name {path.name!r}",
            where=path,
            expected=".nii or .nii.gz at its end; or a folder, for many scans",
        )


def _write(path: Path, image: nibabel.Nifti1Image) -> None:
    data = image.to_bytes()
    write_bytes(path, _gzipped(data) if path.suffix == ".gz" else data)


def _header_of(path: Path) -> nibabel.Nifti1Header:
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        start = igzip.IGzipFile(fileobj=file) if zipped else file
        return _header(start.read(_LONGEST_HEADER), path)


def _gzipped(data: bytes) -> bytes:
    # Not ISA-L: the bytes that it writes vary from process to process (intel/isa-l issue 140). Runs
    # alone are looked for: what is not background is noise, where other matches are seldom found.
    stream = zlib.compressobj(1, zlib.DEFLATED, 31, 9, zlib.Z_RLE)
    return stream.compress(data) + stream.flush()


def _gunzipped(path: Path) -> bytes | memoryview:
    data = path.read_bytes()
    return _inflated(data) if data[:2] == _GZIP_MAGIC else data


def _inflated(data: bytes) -> bytes | memoryview:
    """Inflate part by part into memory that numpy asks for in large pages.

    Small pages, asked for one by one, cost a fifth of the time.
    """
    size = int.from_bytes(data[-4:], "little")  # by the end of the file, which may be damaged
    whole, filled = np.empty(min(size, len(data) * _MOST_INFLATED), np.uint8), 0
    stream = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    part = stream.decompress(data, _INFLATED_AT_ONCE)
    while part and filled + len(part) <= len(whole):
        whole[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
        part = b"" if stream.eof else stream.decompress(b"", _INFLATED_AT_ONCE)
    if stream.eof and filled == len(whole) and not (part or stream.unused_data):
        return whole.data
    # For several streams in a file, and to say what is wrong.
    inflated: bytes = igzip.decompress(data)
    return inflated


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Say of which file it is, whatever the system, ISA-L, nibabel or numpy raise about it."""
    try:
        # Numbers too large for their type show in what they become: infinite voxels, no volume.
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (FewscanError, MemoryError):
        raise
    except PermissionError as error:
        raise ScanError(
            f"the file cannot be read: {error.strerror}",
            where=path,
            expected="a file that you may read",
            remedy="ask its owner for permission to read it",
        ) from error
    except Exception as error:
        raise ScanError(
            f"the file cannot be read: {_short(error)}",
            where=path,
            expected="a whole .nii or .nii.gz file",
            remedy=_COPY_AGAIN,
        ) from error


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} …"


def _header(data: bytes | memoryview, path: Path) -> nibabel.Nifti1Header:
    sizes = {nibabel.Nifti1Header: 348, nibabel.Nifti2Header: 540}
    for kind, size in sizes.items():
        if {bytes(data[:4])} & {size.to_bytes(4, "little"), size.to_bytes(4, "big")}:
            try:
                header = kind(bytes(data[:size]), check=False)
                header.check_fix(_UNHEARD)  # raises, or mends what is of no consequence
                _shorten_quaternion(header)
                header.get_data_offset()  # the one number that nibabel does not look at before
            except Exception as error:  # nibabel raises many kinds for a header of rubbish
                raise _no_nifti(f"a broken NIfTI header ({_short(error)})", path) from error
            return header
    raise _no_nifti(f"no NIfTI header in {len(data)} bytes", path)


def _shorten_quaternion(header: nibabel.Nifti1Header) -> None:
    """Make a quaternion that rounding made a hair too long one of length 1, a turn by 180°."""
    if header["qform_code"] == 0:
        return
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = math.sqrt(sum(float(header[name]) ** 2 for name in names))
    if 1 < length <= _LONGEST_QUATERNION:
        for name in names:
            header[name] = float(header[name]) / length


def _slope_and_intercept(header: nibabel.Nifti1Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # the standard's "not scaled"
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _no_nifti(found: str, path: Path) -> ScanError:
    expected = "a NIfTI file with header and image in one (.nii or .nii.gz)"
    return ScanError(found, where=path, expected=expected, remedy=_COPY_AGAIN)


def _scaled(raw: np.ndarray, header: nibabel.Nifti1Header) -> np.ndarray:
    slope, intercept = _slope_and_intercept(header)
    if (slope, intercept) == (1.0, 0.0):
        return raw
    return raw * np.float64(slope) + np.float64(intercept)


def _voxels(
    data: bytes | memoryview,
    header: nibabel.Nifti1Header,
    path: Path,
    axes: tuple[int, ...] = (3,),
) -> np.ndarray:
    dtype, offset = header.get_data_dtype(), header.get_data_offset()
    shape = _shape(header)
    if len(shape) not in axes or min(shape) < 1 or dtype.kind not in "iuf":
        expected = "three dimensions of real numbers"
        raise ScanError(f"shape {shape} of {dtype}", where=path, expected=expected)
    count = math.prod(shape)
    size = offset + count * dtype.itemsize
    if len(data) < size:
        found = f"the file ends after {len(data)} of {size} bytes"
        raise ScanError(found, where=path, expected="all voxels", remedy=_COPY_AGAIN)
    voxels = np.frombuffer(data, dtype, count, offset).reshape(shape, order="F")
    return voxels.astype(dtype.newbyteorder("="), copy=False)


def _shape(header: nibabel.Nifti1Header) -> tuple[int, ...]:
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return (*shape, 1) if len(shape) == 2 else shape


def _grid(header: nibabel.Nifti1Header, path: Path) -> Grid:
    shape, unit = _shape(header), _UNITS.get(int(header["xyzt_units"]) & 7, "mm")
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MILLIMETRES[unit]
    for axis in range(3):  # some write 0 for the thickness of the only slice
        if shape[axis : axis + 1] == (1,) and not affine[:3, axis].any():
            affine[:3, axis] = _across(affine, axis)
    spacing_mm = np.array(spacing_of(affine))
    solid = np.isfinite(affine).all() and (spacing_mm > 0).all()
    if not solid or abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < _FLATTEST:
        found = f"an affine that is not invertible: {affine.tolist()}"
        raise ScanError(found, where=path, expected="millimetres per voxel in the header")
    has_orientation = bool(header["sform_code"] or header["qform_code"])
    return Grid(shape, affine, unit, has_orientation)


def _across(affine: np.ndarray, axis: int) -> np.ndarray:
    """1 mm at right angles to the other two axes."""
    first, second = (affine[:3, k] for k in range(3) if k != axis)
    normal = np.cross(first, second) * (-1 if axis == 1 else 1)
    return normal / max(float(np.linalg.norm(normal)), np.finfo(float).tiny)
