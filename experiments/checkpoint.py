"""What torch writes into a run folder: the checkpoint to go on from, the model that was kept.

A checkpoint is one file, so it is consistent by construction: weights, optimiser, best model so
far, step, and how far the events reached. Both files are loaded with `weights_only=True`.
"""

import io
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from fewscan.experiments.unet import UNet
from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import RunError

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
    window: Tensor
    """Since the last validation, the sum of the training losses and the number of steps whose
    gradient was clipped; in a file, a row for each rank."""
    events_bytes: int
    """Size of the events file that goes with this state."""


class CheckpointWriter:
    """Writes checkpoints while the training goes on: a step waits for a copy in memory, no more.

    At the end of its `with` block a file that is being written is waited for, whatever happened.
    """

    def __init__(self, path: Path) -> None:
        """For the checkpoint at `path`, a file that nobody else writes."""
        self._path = path
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[int] | None = None
        self._copies: dict[tuple[str, ...], Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True)

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint was begun whose end nobody has seen."""
        return self._writing is not None

    def begin(self, state: TrainingState) -> None:
        """Copy the state, and write the copy from another thread, atomically."""
        assert self._writing is None
        best = {"best": state.best}  # a validation replaces these tensors, and never changes them
        copy = self._copy(_fields(state) | {"best": None}) | best
        copied = _recorded(state.window.device)
        self._writing = self._thread.submit(self._write, copy, copied)

    def ended(self, wait: bool) -> int | None:
        """The step of the checkpoint that is in place now; None if there is no news.

        Raises `DiskFullError` if it found no room; the old checkpoint is then whole.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def _copy(self, value: Any, *name: str) -> Any:
        """A copy in memory that the next call will write over; pinned, if it comes from a GPU."""
        if isinstance(value, dict):
            return {key: self._copy(inner, *name, str(key)) for key, inner in value.items()}
        if not isinstance(value, Tensor):
            return value
        if name not in self._copies:
            self._copies[name] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        copy = self._copies[name]
        if value.is_cuda:
            return copy.copy_(value, non_blocking=True)
        # One thread: torch's would wait for each other at every tensor, long on a busy machine.
        np.copyto(copy.numpy(), value.detach().numpy())
        return copy

    def _write(self, content: dict[str, Any], copied: torch.cuda.Event | None) -> int:
        if copied is not None:
            copied.synchronize()
        _save(self._path, content)
        step: int = content["step"]
        return step


def _recorded(device: torch.device) -> torch.cuda.Event | None:
    """An event after all that this GPU was asked to do; None for a CPU, which does it at once."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def _fields(state: TrainingState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def load_state(path: Path) -> TrainingState | None:
    """The checkpoint on the CPU, or None if there is none. Raises `RunError` if it is damaged."""
    return TrainingState(**_load(path)) if path.exists() else None


def save_model(
    path: Path, model: UNet, weights: Weights, around: Mapping[str, Tensor] | None = None
) -> None:
    """Write the weights together with the shape of the network they belong to.

    `around` are those of a module around it, which its anomaly score needs: see `weights_around`.
    """
    content = {"network": model.shape.to_json(), "weights": _on_cpu(weights)}
    if around:
        content["around"] = _on_cpu(around)
    _save(path, content)


def _on_cpu(weights: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.cpu() for name, tensor in weights.items()}


def weights_around(network: nn.Module, body: UNet) -> Weights:
    """The weights of a network that are not those of the body in it; none if it is the body."""
    own = {id(tensor) for tensor in body.state_dict(keep_vars=True).values()}
    named = network.state_dict(keep_vars=True).items()
    return {name: tensor.detach() for name, tensor in named if id(tensor) not in own}


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


def load_around(path: Path) -> Weights:
    """What `save_model` was given as `around`; none if it was given none.

    Raises `RunError` if the file is damaged.
    """
    around: Weights = _load(path).get("around", {})
    return around


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
