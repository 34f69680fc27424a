"""What torch writes into a run folder: the checkpoint to go on from, the model that was kept.

A checkpoint is one file, so it is consistent by construction: weights, optimiser, best model so
far, step, and how far the events reached. Both files are loaded with `weights_only=True`.
"""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.unet import UNet
from storage.atomic import write_bytes
from storage.errors import RunError

Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """Where a training stands after `step` steps."""

    step: int
    model: Weights
    optimiser: dict[str, Any]
    best: Weights
    """The weights of the lowest validation loss so far."""
    best_step: int
    best_loss: float
    window_loss: Tensor
    """Sum of the training losses since the last validation; in a file, one for each rank."""
    events_bytes: int
    """Size of the events file that goes with this state."""


def save_state(path: Path, state: TrainingState) -> None:
    """Write a checkpoint, atomically. Raises `DiskFullError`; the old checkpoint is then whole."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    _save(path, fields)


def load_state(path: Path) -> TrainingState | None:
    """The checkpoint on the CPU, or None if there is none. Raises `RunError` if it is damaged."""
    return TrainingState(**_load(path)) if path.exists() else None


def save_model(path: Path, model: UNet, weights: Weights) -> None:
    """Write the weights together with the shape of the network they belong to."""
    on_cpu = {name: tensor.cpu() for name, tensor in weights.items()}
    _save(path, {"network": asdict(model.shape), "weights": on_cpu})


def load_model(path: Path) -> UNet:
    """The kept model of a run, on the CPU, in evaluation mode.

    Raises `RunError` if the file is missing or damaged.
    """
    if not path.exists():
        raise RunError(
            "the model of a run is missing",
            where=path,
            expected="the file that a finished training leaves",
            remedy="delete the run's result.json and sweep again",
        )
    content = _load(path)
    weights: Weights = content["weights"]
    model = UNet(**content["network"]).to(next(iter(weights.values())).dtype)
    model.load_state_dict(weights)
    return model.eval()


def _save(path: Path, content: dict[str, Any]) -> None:
    # Into memory first: torch reports a full disk as an error about positions in a stream.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RunError(
            f"the file cannot be read back ({type(error).__name__}: {error})",
            where=path,
            expected="a file written by fewscan, which writes it whole or not at all",
            remedy="the disk or a hand has changed it: delete it, and the run starts from its "
            "beginning when you sweep again",
        ) from error
    assert isinstance(content, dict)
    return content
