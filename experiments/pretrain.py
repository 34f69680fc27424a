"""Pre-training by any scheme: learn from slices of training and unlabelled scans.

The published one (Kascenas et al., "Denoising Autoencoders for Unsupervised Anomaly Detection in
Brain MRI", MIDL 2022) takes the slices that the masks call healthy and keeps the model with the
lowest noisy validation loss.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewscan.experiments.checkpoint import save_model, weights_around
from fewscan.experiments.data import SliceData, open_store
from fewscan.experiments.devices import Devices
from fewscan.experiments.health import gains
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.results import Result
from fewscan.experiments.schemes.scheme import Draw
from fewscan.experiments.seeds import generator_for, seed_for
from fewscan.experiments.spec import Pretrain
from fewscan.experiments.train import train
from fewscan.experiments.trials import with_rate
from fewscan.experiments.unet import UNet
from fewscan.storage.errors import DeviceError, LossNotFiniteError
from fewscan.storage.runs import RunFolder


def pretrain(spec: Pretrain, folder: RunFolder, devices: Devices) -> Result:
    """The stage of `Pretrain`: leaves the model in the folder and returns the result."""
    store = open_store(folder, spec.data)
    settings, lr = with_rate(spec, folder)
    dtype = devices.dtype(spec.training.precision)
    patch = spec.network.patch
    learnt, validated = store.pretraining(spec.slices, spec.network.slices_a_patch)
    training = SliceData.load(store, learnt, devices, dtype, spec.slices, patch=patch)
    at_most = spec.training.validation_slices
    validation = SliceData.load(
        store, validated, devices, dtype, spec.slices, at_most, patch, tiles=True
    )
    channels = len(store.channels)
    outputs = spec.scheme.out_channels(channels)
    body, start = initial_network(spec, channels, outputs, folder, devices)
    model = _trained_network(spec, body).to(devices.device, dtype)
    task = PretextTask(spec, training, validation, devices)
    try:
        state = train(model, task, settings, folder, devices, start | {"slices": training.note})
    except LossNotFiniteError:
        if not spec.is_trial:
            raise
        return Result(spec.kind)
    if devices.is_first:
        model.load_state_dict(state.best)
        around = weights_around(model, body) if spec.scheme.has_anomaly_score else None
        save_model(folder.model, body, body.state_dict(), around)
    return Result(
        spec.kind,
        best_step=state.best_step,
        validation_loss=state.best_loss,
        lr=lr,
        gains=gains(body),
    )


def _trained_network(spec: Pretrain, body: UNet) -> nn.Module:
    """The body with what its scheme puts around it, whose weights have a seed of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(spec.kind, spec.seed, "weights around the body"))
        return spec.scheme.network(body)


class PretextTask:
    """What a scheme asks of a network, batch after batch."""

    def __init__(
        self, spec: Pretrain, training: SliceData, validation: SliceData, devices: Devices
    ) -> None:
        self.scheme = spec.scheme
        self.training = training
        self.validation = validation
        self.devices = devices
        self.cell = (spec.kind, spec.seed)
        self.slices = _slices_of_a_step(spec)
        order_seed = seed_for(*self.cell, "order")
        self.watched: dict[str, float] = {}
        self.order = spec.scheme.order(training.table, self.slices, order_seed)
        self.validation_order = spec.scheme.validation_order(validation.table)

    @property
    def keeps(self) -> Literal["best", "last"]:
        """As the scheme says."""
        return self.scheme.keeps

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The scheme's loss on this rank's share of the global batch."""
        return self.loss_of(model, *self.batch(step))

    def batch(self, step: int) -> tuple[Tensor, Any]:
        """This rank's share of the global batch, on the device: what is fed, what is asked."""
        share = self.devices.share_of(self.slices)
        indices = self.order.indices(step)
        following = self.order.indices(step + 1)[share]
        corners = self.training.corners(self.slices, generator_for(*self.cell, "place", step))
        mine = None if corners is None else corners[share]
        images_NCHW = self.training.batch(indices[share], following, mine).images_NCHW
        draw = self._draw(self.training, indices, "draw", step)
        return self.scheme.pretext(images_NCHW, draw[share])

    def loss_of(self, model: nn.Module, inputs: Tensor, targets: Any) -> Tensor:
        """The loss of a batch; what was fed and asked decides it, and no random number."""
        return self.scheme.loss(model(inputs), targets)

    def validation_loss(self, model: nn.Module) -> float:
        """The same on the validation slices, under draws that are the same every time."""
        names, device = self.scheme.watches, self.devices.device
        total = torch.zeros(1 + len(names), dtype=torch.float64, device=device)
        batches = self.validation.validation_batches(self.devices, self.validation_order)
        for number, indices, batch in batches:
            draw = self._draw(self.validation, indices, "validation draw", number)
            inputs, targets = self.scheme.pretext(batch.images_NCHW, draw)
            outputs = model(inputs)
            loss = self.scheme.loss(outputs, targets).reshape(1)
            total += torch.cat([loss, self.scheme.watched(outputs).to(loss)]) * len(indices)
        loss_, *watched = (self.devices.sum_over_ranks(total) / len(self.validation)).tolist()
        self.watched = dict(zip(names, watched, strict=True))
        return float(loss_)

    def _draw(self, data: SliceData, indices: Tensor, purpose: str, number: int) -> Draw:
        generator = generator_for(*self.cell, purpose, number)
        return self.scheme.draw(data.table.of(indices.numpy()), generator)


def _slices_of_a_step(spec: Pretrain) -> int:
    """Slices of which `batch_size` forward passes are made."""
    slices, rest = divmod(spec.training.batch_size, spec.scheme.views)
    if rest:
        raise DeviceError(
            f"a batch of {spec.training.batch_size} slices for {spec.scheme.views} views of each",
            where="pretrain.training.batch_size",
            expected=f"a multiple of {spec.scheme.views}",
            remedy="change batch_size",
        )
    return slices
