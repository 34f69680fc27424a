"""Decoder denoising: predict the noise of every pixel, as one step of a diffusion model.

Brempong et al., "Denoising Pretraining for Semantic Segmentation" (CVPR workshops 2022): the input
is (1 + σ²)^−½ (x + σ ε) with ε ~ N(0, 1) and σ = 0.22, the target ε, the error squared. They freeze
a supervised encoder and train the decoder; without labels encoder and decoder are trained, their
other setting. Ours: ε is 0 outside the foreground, where the task would be to read it off, and the
loss is that of `denoise`, so that the two differ in target and scaling alone.

Letters in names: N images, C channels, H and W rows and columns of a slice; of patches HW
stands for ZHW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from fewscan.experiments.schemes.scheme import Scheme, SliceTable

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor, nn

SCORED_NOISES = 4
"""Fields of noise that an anomaly score is the mean of: our choice."""


@dataclass(frozen=True)
class PixelNoise:
    """The seeds of the noise of a batch, which is drawn where its slices are."""

    seeds_N: Tensor

    def __getitem__(self, images: slice, /) -> PixelNoise:
        return PixelNoise(self.seeds_N[images])


class NoiseTarget(NamedTuple):
    """What is asked for: the noise, inside the foreground."""

    noise_NCHW: Tensor
    foreground_NHW: Tensor


@dataclass(frozen=True)
class NoisePrediction(Scheme):
    """Predict the noise of every pixel. The default is the published constant."""

    kind: ClassVar[str] = "ddep"
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    has_anomaly_score: ClassVar[bool] = True

    std: float = 0.22
    """σ of the noise, in units of the images' 99th percentile."""

    def __post_init__(self) -> None:
        if not 0 < self.std < float("inf"):
            raise ValueError(f"std is {self.std}, expected more than 0: there is noise to predict")

    def draw(self, slices: SliceTable, generator: Generator) -> PixelNoise:
        """A seed for each slice."""
        import torch

        return PixelNoise(torch.randint(2**63 - 1, (len(slices),), generator=generator))

    def pretext(self, images_NCHW: Tensor, draw: PixelNoise) -> tuple[Tensor, NoiseTarget]:  # type: ignore[override]
        """Noisy slices, and their noise."""
        import torch

        from fewscan.experiments.anomaly import foreground

        device, shape = images_NCHW.device, images_NCHW.shape[1:]
        fields = [_field(shape, seed, device) for seed in draw.seeds_N.tolist()]
        foreground_NHW = foreground(images_NCHW)
        noise_NCHW = torch.stack(fields).to(images_NCHW) * foreground_NHW.unsqueeze(1)
        return self.noisy(images_NCHW, noise_NCHW), NoiseTarget(noise_NCHW, foreground_NHW)

    def noisy(self, images_NCHW: Tensor, noise_NCHW: Tensor) -> Tensor:
        """Slices with the noise, scaled so that a variance of 1 stays 1."""
        scaled: Tensor = (images_NCHW + self.std * noise_NCHW) / (1 + self.std**2) ** 0.5
        return scaled

    def loss(self, outputs: Tensor, targets: NoiseTarget) -> Tensor:
        """Squared error in the foreground; the mean is over all pixels."""
        from fewscan.experiments.losses import reconstruction_loss

        return reconstruction_loss(outputs, *targets)

    def anomaly_score(
        self, network: nn.Module, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...]
    ) -> Tensor:
        """How far slices are from those that their noisy versions come from, by its account.

        Ours: |x − x̂| with x̂ = input · (1 + σ²)^½ − σ · output, its mean over channels and over
        `SCORED_NOISES` fields of noise, which are the same for every slice and every call.
        """
        import torch

        from fewscan.experiments.anomaly import anomaly_of, foreground, reconstruction_error
        from fewscan.experiments.seeds import seed_for
        from fewscan.experiments.to_device import sent

        inside_N1HW = foreground(images_NCHW).unsqueeze(1)
        error_NHW = torch.zeros_like(images_NCHW[:, 0], dtype=torch.float32)
        for number in range(SCORED_NOISES):
            seed = seed_for(self.kind, "score", number)
            field_CHW = _field(images_NCHW.shape[1:], seed, torch.device("cpu"))
            noise_NCHW = sent(field_CHW, images_NCHW.device, images_NCHW.dtype) * inside_N1HW
            noisy_NCHW = self.noisy(images_NCHW, noise_NCHW)
            clean_NCHW = noisy_NCHW * (1 + self.std**2) ** 0.5 - self.std * network(noisy_NCHW)
            error_NHW += reconstruction_error(images_NCHW, clean_NCHW) / SCORED_NOISES
        return anomaly_of(error_NHW, images_NCHW, spacing_mm_HW)


def _field(shape: torch.Size, seed: int, device: torch.device) -> Tensor:
    """Standard normal noise of a seed, drawn on the device."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)
