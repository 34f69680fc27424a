"""What a way of pre-training must say of itself; everything else is the same for all of them.

The stage (`experiments.pretrain`) owns data, order, seeds, ranks, loop, checkpoints and the model's
file. A scheme owns what is done to a batch and what is asked of the network.

How different ones use it: `denoise` and `ddep` have a `draw` of noise; `inpaint`, `mae` and
`genesis` draw boxes, blocks or curves and place them in `pretext`, where the foreground is known;
`synthetic` pairs neighbours of the batch, which an `order` of its own puts there, and asks for a
label made from the draw; `contrast` takes two `views` of a slice, a second head in `network`,
`heights_N` for positives by position, a loss over the ranks, and keeps the last model.

Letters in names: N images, C channels, H and W rows and columns; where a scheme takes patches
(`dims`) HW stands for ZHW, the slices before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from fewscan.experiments.settings import Transfer

if TYPE_CHECKING:
    import numpy as np
    from torch import Generator, Tensor, nn

    from fewscan.experiments.order import BatchOrder
    from fewscan.experiments.unet import UNet


class Draw(Protocol):
    """The random numbers of a global batch; `draw[a:b]` is what concerns its slices a to b."""

    def __getitem__(self, slices: slice, /) -> Draw:
        """Those of a rank's share."""


@dataclass(frozen=True)
class SliceTable:
    """What is known of slices without looking at them."""

    channels: int
    size: tuple[int, ...]
    """Rows and columns; of patches slices, rows and columns."""
    scans_N: np.ndarray
    """For each slice a number that is the same for slices of one scan."""
    heights_N: np.ndarray
    """Where it lies in its scan, from 0, the first slice, to 1, the last."""
    spacing_mm_HW: tuple[float, ...] = (1.0, 1.0)
    """Distance between rows and between columns, of patches between slices before them: of several
    scans the median, so that a length in millimetres is as many pixels in every slice."""

    @classmethod
    def unrelated(cls, channels: int, size: tuple[int, ...], count: int) -> SliceTable:
        """Slices of which nothing is known: each is a scan of its own."""
        import numpy as np

        return cls(channels, size, np.arange(count), np.zeros(count), (1.0,) * len(size))

    def __len__(self) -> int:
        return len(self.scans_N)

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.size[-2], self.size[-1]

    def of(self, indices_N: np.ndarray) -> SliceTable:
        """The table of some of the slices."""
        return SliceTable(
            self.channels,
            self.size,
            self.scans_N[indices_N],
            self.heights_N[indices_N],
            self.spacing_mm_HW,
        )


class HasAnomalyScore(Protocol):
    """What a predictor without a target asks."""

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """See `Scheme.anomaly_score`."""


class Scheme:
    """A way of pre-training: a frozen dataclass of its settings, with these members.

    Random numbers are drawn on the CPU for the global batch and applied to each rank's share, so
    the result depends on no number of devices. Labels are never seen. The mean of the loss's
    gradients over ranks must be the gradient of the global batch.
    """

    kind: ClassVar[str]
    """Its name in study files."""
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    """A key of a study file that is no setting of the scheme is a mistake."""
    views: ClassVar[int] = 1
    """Forward passes that a slice of the batch is worth; a step draws batch_size / views slices."""
    transfer: ClassVar[Transfer] = "all"
    """What a fine-tuning takes over, unless the study says otherwise."""
    trains: ClassVar[Transfer] = "all"
    """What of the network its images pass through; "encoder" costs less, and is planned so."""
    keeps: ClassVar[Literal["best", "last"]] = "best"
    """Whether its validation loss may choose the model."""
    watches: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers that `watched` gives, for the events."""
    dims: ClassVar[tuple[int, ...]] = (2,)
    """Axes of the networks that it can teach: 2 of slices, 3 of patches."""
    has_anomaly_score: ClassVar[bool] = False
    """Whether `anomaly_score` is there, so that the unsupervised baseline can be scored."""

    @property
    def skips(self) -> bool:
        """Whether the network has its skip connections. Without them transfer the encoder alone."""
        return True

    def out_channels(self, channels: int) -> int:
        """Of the network's head, for images of so many channels."""
        return channels

    def network(self, body: UNet) -> nn.Module:
        """What is trained: the body, or a module around it with another head.

        The body alone is handed on; what is around it is kept for an anomaly score alone. Weights
        around it are drawn from the cell's seed. What no gradient reaches is frozen here
        (`requires_grad_(False)`), as several ranks wait for the gradients of all that is not.
        """
        return body

    def order(self, slices: SliceTable, batch_size: int, seed: int) -> BatchOrder:
        """Which slices make the batch of a step."""
        from fewscan.experiments.order import BatchOrder

        return BatchOrder(len(slices), batch_size, seed)

    def validation_order(self, slices: SliceTable) -> Tensor:
        """Every validation slice once, int64, in the order that batches are made in."""
        import torch

        return torch.arange(len(slices))

    def draw(self, slices: SliceTable, generator: Generator) -> Draw:
        """The random numbers for these slices, the global batch of a step."""
        raise NotImplementedError

    def pretext(self, images_NCHW: Tensor, draw: Draw) -> tuple[Tensor, Any]:
        """What the network is fed, and what is asked of it, for a share of the batch."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """How far the answer is from what was asked: a scalar with a gradient.

        In a step all ranks come here together and may add up what they have. In validation
        (`torch.is_grad_enabled()` says no) each has batches of its own and may not wait for others.
        """
        raise NotImplementedError

    def watched(self, outputs: Tensor) -> Tensor:
        """Of a validation batch's outputs, what says whether it learns: a number for each name."""
        return outputs.new_zeros(0)

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """How anomalous each pixel is, as the trained network sees it: float32 NHW, not negative.

        `spacing_mm_HW` is the distance between rows and between columns, for what has a size. Of a
        3D network the images are one whole volume, and between slices comes first.
        """
        raise NotImplementedError
