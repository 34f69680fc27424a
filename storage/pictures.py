"""Pictures: PNG, TIFF and BMP files ↔ voxels, for data that is 2D or a stack of pages.

The only module that knows Pillow. A picture is one slice, a file of several pages has one a page.
Nothing in it says how large a pixel is: it is 1 mm, unless a `.json` beside it has `spacing`, as
nnU-Net writes it: page, row and column distance.

Letters: H, W rows and columns; Z pages.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.storage.errors import ScanError

_GREY = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_picture(path: Path, is_label: bool = False) -> tuple[np.ndarray, ...]:
    """One (H, W, Z) array a colour: one if the picture is grey, three if it is not.

    Of a picture with a palette a label is its index. Raises `ScanError` if it cannot be read, or
    has colours of another kind.
    """
    from PIL import Image, ImageSequence

    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            pages = [_colours(page, is_label) for page in ImageSequence.Iterator(picture)]
            mode = picture.mode
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ScanError(
            f"the picture cannot be read: {str(error)[:200]}",
            where=path,
            expected="a whole PNG, TIFF or BMP file",
            remedy="copy or download the file again",
        ) from error
    shapes = {page.shape if page is not None else None for page in pages}
    if len(shapes) != 1 or None in shapes:
        raise ScanError(
            f"a picture of kind {mode}" if None in shapes else f"pages of shapes {shapes}"[:200],
            where=path,
            expected="a grey or an RGB picture; all pages alike",
            remedy="convert it to grey values, or to RGB without transparency",
        )
    stack_ZHWC = np.stack([page for page in pages if page is not None])
    return tuple(np.moveaxis(stack_ZHWC[..., c], 0, 2) for c in range(stack_ZHWC.shape[3]))


def _colours(page: Any, is_label: bool) -> np.ndarray | None:
    """(H, W, 1) or (H, W, 3); None if its colours are of another kind."""
    if page.mode in ("LA", "RGBA") and page.getchannel("A").getextrema() == (255, 255):
        page = page.convert(page.mode[:-1])
    if page.mode == "P" and not is_label:
        page = page.convert("RGB")
    if page.mode in _GREY:
        values_HW = np.asarray(page)
        return (values_HW.astype(np.uint8) if values_HW.dtype == bool else values_HW)[..., None]
    if page.mode != "RGB":
        return None
    return np.asarray(page)


def picture_shape(path: Path) -> tuple[int, int, int]:
    """(H, W, Z), without reading the pixels. Raises `ScanError`."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            return picture.height, picture.width, getattr(picture, "n_frames", 1)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ScanError(f"the picture cannot be read: {str(error)[:200]}", where=path) from error


def picture_affine(path: Path) -> np.ndarray:
    """(4, 4): pixel → millimetres; by the `.json` beside it. Raises `ScanError`."""
    case = re.sub(r"_\d{4}$", "", path.stem)
    beside = [path.with_name(f"{stem}.json") for stem in (path.stem, case)]
    file = next((file for file in beside if file.is_file()), None)
    spacing_ZHW = [1.0, 1.0, 1.0]
    if file is not None:
        try:
            given = [float(length) for length in json.loads(file.read_bytes())["spacing"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            given = []
        spacing_ZHW = [1.0] * (3 - len(given)) + given
        if not 2 <= len(given) <= 3 or not all(0 < length < float("inf") for length in given):
            expected = '{"spacing": [page, row, column distance in mm]}'
            raise ScanError("no spacing in the file", where=file, expected=expected)
    z, h, w = spacing_ZHW
    return np.diag([h, w, z, 1.0])
