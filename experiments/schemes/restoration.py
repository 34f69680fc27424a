"""What schemes share that spoil a slice and ask for the clean one back.

Letters in names: N images, C channels, H and W rows and columns of a slice; of patches HW
stands for ZHW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from fewscan.experiments.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn


class Clean(NamedTuple):
    """What is asked for: the clean slices, inside their foreground."""

    images_NCHW: Tensor
    foreground_NHW: Tensor


class Restoration(Scheme):
    """Restore the clean slice: squared error inside the foreground, as Kascenas et al. (MIDL 2022).

    Where the output differs from a clean input the scan is anomalous. A scheme says how a slice is
    spoilt, and another score where its network was never shown a clean slice.
    """

    has_anomaly_score: ClassVar[bool] = True

    def corrupted(self, images_NCHW: Tensor, foreground_NHW: Tensor, draw: Any) -> Tensor:
        """The slices as the network is fed them."""
        raise NotImplementedError

    def pretext(self, images_NCHW: Tensor, draw: Any) -> tuple[Tensor, Clean]:
        """Spoilt slices, and the clean ones to restore."""
        from fewscan.experiments.anomaly import foreground

        foreground_NHW = foreground(images_NCHW)
        inputs_NCHW = self.corrupted(images_NCHW, foreground_NHW, draw)
        return inputs_NCHW, Clean(images_NCHW, foreground_NHW)

    def loss(self, outputs: Tensor, targets: Clean) -> Tensor:
        """Squared error in the foreground; the mean is over all pixels."""
        from fewscan.experiments.losses import reconstruction_loss

        return reconstruction_loss(outputs, *targets)

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """What it cannot reconstruct of a clean slice."""
        from fewscan.experiments.anomaly import reconstruction_anomaly

        return reconstruction_anomaly(images_NCHW, network(images_NCHW), spacing_mm_HW)
