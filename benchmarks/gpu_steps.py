"""Ways of doing one training step of the denoising network, to be compared and timed on a GPU.

All train the same network on the same batches with the loop's own optimiser settings. What is not
the loop's default is here, and only here, until it has been measured and found equal.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.loops import Work, loop
from fewscan.experiments.devices import Devices
from fewscan.experiments.schemes.restoration import Clean
from fewscan.experiments.train import Loop


@dataclass
class Variant:
    """A way of training."""

    step: Callable[[], Tensor]
    """Does one step; the loss, on the device."""
    first_losses: list[float] = field(default_factory=list)


def variants(work: Work, devices: Devices, folder: Path) -> dict[str, Callable[[], Variant]]:
    """Name → maker. A maker may raise, where the device or a compiler does not do it."""

    def made(name: str, precision: str = "bf16") -> Loop:
        return loop("pretrain", work, precision, devices, folder / name)  # type: ignore[arg-type]

    return {
        "bf16 eager": lambda: Variant(_of_loop(made("eager"))),
        "fp32 eager": lambda: Variant(_of_loop(made("fp32", "fp32"))),
        "bf16 channels-last": lambda: Variant(_of_loop(_channels_last(made("last")))),
        "bf16 compiled": lambda: Variant(_of_loop(_compiled(made("compiled")))),
        "bf16 compiled channels-last": lambda: Variant(
            _of_loop(_compiled(_channels_last(made("both"))))
        ),
        "bf16 CUDA graph": lambda: Variant(_graphed(made("graph"), devices)),
        "bf16 channels-last CUDA graph": lambda: Variant(
            _graphed(_channels_last(made("last graph")), devices)
        ),
    }


def _of_loop(made: Loop) -> Callable[[], Tensor]:
    def step() -> Tensor:
        before = made.state.window[0].clone()
        made.step()
        return made.state.window[0] - before

    return step


def _channels_last(made: Loop) -> Loop:
    made.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def _compiled(made: Loop) -> Loop:
    on_gpu = made.devices.device.startswith("cuda")
    # On a CPU this is about whether the network can be traced at all.
    backend = "inductor" if on_gpu else "aot_eager"
    made.parallel = torch.compile(made.model, backend=backend)  # type: ignore[assignment]
    return made


def _graphed(made: Loop, devices: Devices) -> Callable[[], Tensor]:
    """Forward, backward, clipping and optimiser as one CUDA graph; the batch is copied into it."""
    if not devices.device.startswith("cuda"):
        raise RuntimeError("CUDA graphs need CUDA")
    model, training = made.model, made.training
    optimiser = torch.optim.Adam(
        model.parameters(),
        torch.tensor(training.lr, device=devices.device),
        weight_decay=training.weight_decay,
        amsgrad=True,
        fused=True,
        capturable=True,
    )
    inputs = tuple(tensor.clone() for tensor in _batch(made, 0))
    loss = torch.zeros((), device=devices.device)

    def whole_step() -> None:
        optimiser.zero_grad(set_to_none=False)
        # A graph may not hold the casts that autocast remembers from outside of it.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            found = made.task.loss_of(model, inputs[0], Clean(*inputs[1:]))  # type: ignore[attr-defined]
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimiser.step()
        loss.copy_(found.detach())

    graph = _captured(whole_step, model, optimiser)
    steps = iter(range(10**9))

    def step() -> Tensor:
        for into, new in zip(inputs, _batch(made, next(steps)), strict=True):
            into.copy_(new)
        graph.replay()
        return loss.clone()

    return step


def _batch(made: Loop, step: int) -> tuple[Tensor, ...]:
    """Noisy slices, clean ones and their foreground."""
    noisy_NCHW, clean = made.task.batch(step)  # type: ignore[attr-defined]
    return noisy_NCHW, *clean


def _captured(
    whole_step: Callable[[], None], model: nn.Module, optimiser: torch.optim.Optimizer
) -> torch.cuda.CUDAGraph:
    """Warm up on another stream, as CUDA asks for, capture, and take back what that trained."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            whole_step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        whole_step()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(weights[name])
        for state in optimiser.state.values():
            for tensor in state.values():
                tensor.zero_()
    return graph
