"""What is minimised: reconstruction error in pre-training, soft Dice + cross-entropy afterwards.

The segmentation loss is computed in two steps. Sums over pixels are additive: over the ranks of a
training step and over the batches of a validation. The loss is a function of the sums, so that of
a global batch or of a whole validation set is exactly that, not a mean of parts.

Losses are computed in float32, also under autocast, or in float64 if the network is. They use no
operation whose CUDA kernel adds in an arbitrary order (torch's own cross-entropy of images does).

Letters in names: N images, C channels or classes with the background, K classes without it, H and W
rows and columns; of patches HW stands for ZHW, and pixels are voxels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce

from fewscan.storage.labels import IGNORED

DICE_SMOOTH = 1e-5
"""Added to numerator and denominator of each class's Dice, as nnU-Net does."""


def reconstruction_loss(output_NCHW: Tensor, target_NCHW: Tensor, foreground_NHW: Tensor) -> Tensor:
    """Squared error in the foreground; the mean is over all pixels, background included.

    Kascenas et al., MIDL 2022. The target is the clean image and the foreground is the target's.
    """
    error_NCHW = _precise(output_NCHW) - target_NCHW
    return (error_NCHW.square() * foreground_NHW.unsqueeze(1)).mean()


def masked_reconstruction_loss(
    output_NCHW: Tensor, target_NCHW: Tensor, mask_NHW: Tensor
) -> Tensor:
    """Mean squared error over the values of the mask; 0 if it is empty.

    In a step the ranks add up how many values they have: the mean of their gradients is then that
    of the mean over the global batch, and the mean of their losses is that mean.
    """
    error_NCHW = _precise(output_NCHW) - target_NCHW
    total = (error_NCHW.square() * mask_NHW.unsqueeze(1)).sum()
    values = mask_NHW.sum().to(total) * output_NCHW.shape[1]
    if torch.is_grad_enabled() and distributed.is_initialized():
        distributed.all_reduce(values)
        values = values / distributed.get_world_size()
    return total / values.clamp(min=1)


@dataclass(frozen=True)
class SegmentationSums:
    """What the segmentation loss needs to know of any number of pixels; `+` pools.

    Those of a batch are float32 sums; kept as float64, they lose nothing by pooling.
    """

    intersection_K: Tensor
    """Sum of the predicted probabilities where the class is the true one."""
    prediction_K: Tensor
    """Sum of the predicted probabilities."""
    target_K: Tensor
    """Number of the class's pixels."""
    cross_entropy: Tensor
    """Sum over pixels of −log of the true class's probability."""
    pixels: Tensor
    """Number of pixels."""

    @classmethod
    def of_nothing(cls, classes: int, device: str) -> "SegmentationSums":
        """The sums of no pixel: where pooling starts."""
        zeros_K = torch.zeros(classes, dtype=torch.float64, device=device)
        return cls(zeros_K, zeros_K, zeros_K, zeros_K.sum(), zeros_K.sum())

    def __add__(self, other: "SegmentationSums") -> "SegmentationSums":
        return SegmentationSums(*map(torch.add, _values(self), _values(other)))


def segmentation_sums(
    logits_NCHW: Tensor, labels_NHW: Tensor, has_ignored: bool = False
) -> SegmentationSums:
    """The sums over a batch. Labels are integers: 0 is background, k is channel k of the logits.

    `has_ignored`: pixels whose label is `IGNORED` count in none of the sums.
    """
    log_probabilities = F.log_softmax(_precise(logits_NCHW), dim=1)
    classes = torch.arange(logits_NCHW.shape[1], device=logits_NCHW.device)
    is_class = labels_NHW.unsqueeze(1) == classes.view(1, -1, *(1 for _ in logits_NCHW.shape[2:]))
    log_likelihood_C = _sum_per_channel(log_probabilities * is_class)
    lesion = log_probabilities[:, 1:].exp()
    pixels = log_likelihood_C.new_full((), labels_NHW.numel())
    if has_ignored:
        known_NHW = labels_NHW != IGNORED
        lesion, pixels = lesion * known_NHW.unsqueeze(1), known_NHW.sum().to(pixels)
    return SegmentationSums(
        intersection_K=_sum_per_channel(lesion * is_class[:, 1:]),
        prediction_K=_sum_per_channel(lesion),
        target_K=_sum_per_channel(is_class[:, 1:]),
        cross_entropy=-log_likelihood_C.sum(),
        pixels=pixels,
    )


def segmentation_loss(sums: SegmentationSums) -> Tensor:
    """Mean cross-entropy + (1 − mean soft Dice of the classes without background).

    nnU-Net's loss (Isensee et al. 2021) with its weights 1:1 and its batch Dice: the Dice of a
    class is (2 I + s) / (P + T + s) with intersection I, prediction P and target T summed over all
    images, s = 1e-5, probabilities not squared. A class that is absent and not predicted has Dice
    1. nnU-Net reports the same less 1 (it minimises −Dice): the gradients are equal.
    """
    overlap_K = 2 * sums.intersection_K + DICE_SMOOTH
    total_K = sums.prediction_K + sums.target_K + DICE_SMOOTH
    # A batch of ignored pixels alone has no cross-entropy.
    return sums.cross_entropy / sums.pixels.clamp(min=1) + 1 - (overlap_K / total_K).mean()


def sums_over_ranks(sums: SegmentationSums) -> SegmentationSums:
    """The sums of the global batch, on every rank; differentiable.

    Every rank then has the same loss. Its gradient flows back to all ranks and adds up there, and
    DDP's mean over ranks divides by their number: what remains is the global batch's gradient.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return sums
    values = _values(sums)
    flat = torch.cat([value.reshape(-1) for value in values])
    parts = all_reduce(flat).split([value.numel() for value in values])
    return SegmentationSums(*(p.view(v.shape) for p, v in zip(parts, values, strict=True)))


def _values(sums: SegmentationSums) -> tuple[Tensor, ...]:
    return tuple(getattr(sums, name) for name in sums.__dataclass_fields__)


def _precise(tensor: Tensor) -> Tensor:
    """At least float32: bf16 has too few digits for sums and for logarithms near 0."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _sum_per_channel(tensor_NCHW: Tensor) -> Tensor:
    return tensor_NCHW.sum(dim=(0, *range(2, tensor_NCHW.ndim))).double()
