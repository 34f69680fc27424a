"""An exact 5×5 median of many images at once, with elementwise minima and maxima alone.

The values of a window are never gathered. A tensor holds one value for every pixel; shifted against
itself it meets the neighbours. Rows merge into sorted runs of 2, 4 and 5, columns of them into runs
of 10 and 15, and a run belongs to all windows that cover it, so it is computed once. The steps are
found once, then replayed on a few buffers that stay in the cache. What is zeros in all images, as
is what surrounds a head, is left out. Works on any device.

Letters in names: N images, H and W rows and columns. Images are padded, and laid one after the
other in one row, so that a shift by rows and columns is a shift along that row.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

WINDOW = 5
RADIUS = WINDOW // 2
_MEDIAN_RANK = (WINDOW * WINDOW + 1) // 2

# Pixels worked on at a time: enough to fill a GPU; on a CPU few enough for its cache, and fewer
# than those for which torch wakes other threads (2**15), which here wait for longer than they work.
_PIXELS_AT_ONCE = {"cpu": 2**15 - 1}
_PIXELS_AT_ONCE_ON_ACCELERATOR = 2**21


class _Value(NamedTuple):
    """What a step computed (0: the image), read `rows` below and `columns` right of each pixel."""

    step: int
    rows: int = 0
    columns: int = 0


_Run = list[_Value]  # sorted: at every pixel the first is the least
_Step = tuple[Callable[..., torch.Tensor], _Value, _Value]


@torch.no_grad()
def median_filter(images_NHW: torch.Tensor) -> torch.Tensor:
    """Median of the 5×5 window around each pixel, reflected at the borders; the same shape.

    Exactly equal to `median_filter_plain`. H and W must be at least 3. A window with a NaN gives
    NaN.
    """
    medians_NHW = torch.zeros_like(images_NHW)
    rows, columns = _near_nonzero(images_NHW)
    inner_NHW = medians_NHW[:, rows, columns]
    if inner_NHW.numel():
        padded_NHW = _reflected(images_NHW)[:, rows.start :, columns.start :]
        height, width = (length + 2 * RADIUS for length in inner_NHW.shape[1:])
        _filter_into(inner_NHW, padded_NHW[:, :height, :width])
    return medians_NHW


def _filter_into(medians_NHW: torch.Tensor, padded_NHW: torch.Tensor) -> None:
    images, height, width = medians_NHW.shape
    at_once = _PIXELS_AT_ONCE.get(padded_NHW.device.type, _PIXELS_AT_ONCE_ON_ACCELERATOR)
    at_once = max(1, min(images, at_once // padded_NHW[0].numel()))
    first_NHW, program, last_NHW = _workspace(padded_NHW, (at_once, *padded_NHW.shape[1:]))
    for start in range(0, images, at_once):
        part_NHW = padded_NHW[start : start + at_once]
        first_NHW[: len(part_NHW)] = part_NHW
        for operation, a, b, out in program:
            operation(a, b, out=out)
        medians_NHW[start : start + at_once] = last_NHW[: len(part_NHW), :height, :width]


def median_filter_plain(images_NHW: torch.Tensor) -> torch.Tensor:
    """The same by gathering the 25 values of every window: slow, and plainly right."""
    windows_NHW55 = _reflected(images_NHW).unfold(1, WINDOW, 1).unfold(2, WINDOW, 1)
    return windows_NHW55.flatten(3).median(dim=3).values


def _near_nonzero(images_NHW: torch.Tensor) -> tuple[slice, slice]:
    """Rows and columns outside which every window of every image is zeros."""
    seen_HW = (images_NHW != 0).any(dim=0)
    return _around(seen_HW.any(dim=1)), _around(seen_HW.any(dim=0))


def _around(seen: torch.Tensor) -> slice:
    """From the first to the last, and as many as a window reaches beyond them."""
    places = seen.nonzero()[:, 0].tolist()
    return slice(max(0, places[0] - RADIUS), places[-1] + 1 + RADIUS) if places else slice(0, 0)


def _reflected(images_NHW: torch.Tensor) -> torch.Tensor:
    return F.pad(images_NHW, (RADIUS,) * 4, mode="reflect")


def _workspace(
    images_NHW: torch.Tensor, padded_shape: tuple[int, int, int]
) -> tuple[torch.Tensor, list[tuple], torch.Tensor]:
    """Where padded images go, the steps as operations on buffers, and where the medians come."""
    steps, buffers = _median_steps(), _buffer_of_value()
    length, stride = math.prod(padded_shape), padded_shape[2]
    # A shift reaches beyond the last image; what is read there enters no pixel that is kept.
    beyond = (WINDOW - 1) * (stride + 1)
    workspace = images_NHW.new_empty(max(buffers) + 1, length + beyond)

    def seen(value: _Value) -> torch.Tensor:
        return workspace[buffers[value.step]].narrow(0, value.rows * stride + value.columns, length)

    program = [(do, seen(a), seen(b), seen(_Value(n))) for n, (do, a, b) in enumerate(steps, 1)]
    image, medians = seen(_Value(0)), seen(_Value(len(steps)))
    return image.view(padded_shape), program, medians.view(padded_shape)


class _Network:
    """The steps from an image to its medians, as symbols."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []

    def least(self, a: _Value, b: _Value) -> _Value:
        self.steps.append((torch.minimum, a, b))
        return _Value(len(self.steps))

    def greatest(self, a: _Value, b: _Value) -> _Value:
        self.steps.append((torch.maximum, a, b))
        return _Value(len(self.steps))

    def merged(self, a: _Run, b: _Run) -> _Run:
        """Two runs as one, by Batcher's odd-even merge (Knuth, TAOCP 3, 5.3.4)."""
        if not a or not b:
            return a or b
        if len(a) == len(b) == 1:
            return [self.least(a[0], b[0]), self.greatest(a[0], b[0])]
        odd, even = self.merged(a[0::2], b[0::2]), self.merged(a[1::2], b[1::2])
        merged = odd[:1]
        for left, right in zip(even, odd[1:], strict=False):
            merged += [self.least(left, right), self.greatest(left, right)]
        return merged + even[len(odd) - 1 :] + odd[len(even) + 1 :]

    def ranked(self, long: _Run, short: _Run, rank: int) -> _Value:
        """The rank-th least of two runs; `long` has at least rank values, `short` fewer.

        It is the least, over the ways to write rank = i + j, of max(i-th of long, j-th of short).
        """
        result = long[rank - 1]
        for j, jth in enumerate(short, start=1):
            result = self.least(result, self.greatest(long[rank - j - 1], jth))
        return result


def _shifted(run: _Run, rows: int, columns: int) -> _Run:
    return [_Value(step, r + rows, c + columns) for step, r, c in run]


@cache
def _median_steps() -> list[_Step]:
    """The last step computes the median of the window whose top left pixel it stands at."""
    network, image = _Network(), [_Value(0)]
    rows_2 = network.merged(image, _shifted(image, 1, 0))
    rows_4 = network.merged(rows_2, _shifted(rows_2, 2, 0))
    column = network.merged(rows_4, _shifted(image, 4, 0))
    columns_2 = network.merged(column, _shifted(column, 0, 1))
    columns_3 = network.merged(columns_2, _shifted(column, 0, 2))
    network.ranked(columns_3, _shifted(columns_2, 0, 3), _MEDIAN_RANK)
    return network.steps


@cache
def _buffer_of_value() -> list[int]:
    """Which buffer holds the image and each step's value; after a last use it serves again."""
    steps = _median_steps()
    last_use = {value.step: n for n, (_, *both) in enumerate(steps, start=1) for value in both}
    buffers, free = [0], list[int]()
    for n, (_, a, b) in enumerate(steps, start=1):
        buffers.append(free.pop() if free else max(buffers) + 1)
        free += [buffers[step] for step in {a.step, b.step} if last_use[step] == n]
    return buffers
