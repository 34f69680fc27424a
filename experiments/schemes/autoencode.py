"""Auto-encoder: nothing is done to a slice, it has to pass through a narrow place.

The coarsest map of the published network has more numbers than a slice of 128² has values (512 of
16² against 4 of 128²), so that it is no narrow place, even without skip connections; a pair of 1×1
convolutions, to a few channels and back, makes one (ours). A fine-tuning does not take it over. The
auto-encoders of anomaly benchmarks have a dense latent vector (16 numbers for 64² pixels in
MedIAnomaly; Cai et al. 2025).

Letters in names: N images, C channels, H and W rows and columns of a slice; of patches HW
stands for ZHW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fewscan.experiments.schemes.restoration import Restoration
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.settings import Transfer, require_at_least

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from fewscan.experiments.unet import UNet


class Nothing:
    """No random number."""

    def __getitem__(self, images: slice, /) -> Nothing:
        return self


@dataclass(frozen=True)
class Autoencode(Restoration):
    """Reconstruct the slice, or the patch, itself."""

    kind: ClassVar[str] = "autoencode"
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    transfer: ClassVar[Transfer] = "encoder"

    latent_channels: int | None = 4
    """Of the narrow place below the coarsest map: 1,024 numbers for a slice of 128². None: there is
    none, and nothing but the missing skips keeps the identity from being learnt."""
    skips: bool = False
    """Whether the network has its skip connections. True is a negative control, not a method: the
    identity is a solution, and what lies below the first level need not learn anything."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "latent_channels")

    def network(self, body: UNet) -> nn.Module:
        """The body, with the narrow place in its middle."""
        if self.latent_channels is None:
            return body
        from fewscan.experiments.around import Narrow

        return Narrow(body, self.latent_channels)

    def draw(self, slices: SliceTable, generator: Generator) -> Nothing:
        """Nothing is drawn."""
        return Nothing()

    def corrupted(self, images_NCHW: Tensor, foreground_NHW: Tensor, draw: Nothing) -> Tensor:
        """The slices as they are."""
        return images_NCHW
