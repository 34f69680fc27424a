"""What is wrong in a phantom's head: its tumour, and what merely looks like one.

A tumour has one or two foci; each grows as a blob of irregular outline until it has its volume.
Oedema follows the white matter and stops at fluid, the core destroys what it meets. Vessels and
spots may be in every head, and are in no label.

Letters: Z, Y, X as in `anatomy`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewscan.storage.phantom.anatomy import (
    BOX_ZYX,
    Head,
    Point,
    Push,
    coarser,
    doubled,
    length,
    smooth_noise,
)

FREE_SHARE = 0.3
"""the least share of a brain's slices that no tumour reaches"""


@dataclass(frozen=True)
class Focus:
    """One place where a tumour grows."""

    centre_mm: Point
    volume_mm3: float
    """of core and oedema together"""
    core_share: float
    """of that volume"""
    crossing_mm: float
    """how far it may reach beyond the midline"""

    @property
    def radius_mm(self) -> float:
        """Of the ball of the same volume."""
        return float((self.volume_mm3 * 3 / (4 * np.pi)) ** (1 / 3))


@dataclass(frozen=True)
class Tumour:
    """Surfaces on the 2 mm grid, in millimetres, positive inside."""

    core_ZYX: np.ndarray
    """enhancing rim and what lies inside it"""
    necrosis_ZYX: np.ndarray
    """the core without its rim"""
    oedema_ZYX: np.ndarray
    """oedema, and possibly core"""


def draw_foci(rng: np.random.Generator) -> tuple[Focus, ...]:
    """Draw one focus of 20 to 180 ml and sometimes a smaller second one near it.

    Log-uniform; our choice, of the order of BraTS.
    """
    volume_mm3 = 1000 * np.exp(rng.uniform(np.log(20), np.log(180)))
    first = _focus(rng, _hemispheric_point(rng), volume_mm3)
    if rng.uniform() > 0.2:
        return (first,)
    while True:
        centre = _hemispheric_point(rng)
        apart = np.subtract(centre, first.centre_mm)
        if abs(apart[0]) < 20 and apart @ apart > (first.radius_mm + 12) ** 2:
            return first, _focus(rng, centre, min(volume_mm3, 20e3) * rng.uniform(0.2, 0.8))


def _focus(rng: np.random.Generator, centre_mm: Point, volume_mm3: float) -> Focus:
    crossing_mm = 25.0 if rng.uniform() < 0.15 else 1.0
    return Focus(centre_mm, volume_mm3, rng.uniform(0.12, 0.7), crossing_mm)


def _hemispheric_point(rng: np.random.Generator) -> Point:
    while True:
        z, y, x = rng.uniform((-15, -65, 14), (42, 65, 52))
        if (z / 57) ** 2 + (y / 84) ** 2 + (x / 66) ** 2 < 0.6:
            return z, y, x * rng.choice((-1, 1))


def pushes(rng: np.random.Generator, foci: Sequence[Focus]) -> list[Push]:
    """How much the head gives way to each focus."""
    return [Push(f.centre_mm, 1.6 * f.radius_mm, rng.uniform(0, 0.3)) for f in foci]


def grow(rng: np.random.Generator, foci: Sequence[Focus], head: Head, enhancing: bool) -> Tumour:
    """Grow `foci` in `head`. Without enhancement, the whole core counts as necrosis."""
    slices = _slices_within_reach(foci[0], head)
    grown = [_grow_one(rng, focus, head, slices) for focus in foci]
    core, oedema = (np.max(fields, axis=0) for fields in zip(*grown, strict=True))
    if not enhancing:
        return Tumour(core, core, oedema)
    rim_mm = rng.uniform(1.5, 4.5)
    rim = rim_mm * (1 + smooth_noise(rng, core.shape, (0.25, 0.4, 0.3)))
    return Tumour(core, core - np.maximum(rim, 0), oedema)


def _slices_within_reach(focus: Focus, head: Head) -> np.ndarray:
    """Depth inside the slab around the focus that leaves `FREE_SHARE` of the brain's slices."""
    here = np.argmin(_distance(focus, head, np.ones(3))) // head.brain_ZYX[0].size
    rows = np.arange(len(head.brain_ZYX))
    occupied = np.count_nonzero((head.brain_ZYX > 0).any(axis=(1, 2)))
    depth = (1 - FREE_SHARE) * occupied - 2 * np.abs(rows - here)
    slab: np.ndarray = depth.astype(np.float32)[:, None, None]
    return slab


def _grow_one(
    rng: np.random.Generator, focus: Focus, head: Head, slices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    side = np.sign(focus.centre_mm[2]) * head.place[2] + np.float32(focus.crossing_mm)
    surface = np.minimum(head.cerebrum_ZYX, head.brain_ZYX) - np.float32(0.5)
    solid = np.minimum(np.minimum(surface, side), np.minimum(slices, -head.ventricles_ZYX))
    moist = np.minimum(solid, head.cortex_ZYX - np.float32(head.sulcus_mm))
    grey = np.clip((head.sulcus_mm + head.ribbon_mm - head.cortex_ZYX) / 2 + 0.5, 0, 1)
    ball = -_distance(focus, head, np.exp(0.2 * rng.standard_normal(3)))
    ragged_mm = 0.2 * focus.radius_mm
    core = ball + _ragged(rng, ball.shape, ragged_mm)
    oedema = ball + _ragged(rng, ball.shape, 1.4 * ragged_mm) - 2.5 * ragged_mm * grey
    return (
        _filled(core, solid, focus.volume_mm3 * focus.core_share),
        _filled(oedema, moist, focus.volume_mm3),
    )


def _distance(focus: Focus, head: Head, stretch: np.ndarray) -> np.ndarray:
    return length(
        *(
            (p - np.float32(c)) * np.float32(s)
            for p, c, s in zip(head.place, focus.centre_mm, stretch, strict=True)
        )
    )


def _ragged(rng: np.random.Generator, shape: Sequence[int], strength_mm: float) -> np.ndarray:
    return np.float32(strength_mm) * smooth_noise(rng, shape, (0.2, 0.5, 0.7, 0.5))


def _filled(growth: np.ndarray, allowed: np.ndarray, volume_mm3: float) -> np.ndarray:
    """The growth, stopped where it is not allowed and when it has its volume."""
    values = growth[allowed > 0]
    count = min(round(volume_mm3 / 8), values.size - 1)
    stopped: np.ndarray = np.minimum(growth - np.partition(values, -count)[-count], allowed)
    return stopped


def vessels(rng: np.random.Generator) -> np.ndarray:
    """Depth inside thin tubes on the scan's grid: where two noises are zero at once."""
    ways = [smooth_noise(rng, coarser(BOX_ZYX), (0, 1, 1)) for _ in range(2)]
    apart = [w / (length(*np.gradient(w, 2.0)) + np.float32(0.02)) for w in ways]
    return np.float32(rng.uniform(0.7, 1.2)) - length(*(doubled(a, BOX_ZYX) for a in apart))


def spots(
    rng: np.random.Generator, places: np.ndarray, count: int, radii_mm: tuple[float, float]
) -> np.ndarray:
    """Cover (0 to 1) of `count` small balls around some of `places` (flat indices into the box)."""
    cover_ZYX = np.zeros(BOX_ZYX, np.float32)
    reach = np.arange(-6, 7, dtype=np.float32)
    offsets = np.meshgrid(reach, reach, reach, indexing="ij")
    for place in rng.choice(places, count) if places.size else ():
        stretch = rng.uniform(0.8, 1.4, 3)
        depth = rng.uniform(*radii_mm) - length(
            *(o * np.float32(s) for o, s in zip(offsets, stretch, strict=True))
        )
        corner = np.subtract(np.unravel_index(place, BOX_ZYX), 6)
        low = np.maximum(-corner, 0)
        ball = np.clip(depth + 0.5, 0, 1)[tuple(slice(n, None) for n in low)]
        window = tuple(slice(c, c + n) for c, n in zip(corner + low, ball.shape, strict=True))
        region = cover_ZYX[window]
        np.maximum(region, ball[tuple(slice(n) for n in region.shape)], out=region)
    return cover_ZYX
