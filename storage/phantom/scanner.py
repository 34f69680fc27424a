"""What a scanner makes of tissue: four modalities, each with its contrast, gain, bias and noise.

A head arrives as layers, painted over white matter one after the other. Signals are relative; a
subject's own contrast, the strength of its lesions and the gain of each modality are drawn here.

Letters: V the voxels of a brain, M the modalities in the order flair, t1, t1ce, t2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewscan.storage.phantom.anatomy import BOX_ZYX, smooth_noise

MODALITIES = ("flair", "t1", "t1ce", "t2")

SIGNAL_M = {
    "white": (0.58, 0.86, 0.87, 0.50),
    "grey": (0.72, 0.62, 0.64, 0.70),
    "nuclei": (0.66, 0.70, 0.72, 0.58),
    "fluid": (0.20, 0.28, 0.28, 1.30),
    "dura": (1.10, 0.55, 1.25, 0.75),
    "spot": (1.05, 0.66, 0.68, 0.85),
    "vessel": (0.40, 0.70, 1.60, 0.25),
    "calcium": (0.25, 0.60, 0.60, 0.20),
    "oedema": (1.15, 0.62, 0.64, 0.98),
    "rim": (0.95, 0.62, 1.55, 0.85),
    "necrosis": (0.62, 0.45, 0.48, 1.15),
}
"""relative signal of each tissue; our choice, after what radiologists see"""

LESIONS = {"spot": (0.4, 1.1), "oedema": (0.35, 1.1), "rim": (0.3, 1.2), "necrosis": (0.4, 1.1)}
"""share of their contrast with white matter that they have in a subject: faintest, strongest"""


@dataclass(frozen=True)
class Layer:
    """Tissue painted over what was painted before."""

    tissue: str
    """a key of `SIGNAL_M`"""
    cover_V: np.ndarray
    """share of each voxel that it takes, 0 to 1"""


def acquire(rng: np.random.Generator, voxels_V: np.ndarray, layers: Sequence[Layer]) -> np.ndarray:
    """Scan the brain whose voxels are `voxels_V` (flat indices into the box).

    Returns (M, V) int16, at least 1, so that a voxel of 0 is never brain.
    """
    signals = _subject_signals(rng)
    texture = smooth_noise(rng, BOX_ZYX, (0.6, 0.6, 0.4)).ravel()[voxels_V]
    images_MV = np.empty((len(MODALITIES), voxels_V.size), np.int16)
    painted = [(layer, np.flatnonzero(layer.cover_V)) for layer in layers]
    for m, image in enumerate(images_MV):
        signal_V = np.full(voxels_V.size, signals["white"][m], np.float32)
        for layer, where in painted:
            under = signal_V[where]
            signal_V[where] = under + layer.cover_V[where] * (signals[layer.tissue][m] - under)
        signal_V *= 1 + np.float32(rng.uniform(0.01, 0.04)) * texture
        signal_V *= _bias(rng).ravel()[voxels_V]
        noise = rng.standard_normal(voxels_V.size, np.float32)
        signal_V += np.float32(rng.uniform(0.015, 0.04)) * noise
        gain = np.float32(np.exp(rng.uniform(np.log(250), np.log(2500))))
        image[:] = np.maximum(np.abs(signal_V) * gain + np.float32(0.5), 1)
    return images_MV


def _bias(rng: np.random.Generator) -> np.ndarray:
    """The coils' uneven sensitivity: a factor around 1 that changes over centimetres."""
    strength = rng.uniform(0.03, 0.12)
    return 1 + smooth_noise(rng, BOX_ZYX, (0, 0, 0, 0, strength / 3, strength))


def _subject_signals(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`SIGNAL_M` with this subject's contrast between tissues and strength of lesions."""
    table = {tissue: np.array(signal, np.float32) for tissue, signal in SIGNAL_M.items()}
    white = table["white"]
    contrast_M = rng.uniform(0.7, 1.2, len(MODALITIES)).astype(np.float32)
    subject = {tissue: white + contrast_M * (s - white) for tissue, s in table.items()}
    for tissue, (faintest, strongest) in LESIONS.items():
        strength = np.float32(rng.uniform(faintest, strongest))
        jitter_M = rng.uniform(0.85, 1.15, len(MODALITIES)).astype(np.float32)
        subject[tissue] = white + strength * jitter_M * (table[tissue] - white)
    return subject
