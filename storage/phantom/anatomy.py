"""The anatomy of a phantom: a head of its own for every subject, drawn from a few smooth surfaces.

A surface is the zero level of a field in millimetres, positive inside, kept on a 2 mm grid;
`doubled` brings it to the 1 mm grid of the scan, still smooth, at little cost. Fields are made of
sums, products and square roots alone, so that every machine draws the same head.

Letters: Z upwards, Y backwards, X to the patient's left: the axes of a BraTS file in reverse order.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOX_ZYX = (152, 192, 152)
"""the part of the scan, in 1 mm voxels, that holds every brain"""
CENTRE_ZYX = (83, 96, 76)
"""the voxel of the box that is the origin of the head's coordinates"""

Point = tuple[float, float, float]
"""Z, Y, X in millimetres from the origin of the head"""
Place = tuple[np.ndarray, np.ndarray, np.ndarray]
"""the Z, Y and X coordinates, in millimetres, of every point of a grid"""


@dataclass(frozen=True)
class Push:
    """Tissue displaced by something that grew."""

    centre_mm: Point
    radius_mm: float
    """how far the displacement reaches"""
    strength: float
    """share of the way that tissue near the centre was pushed outwards, 0 to 0.5"""


@dataclass(frozen=True)
class Head:
    """Surfaces on the 2 mm grid, in millimetres, positive inside."""

    place: Place
    """each point's coordinates in the undeformed head"""
    brain_ZYX: np.ndarray
    """depth below the surface of the whole brain"""
    cerebrum_ZYX: np.ndarray
    """depth below the surface of the cerebrum, temporal lobes included"""
    cortex_ZYX: np.ndarray
    """distance to the nearest fluid outside: surface, fold or fissure"""
    ventricles_ZYX: np.ndarray
    nuclei_ZYX: np.ndarray
    """thalamus, putamen and caudate of both sides"""
    ribbon_mm: float
    """thickness of the cortex"""
    sulcus_mm: float
    """half the width of the fluid in a fold"""


def coarser(shape: Sequence[int]) -> tuple[int, ...]:
    """The grid of twice the step that `doubled` needs to fill `shape`."""
    return tuple((n + 1) // 2 + 1 for n in shape)


def doubled(field_ZYX: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Halve the grid's step: quadratic B-spline subdivision (Chaikin, 1974), cut to `shape`.

    Point c of the coarse grid lies at 2c − ½ of the fine one.
    """
    for axis in (2, 1, 0):
        field = np.moveaxis(field_ZYX, axis, 0)
        near, far = field * np.float32(0.75), field * np.float32(0.25)
        size = [*field_ZYX.shape]
        size[axis] = 2 * (len(field) - 1)
        field_ZYX = np.empty(size, np.float32)
        fine = np.moveaxis(field_ZYX, axis, 0)
        np.add(near[:-1], far[1:], out=fine[0::2])
        np.add(far[:-1], near[1:], out=fine[1::2])
        field_ZYX = np.moveaxis(fine[: shape[axis]], 0, axis)
    return field_ZYX


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], stds: Sequence[float]
) -> np.ndarray:
    """Noise of several scales: `stds[j]` is the strength of the one with a grid of 2ʲ⁺¹ steps."""
    coarse = coarser(shape)
    noise = smooth_noise(rng, coarse, stds[1:]) if len(stds) > 1 else np.zeros(coarse, np.float32)
    if stds[0]:
        # Subdivision leaves 0.41 of white noise's standard deviation.
        noise += rng.standard_normal(coarse, np.float32) * np.float32(stds[0] / 0.41)
    return doubled(noise, shape)


def draw_head(rng: np.random.Generator, pushes: Sequence[Push] = ()) -> Head:
    """Draw a head whose tissue gave way to `pushes`."""
    place = _deformed(rng, pushes)
    z, y, x = place
    side = np.abs(x)
    atrophy = rng.uniform()
    cerebrum = ellipsoid(place, (0, 0, 0), (rng.uniform(55, 60), 84, 66))
    flat = ellipsoid(place, (-2, 0, 0), (rng.uniform(30, 36), 84, 66))
    cerebrum = np.where(z > -2, cerebrum, flat)
    temporal = ellipsoid((z, y, side), (-25, -12, 40), (22, 42, 23))
    cerebellum = ellipsoid((z, y, side), (-45, 48, 22), (24, 29, 32))
    stem = tube(place, [(-15, 8, 0), (-45, 20, 0), (-80, 34, 0)], 12)
    upper = np.maximum(cerebrum, temporal)
    brain = np.maximum(upper, np.maximum(cerebellum, stem))
    fluid = _folds(rng, place, upper)
    leaves = _leaves(rng, place, cerebellum)
    cortex = np.minimum(upper, fluid)
    cortex = np.maximum(cortex, np.minimum(cerebellum, leaves))
    cortex = np.maximum(cortex, stem + 2)
    return Head(
        place=place,
        brain_ZYX=brain,
        cerebrum_ZYX=upper,
        cortex_ZYX=cortex,
        ventricles_ZYX=_ventricles(rng, place, 0.65 + 0.75 * atrophy),
        nuclei_ZYX=_nuclei(rng, place),
        ribbon_mm=rng.uniform(2.4, 3.4),
        sulcus_mm=0.5 + 0.8 * atrophy,
    )


def ellipsoid(
    place: Place, centre_mm: Point, axes_mm: tuple[np.ndarray | float, ...]
) -> np.ndarray:
    """Depth inside an ellipsoid, true to first order near its surface (Taubin, 1991)."""
    scaled = [
        (p - np.float32(c)) / np.float32(a)
        for p, c, a in zip(place, centre_mm, axes_mm, strict=True)
    ]
    radius = length(*scaled)
    slope = length(*(p / np.float32(a) for p, a in zip(scaled, axes_mm, strict=True)))
    depth: np.ndarray = radius * (1 - radius) / (slope + np.float32(1e-6))
    return depth


def tube(place: Place, path_mm: Sequence[Point], radius_mm: np.ndarray | float) -> np.ndarray:
    """Depth inside the tube around the straight pieces of `path_mm`."""
    nearest = np.full(place[0].shape, np.inf, np.float32)
    for start, end in itertools.pairwise(path_mm):
        step = [e - s for s, e in zip(start, end, strict=True)]
        from_start = [p - np.float32(s) for p, s in zip(place, start, strict=True)]
        along = sum(f * np.float32(s) for f, s in zip(from_start, step, strict=True))
        share = np.clip(along / np.float32(sum(s * s for s in step)), 0, 1)
        apart = (f - share * np.float32(s) for f, s in zip(from_start, step, strict=True))
        nearest = np.minimum(nearest, length(*apart))
    return radius_mm - nearest


def length(*components: np.ndarray) -> np.ndarray:
    """Euclidean length of a field of vectors."""
    norm: np.ndarray = np.sqrt(sum(c * c for c in components))
    return norm


def _deformed(rng: np.random.Generator, pushes: Sequence[Push]) -> Place:
    """Coordinates in the undeformed head: size, tilt and warp of this head, then the pushes."""
    shape = coarser(BOX_ZYX)
    straight = np.meshgrid(
        *(
            2 * np.arange(n, dtype=np.float32) - np.float32(0.5 + c)
            for n, c in zip(shape, CENTRE_ZYX, strict=True)
        ),
        indexing="ij",
    )
    matrix = np.eye(3) + 0.03 * rng.standard_normal((3, 3))
    place = [
        sum(np.float32(m) * s for m, s in zip(row, straight, strict=True))
        + smooth_noise(rng, shape, (0, 0.4, 0.6, 1.2, 2.0))
        for row in matrix
    ]
    for push in pushes:
        away = [p - np.float32(c) for p, c in zip(place, push.centre_mm, strict=True)]
        squared = sum(a * a for a in away) / np.float32(push.radius_mm**2)
        kept = 1 - np.float32(push.strength) / (1 + squared) ** 2
        place = [np.float32(c) + a * kept for c, a in zip(push.centre_mm, away, strict=True)]
    z, y, x = place
    return z, y, x


def _folds(rng: np.random.Generator, place: Place, depth: np.ndarray) -> np.ndarray:
    """Distance to the nearest sulcus or fissure: sheets that run inwards from the surface."""
    z, y, x = place
    lobes = _sheets(rng, place)
    reach = 13 + smooth_noise(rng, depth.shape, (0, 0, 4))
    sulci = length(lobes, np.maximum(depth - reach, 0))
    midline = length(x, np.maximum(depth - np.clip(20 + 1.5 * z, 12, 30), 0))
    level = z + 8 - np.float32(0.3) * (y + 10)
    beyond = np.maximum(np.maximum(np.abs(y + 5) - 38, 34 - np.abs(x)), 0)
    lateral = length(level, np.maximum(depth - 25, 0), beyond)
    distance: np.ndarray = np.minimum(np.minimum(sulci, lateral), midline)
    return distance


def _sheets(rng: np.random.Generator, place: Place) -> np.ndarray:
    """Distance to the zero level of a noise that does not change along the way to the centre."""
    from scipy.ndimage import map_coordinates

    step_mm = 2.0
    lattice = smooth_noise(rng, (68, 92, 74), (0, 1))
    radius = length(*(p / np.float32(a) for p, a in zip(place, (57, 84, 66), strict=True)))
    scale = 1 / (np.float32(step_mm) * np.maximum(radius, np.float32(0.2)))
    index = [
        p * scale + smooth_noise(rng, radius.shape, (0, 0.7, 0.7)) + np.float32(n / 2)
        for p, n in zip(place, lattice.shape, strict=True)
    ]
    noise = map_coordinates(lattice, index, order=1, mode="nearest")
    distance: np.ndarray = np.abs(noise) / (length(*np.gradient(noise, 2.0)) + np.float32(0.01))
    return distance


def _leaves(rng: np.random.Generator, place: Place, depth: np.ndarray) -> np.ndarray:
    """Distance to the nearest fissure of the cerebellum, which lie like the pages of a book."""
    z, y, _ = place
    period_mm = 6
    page = (z + np.float32(0.4) * y + smooth_noise(rng, depth.shape, (0, 1.5, 1.5))) / period_mm
    apart = np.abs(page - np.floor(page) - np.float32(0.5)) * period_mm
    return length(apart, np.maximum(depth - 13, 0))


def _ventricles(rng: np.random.Generator, place: Place, size: float) -> np.ndarray:
    z, y, x = place
    side = np.abs(x)
    left, right = rng.uniform(0.85, 1.15, 2).astype(np.float32)
    lean = np.where(x > 0, left, right)
    body = [(3, -32, 9), (13, -8, 9), (13, 14, 13), (2, 32, 23)]
    paired = (z, y, side)
    lateral = tube(paired, body, np.float32(5.0 * size) * lean)
    horns = tube(paired, [body[-1], (0, 52, 22)], np.float32(3.2 * size) * lean)
    temporal = tube(paired, [body[-1], (-22, 8, 34)], np.float32(2.4 * size) * lean)
    third = ellipsoid(place, (-4, 6, 0), (9, 13, 1.2 + 1.4 * size))
    fourth = ellipsoid(place, (-44, 33, 0), (9, 4, 6))
    inside: np.ndarray = np.max([lateral, horns, temporal, third, fourth], axis=0)
    return inside


def _nuclei(rng: np.random.Generator, place: Place) -> np.ndarray:
    z, y, x = place
    paired = (z, y, np.abs(x))
    thalamus = ellipsoid(paired, (-1, 10, 12), (8, 14, 9))
    putamen = ellipsoid(paired, (0, -7, 27), (9, 17, 5.5))
    caudate = ellipsoid(paired, (6, -27, 16), (9, 8, 5))
    inside: np.ndarray = np.max([thalamus, putamen, caudate], axis=0) + rng.uniform(-0.5, 0.5)
    return inside
