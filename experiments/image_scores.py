"""Anomaly scores without a network: what of the image alone finds a lesion, as baselines.

Letters in names: N images, C channels, P planes (one channel of one image each), H and W rows and
columns of a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewscan.experiments.settings import require_at_least

if TYPE_CHECKING:
    from torch import Tensor, nn

CHANNEL, SMOOTHED = "channel", "smoothed"
SMOOTHING_MM = 6.0
"""Our choice: wider than grain and sulci, narrower than most lesions."""
CHANNEL_SCALE = 0.5
"""Thresholds are tried below 1, and a lesion may be brighter than the image's 99th percentile."""


@dataclass(frozen=True)
class ImageScore:
    """What of an image is its score: a channel, or the difference to the smoothed image.

    Neither: nothing, as networks are scored.
    """

    channel: str | None = None
    """Its name: the score is half of its value, so that 0.5 is the image's 99th percentile."""
    smoothing_mm: float | None = None
    """σ of the Gaussian: the score is what `reconstruction_anomaly` makes of the smoothed image,
    as of a network's output."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "smoothing_mm")
        if self.channel is not None and self.smoothing_mm is not None:
            raise ValueError("a score is a channel or a difference to the smoothed image, not both")

    def __bool__(self) -> bool:
        return self.channel is not None or self.smoothing_mm is not None

    @property
    def name(self) -> str:
        """As study files have it."""
        return SMOOTHED if self.channel is None else f"{CHANNEL} {self.channel}"

    @property
    def explanation(self) -> str:
        """For people."""
        if self.channel is not None:
            return (
                f"how bright {self.channel} is, no network: half of the voxel's value, 0.5 is the "
                "upper end of its normalisation"
            )
        return (
            "no network: the mean over channels of the difference to the image smoothed by a "
            f"Gaussian of σ = {self.smoothing_mm:g} mm, in the eroded foreground, then a median"
        )

    @classmethod
    def named(cls, name: str) -> ImageScore:
        """The inverse of `name`: "smoothed", "channel NAME". Empty for any other text."""
        kind, _, channel = name.partition(" ")
        if kind == CHANNEL and channel.strip():
            return cls(channel=channel.strip())
        return cls(smoothing_mm=SMOOTHING_MM) if name == SMOOTHED else cls()

    def among(self, channels: Sequence[str]) -> ScoreOfImages:
        """The score for images of these channels. Raises ValueError if its own is none of them."""
        return ScoreOfImages(self, None if self.channel is None else channels.index(self.channel))


@dataclass(frozen=True)
class ScoreOfImages:
    """An `ImageScore` that knows where its channel stands: a predictor's, in place of a scheme."""

    score: ImageScore
    index: int | None
    """Of the channel."""

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """How anomalous each pixel is: float32 NHW, not negative. No network is asked."""
        from fewscan.experiments.anomaly import reconstruction_anomaly

        if self.index is not None:
            return images_NCHW[:, self.index].float().clamp(min=0) * CHANNEL_SCALE
        assert self.score.smoothing_mm is not None
        smoothed_NCHW = smoothed(images_NCHW, self.score.smoothing_mm, spacing_mm_HW)
        return reconstruction_anomaly(images_NCHW, smoothed_NCHW, spacing_mm_HW)


def smoothed(images_NCHW: Tensor, sigma_mm: float, spacing_mm_HW: tuple[float, ...]) -> Tensor:
    """Each slice and channel smoothed by a Gaussian in its plane, borders reflected: NCHW."""
    import torch

    from fewscan.experiments.transforms import blur

    planes_PHW = images_NCHW.float().flatten(end_dim=1)
    sigmas_px_2 = torch.tensor([sigma_mm / mm for mm in spacing_mm_HW])
    blurred_PHW = blur(planes_PHW, sigmas_px_2.expand(len(planes_PHW), 2))
    return blurred_PHW.view(images_NCHW.shape)
