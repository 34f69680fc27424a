"""Where a run executes: CPU or CUDA, one process or several ranks of DDP.

Nothing in here may change what a run computes beyond rounding. Process groups are made by whoever
starts the ranks (Ray Train in a sweep, `launch` in a bare process), not by the stages.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from fewscan.experiments.spec import Precision, Residency
from fewscan.storage.code_digest import code_digest, package_version
from fewscan.storage.errors import DeviceError

RANKS_MEET_WITHIN = timedelta(minutes=10)


class Preempted(BaseException):
    """The place is being taken away; the checkpoint is written. Not an error, so no `Exception`."""


class PeerLost(BaseException):
    """Another rank has gone, with its node or by an error of its own. Not this rank's error."""


def never() -> bool:
    """Nobody takes this place away."""
    return False


@contextlib.contextmanager
def tiny_numbers_as_zero() -> Iterator[None]:
    """Take numbers below 1e-38 as 0 for the block: in this thread, and in those that it begins.

    Of a confident network's gradients some are so small, and a CPU computes with each of them a
    hundred times as long (docs/performance.md). For trainings alone: scipy's trees of points, by
    which surfaces are compared, halve intervals until they are 0, and never end so.
    """
    before = not (torch.full((1,), 1e-30) * 1e-10).any()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@dataclass(frozen=True)
class Devices:
    """The place of one rank of a run."""

    device: str = "cpu"
    """As torch writes it: "cpu", "cuda:0"."""
    threads: int = 1
    """CPU threads of torch in this rank; the bits of a CPU run depend on it."""
    rank: int = 0
    world_size: int = 1
    gpu_share: float = 1.0
    """Of the GPU; other runs have the rest."""
    residency: Residency = "auto"
    """Where slices are kept, see `experiments.residency`."""
    node_folders: tuple[Path, ...] = ()
    """Folders of this node alone, in memory or on its disk, that runs share; whoever gives them
    removes them."""
    checkpoint_every_s: float = 60.0
    """Seconds of work that a kill may cost."""
    sample_every_s: float | None = None
    """Seconds between two samples of what the run takes of its machine; None: none are taken."""
    should_stop: Callable[[], bool] = never
    """Asked every few seconds; if it says yes to any rank, all write a checkpoint together (the
    first does) and raise `Preempted`."""

    @property
    def is_first(self) -> bool:
        """Only the first rank writes to the run folder."""
        return self.rank == 0

    def set_up(self) -> None:
        """Make this process compute reproducibly here. Raises `DeviceError` if CUDA is absent."""
        torch.set_num_threads(self.threads)
        if self.device.startswith("cuda"):
            require_cuda()
            torch.cuda.set_device(self.device)
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)  # says which operation is not

    def share_of(self, batch_size: int) -> slice:
        """This rank's part of a global batch."""
        each, rest = divmod(batch_size, self.world_size)
        if rest:
            raise DeviceError(
                f"a batch of {batch_size} cannot be shared by {self.world_size} devices",
                where="batch_size",
                expected="a multiple of the number of devices",
                remedy="change batch_size or resources.*.devices",
            )
        return slice(self.rank * each, (self.rank + 1) * each)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model itself on one device, its DDP twin on several."""
        return model if self.world_size == 1 else DistributedDataParallel(model)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of every rank's `value`, on every rank (not differentiable)."""
        if self.world_size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def of_all_ranks(self, value: Tensor) -> Tensor:
        """Every rank's `value`, one after the other along a first axis, on every rank."""
        own = value.new_zeros(self.world_size, *value.shape)
        own[self.rank] = value
        return self.sum_over_ranks(own)

    def wait_for_all(self) -> None:
        """Return once every rank has come here."""
        if self.world_size > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def among_peers(self) -> Iterator[None]:
        """Raise `PeerLost` for what torch raises in the block when another rank has gone."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and _is_of_a_lost_peer(error):
                raise PeerLost(str(error)) from error
            raise

    def dtype(self, precision: Precision) -> torch.dtype:
        """What the weights are kept in: float32, or float64 for exact comparisons."""
        return torch.float64 if precision == "fp64" else torch.float32

    def description(self) -> dict[str, Any]:
        """Where this attempt runs, for the record: nothing in it is part of the result."""
        cuda = self.device.startswith("cuda")
        return {
            "host": platform.node(),
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "ranks": self.world_size,
            "threads": self.threads,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }

    def computed_precision(self, precision: Precision) -> Literal["bf16", "fp32", "fp64"]:
        """What the wish comes to here: auto is bf16 where the device has it natively."""
        if precision != "auto":
            return precision
        return "bf16" if has_native_bf16(self.device.partition(":")[0]) else "fp32"

    def environment(self, precision: Precision) -> dict[str, Any]:
        """What computes here in fact, for the record of a result: nothing of time or place."""
        return {
            "fewscan": package_version(),
            "code": code_digest(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "device": self.device.partition(":")[0],
            "precision": self.computed_precision(precision),
            "ranks": self.world_size,
            "threads": self.threads,
        }

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """bf16 autocast, if that is what the precision comes to here."""
        if self.computed_precision(precision) != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16)


def _is_of_a_lost_peer(error: RuntimeError) -> bool:
    """The errors of NCCL and of the store have a class; gloo's are known by file names."""
    return isinstance(error, distributed.DistError) or "/gloo/" in str(error)


def has_native_bf16(kind: str) -> bool:
    """Whether "cpu" or "cuda" multiplies bf16 matrices in hardware here."""
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def require_cuda() -> None:
    """Raise `DeviceError` unless torch sees a CUDA device."""
    if not torch.cuda.is_available():
        raise DeviceError(
            f"CUDA was asked for, and torch {torch.__version__} sees no CUDA device",
            where="resources.device",
            expected="an NVIDIA driver and a CUDA build of torch, or device: cpu",
            remedy="set resources.device to auto or cpu, or install a CUDA build of torch",
        )


def launch(stage: Callable[[Devices], None], devices: Devices) -> None:
    """Run `stage` in `devices.world_size` new processes that share a process group.

    For bare processes, tests and profiles; a sweep leaves this to Ray Train. `stage` must be
    picklable. An error in any rank ends them all and is raised here.
    """
    with TemporaryDirectory() as folder:
        spawn(_rank_main, (stage, devices, Path(folder) / "meet"), nprocs=devices.world_size)


def _rank_main(
    rank: int, stage: Callable[[Devices], None], devices: Devices, meeting: Path
) -> None:
    with process_group(devices, rank, f"file://{meeting}"):
        device = f"cuda:{rank}" if devices.device.startswith("cuda") else "cpu"
        stage(replace(devices, rank=rank, device=device))


@contextlib.contextmanager
def process_group(devices: Devices, rank: int, url: str) -> Iterator[None]:
    """A process group for the block: NCCL between GPUs, gloo between CPUs."""
    backend = "nccl" if devices.device.startswith("cuda") else "gloo"
    distributed.init_process_group(
        backend, url, timeout=RANKS_MEET_WITHIN, rank=rank, world_size=devices.world_size
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
