"""A trained network on slices of a scan that nobody has labelled.

As in `evaluate`: in float32, in batches of the same size, so that a test patient gets the mask that
was scored.

Letters in names: N slices, C channels, K maps, H and W rows and columns.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fewscan.experiments.evaluate import EVALUATION_BATCH
from fewscan.experiments.scoring import anomaly_score
from fewscan.experiments.unet import UNet

Maps = Callable[[Tensor], Tensor]
"""From float32 images_NCHW to maps_NKHW that say something of each pixel."""
_FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))


def class_probabilities(network: UNet) -> Maps:
    """Of the background and each class."""
    return lambda images_NCHW: network(images_NCHW).softmax(dim=1)


def anomaly_scores(network: UNet) -> Maps:
    """One map: what the auto-encoder cannot reconstruct."""
    return lambda images_NCHW: anomaly_score(images_NCHW, network(images_NCHW))[:, None]


def mirrored(maps: Maps) -> Maps:
    """The mean over the slice and its three mirror images, as nnU-Net predicts."""

    def mean(images_NCHW: Tensor) -> Tensor:
        each = [maps(images_NCHW.flip(flip)).flip(flip) for flip in _FLIPS]
        return torch.stack(each).mean(dim=0)

    return mean


@torch.no_grad()
def in_batches(maps: Maps, images_NCHW: Tensor, device: str) -> Iterator[Tensor]:
    """The maps of all slices, a batch after the other, on the device."""
    for start in range(0, len(images_NCHW), EVALUATION_BATCH):
        yield maps(images_NCHW[start : start + EVALUATION_BATCH].to(device, torch.float32))


def lesion_mask(maps_NKHW: Tensor, threshold: float) -> Tensor:
    """Where the probability of any class, or the anomaly score, is above the threshold.

    Compared in half precision, in which the threshold was chosen.
    """
    lesion_NHW = maps_NKHW[:, 1:].sum(dim=1) if maps_NKHW.shape[1] > 1 else maps_NKHW[:, 0]
    return lesion_NHW.half() > torch.tensor(threshold, dtype=torch.float16)
