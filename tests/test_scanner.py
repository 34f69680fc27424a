from itertools import pairwise

import numpy as np
import pytest

from fewscan.storage.phantom.anatomy import BOX_ZYX, doubled, draw_head
from fewscan.storage.phantom.draw import healthy_layers
from fewscan.storage.phantom.scanner import MODALITIES, SIGNAL_M, Layer, acquire

# Darkest first, as radiologists see them.
ORDER = {
    "flair": ("fluid", "white", "grey"),
    "t1": ("fluid", "grey", "white"),
    "t1ce": ("fluid", "grey", "white"),
    "t2": ("white", "grey", "fluid"),
}


@pytest.mark.parametrize("seed", [0, 1])
def test_tissues_have_the_order_of_their_modality(seed: int) -> None:
    rng = np.random.default_rng(seed)
    head = draw_head(rng)
    voxels_V = np.flatnonzero(doubled(head.brain_ZYX, BOX_ZYX) > 0)
    layers = healthy_layers(head, voxels_V)
    images_MV = acquire(rng, voxels_V, layers)
    grey, nuclei, *fluids = (layer.cover_V for layer in layers)
    fluid = np.maximum(*fluids)
    pure = {
        "fluid": fluid == 1,
        "grey": (grey == 1) & (nuclei == 0) & (fluid == 0),
        "white": (grey == 0) & (nuclei == 0) & (fluid == 0),
    }
    for modality, image_V in zip(MODALITIES, images_MV, strict=True):
        medians = [np.median(image_V[pure[tissue]]) for tissue in ORDER[modality]]
        assert all(dark < bright for dark, bright in pairwise(medians)), modality


def test_brain_is_never_zero() -> None:
    voxels_V = np.arange(1000)
    nothing = Layer("fluid", np.ones(1000, np.float32))
    images_MV = acquire(np.random.default_rng(0), voxels_V, [nothing])
    assert images_MV.dtype == np.int16
    assert images_MV.min() >= 1


def test_every_tissue_has_a_signal_in_every_modality() -> None:
    assert {len(signal) for signal in SIGNAL_M.values()} == {len(MODALITIES)}
