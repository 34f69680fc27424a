"""Fine-tuning: learn to segment from a few labelled scans.

Holzschuh et al., "Combining Anomaly Detection and Supervised Learning for Medical Image
Segmentation" (MIDL 2023): soft Dice and cross-entropy, nnU-Net-like augmentation, the model with
the lowest validation loss.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fewscan.experiments import augment
from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.data import SliceData, open_store
from fewscan.experiments.devices import Devices
from fewscan.experiments.health import gains
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.labelled import labelled_scans
from fewscan.experiments.losses import (
    SegmentationSums,
    segmentation_loss,
    segmentation_sums,
    sums_over_ranks,
)
from fewscan.experiments.order import BatchOrder, OversampledOrder
from fewscan.experiments.results import Result
from fewscan.experiments.schedules import parts_of
from fewscan.experiments.seeds import generator_for, seed_for
from fewscan.experiments.spec import Finetune
from fewscan.experiments.train import train
from fewscan.experiments.trials import with_rate
from fewscan.storage.errors import LossNotFiniteError
from fewscan.storage.labels import IGNORED, LabelMeaning
from fewscan.storage.runs import RunFolder


def finetune(spec: Finetune, folder: RunFolder, devices: Devices) -> Result:
    """The stage of `Finetune`: leaves the best model in the folder and returns the result."""
    store = open_store(folder, spec.data)
    dtype = devices.dtype(spec.training.precision)
    training, lr = with_rate(spec, folder)
    learnt, held_out = labelled_scans(spec, store)
    classes = 1 if spec.target == "binary" else len(store.classes)
    patch = spec.network.patch
    validated, at_most = held_out or store.split.validation, training.validation_slices
    shows_lesion_N = np.concatenate(
        [store.subjects[i].shows_lesion_N(store.meaning) for i in learnt]
    )
    task = SegmentTask(
        spec,
        store.meaning,
        SliceData.load(store, learnt, devices, dtype, patch=patch),
        SliceData.load(store, validated, devices, dtype, at_most=at_most, patch=patch, tiles=True),
        devices,
        keeps="best" if held_out or spec.selection == "validation" else "last",
        shows_lesion_N=shows_lesion_N,
    )
    model, start = initial_network(spec, len(store.channels), 1 + classes, folder, devices)
    facts = start | {"slices": task.training.note}
    try:
        state = train(model, task, training, folder, devices, facts, parts_of(spec, training))
    except LossNotFiniteError:
        if not spec.is_trial:
            raise
        return Result(spec.kind, labelled=(*learnt, *held_out))
    if devices.is_first:
        model.load_state_dict(state.best)
        save_model(folder.model, model, model.state_dict())
    return Result(
        spec.kind,
        best_step=state.best_step,
        validation_loss=state.best_loss,
        lr=lr,
        gains=gains(model),
        labelled=(*learnt, *held_out),
        held_out=held_out,
    )


class SegmentTask:
    """Soft Dice and cross-entropy on augmented slices of the labelled scans."""

    def __init__(
        self,
        spec: Finetune,
        meaning: LabelMeaning,
        training: SliceData,
        validation: SliceData,
        devices: Devices,
        keeps: Literal["best", "last"] = "best",
        shows_lesion_N: np.ndarray | None = None,
    ) -> None:
        """`shows_lesion_N` says it of each training slice, for `oversample_foreground`; where none
        does, or it is None, all are drawn equally often."""
        self.keeps = keeps
        self.watched: dict[str, float] = {}
        self.meaning = meaning
        self.is_binary = spec.target == "binary"
        self.augmented = spec.augmentation.policy == "nnunet"
        self.training = training
        self.validation = validation
        self.devices = devices
        self.batch_size = spec.training.batch_size
        self.cell = spec.stream
        order_seed = seed_for(*self.cell, "order")
        everything = BatchOrder(len(training), self.batch_size, order_seed)
        self.order: BatchOrder | OversampledOrder = everything
        share = spec.oversample_foreground
        if share and shows_lesion_N is not None and shows_lesion_N.any():
            lesion_N = torch.from_numpy(np.flatnonzero(shows_lesion_N))
            self.order = OversampledOrder.of(everything, lesion_N, share)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The loss of the whole global batch, to which this rank adds the sums of its share."""
        return self.loss_of(model, *self.batch(step))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's share of the global batch, augmented, on the device: images and targets."""
        share = self.devices.share_of(self.batch_size)
        indices = self.order.indices(step)[share], self.order.indices(step + 1)[share]
        corners = self.training.corners(self.batch_size, generator_for(*self.cell, "place", step))
        batch = self.training.batch(*indices, None if corners is None else corners[share])
        images_NCHW, labels_NHW = batch.images_NCHW, batch.labels_NHW
        if self.augmented:
            generator = generator_for(*self.cell, "augment", step)
            channels, size = images_NCHW.shape[1], images_NCHW.shape[2:]
            table = augment.table_of(size)
            draws = augment.draw(table, self.batch_size, channels, generator, size)
            images_NCHW, labels_NHW = augment.apply(images_NCHW, labels_NHW, draws[share])
        return images_NCHW, self._targets(labels_NHW)

    def loss_of(self, model: nn.Module, images_NCHW: Tensor, targets_NHW: Tensor) -> Tensor:
        """The loss of a batch; its images and targets decide it, and no random number."""
        sums = segmentation_sums(model(images_NCHW), targets_NHW, self.meaning.has_ignored)
        return segmentation_loss(sums_over_ranks(sums))

    def validation_loss(self, model: nn.Module) -> float:
        """The loss of all validation slices taken as one batch, not augmented."""
        classes = 1 if self.is_binary else len(self.meaning.classes)
        sums = SegmentationSums.of_nothing(classes, self.devices.device)
        for _, _, batch in self.validation.validation_batches(self.devices):
            logits_NCHW = model(batch.images_NCHW)
            targets_NHW = self._targets(batch.labels_NHW)
            sums += segmentation_sums(logits_NCHW, targets_NHW, self.meaning.has_ignored)
        return segmentation_loss(sums_over_ranks(sums)).item()

    def _targets(self, labels_NHW: Tensor) -> Tensor:
        if not self.is_binary:
            return labels_NHW
        lesion_NHW: Tensor = self.meaning.is_lesion(labels_NHW).long()
        if not self.meaning.has_ignored:
            return lesion_NHW
        return lesion_NHW.where(self.meaning.is_known(labels_NHW), IGNORED)
