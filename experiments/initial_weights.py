"""The network that a training starts from: random weights, or those of another run."""

from typing import Any

import torch

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.devices import Devices
from fewscan.experiments.schedules import learns
from fewscan.experiments.seeds import seed_for
from fewscan.experiments.spec import Finetune, Pretrain
from fewscan.experiments.unet import UNet, load_for_transfer, require_same_tensors
from fewscan.storage.runs import RunFolder


def initial_network(
    spec: Pretrain | Finetune,
    in_channels: int,
    out_channels: int,
    folder: RunFolder,
    devices: Devices,
) -> tuple[UNet, dict[str, Any]]:
    """The network on its device, and what it took over from which run, for the record.

    Random weights are drawn on the CPU from the run's `stream`, the head's last: they are the same
    everywhere, and arms of a cell have the same head. A fine-tuning takes what `transfer` says and
    never the head; a pre-training that goes on from another takes the head too. Raises `RunError`
    if the parent's network does not fit.
    """
    skips = spec.scheme.skips if isinstance(spec, Pretrain) else True
    level = spec.probe_level if isinstance(spec, Finetune) else 0
    it = spec.network
    dims = it.dims, it.flat_levels, it.patch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(*spec.stream, "weights"))
        model = UNet(in_channels, out_channels, it.width, it.depth, skips, level, *dims)
    model = model.to(devices.dtype(spec.training.precision))  # before weights are loaded into it
    facts: dict[str, Any] = {"init": spec.init or "scratch", "loaded": [], "replaced": []}
    if spec.init is not None:
        weights = load_model(folder.sibling(spec.init).model).state_dict()
        if isinstance(spec, Finetune):
            report = load_for_transfer(model, weights, spec.transfer)
            facts |= {"loaded": list(report.loaded), "replaced": list(report.replaced)}
        else:
            fit = "start from a run with the same network and modalities"
            require_same_tensors(model.state_dict(), weights, remedy=fit)
            model.load_state_dict(weights)
            facts["loaded"] = list(weights)
    if isinstance(spec, Finetune):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(learns(spec)))
    return model.to(devices.device), facts
