"""Pre-training: a denoising auto-encoder on the healthy slices of the training split.

Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI" (MIDL
2022): add coarse noise, reconstruct the clean slice, keep the model with the lowest noisy
validation loss.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.data import SliceData, open_store
from fewscan.experiments.devices import Devices
from fewscan.experiments.losses import reconstruction_loss
from fewscan.experiments.noise import NoiseDraw, draw_noise, masked_noise
from fewscan.experiments.scoring import foreground
from fewscan.experiments.spec import Denoise, run_id, seed_for
from fewscan.experiments.start import initial_network
from fewscan.experiments.train import BatchOrder, train
from fewscan.storage.runs import RunFolder


def pretrain(spec: Denoise, folder: RunFolder, devices: Devices) -> dict[str, Any]:
    """The stage of `Denoise`: leaves the best model in the folder and returns the result."""
    store = open_store(folder, spec.data)
    dtype = devices.dtype(spec.training.precision)
    task = DenoiseTask(
        spec,
        SliceData.load(store, store.split.train, devices, dtype, healthy_only=True),
        SliceData.load(
            store,
            store.split.validation,
            devices,
            dtype,
            healthy_only=True,
            at_most=spec.training.validation_slices,
        ),
        devices,
    )
    channels = len(store.channels)
    model, start = initial_network(spec, channels, channels, folder, devices)
    facts = start | {"slices": task.training.note}
    state = train(model, task, spec.training, folder, devices, facts)
    if devices.is_first:
        save_model(folder.model, model, state.best)
    return {
        "kind": spec.kind,
        "best_step": state.best_step,
        "validation_loss": state.best_loss,
    }


class DenoiseTask:
    """Remove coarse noise from healthy slices."""

    def __init__(
        self, spec: Denoise, training: SliceData, validation: SliceData, devices: Devices
    ) -> None:
        self.noise = spec.noise
        self.training = training
        self.validation = validation
        self.devices = devices
        self.batch_size = spec.training.batch_size
        self.seed = seed_for(run_id(spec), "denoise")
        self.order = BatchOrder(len(training), self.batch_size, self.seed)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Mean squared error inside the foreground, of this rank's share."""
        return self.loss_of(model, *self.batch(step))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's share of the global batch, on the device: clean images, and the noise."""
        share = self.devices.share_of(self.batch_size)
        indices = self.order.indices(step)[share], self.order.indices(step + 1)[share]
        images_NCHW = self.training.batch(*indices).images_NCHW
        noise = self._draw("noise", step, self.batch_size, images_NCHW)
        return images_NCHW, masked_noise(images_NCHW, noise[share])

    def validation_loss(self, model: nn.Module) -> float:
        """The same on the validation slices, under noise that is the same every time."""
        total = torch.zeros((), dtype=torch.float64, device=self.devices.device)
        for number, batch in self.validation.validation_batches(self.devices):
            images_NCHW = batch.images_NCHW
            noise = self._draw("validation noise", number, len(images_NCHW), images_NCHW)
            noise_NCHW = masked_noise(images_NCHW, noise)
            total += self.loss_of(model, images_NCHW, noise_NCHW) * len(images_NCHW)
        return self.devices.sum_over_ranks(total).item() / len(self.validation)

    def _draw(self, purpose: str, index: int, count: int, images_NCHW: Tensor) -> NoiseDraw:
        generator = torch.Generator().manual_seed(seed_for(self.seed, purpose, index))
        _, channels, height, width = images_NCHW.shape
        resolution, std = self.noise.resolution, self.noise.std
        return draw_noise(count, channels, resolution, std, (height, width), generator)

    def loss_of(self, model: nn.Module, images_NCHW: Tensor, noise_NCHW: Tensor) -> Tensor:
        """The loss of a batch; its images and noise decide it, and no random number."""
        outputs_NCHW = model(images_NCHW + noise_NCHW)
        return reconstruction_loss(outputs_NCHW, images_NCHW, foreground(images_NCHW))
