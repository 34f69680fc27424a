"""The training loop, one for all stages.

Every random number is a function of (seed, step), so a run that is killed anywhere and goes on from
its checkpoint ends with the bits of a run that was never disturbed. A task says what a step's loss
is; the loop does the rest: optimiser, learning rate, validation, checkpoints, events.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fewscan.experiments.checkpoint import CheckpointWriter, TrainingState, load_state
from fewscan.experiments.devices import Devices, Preempted
from fewscan.experiments.health import Health
from fewscan.experiments.spec import Training
from fewscan.storage.errors import LossNotFiniteError
from fewscan.storage.runs import HEARTBEAT_EVERY_S, RunFolder

SGD_MOMENTUM = 0.99
"""nnU-Net's (Isensee et al. 2021)."""


class Task(Protocol):
    """What a network is taught."""

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The loss of this rank's share of the global batch of `step`: a scalar with a gradient.

        Must depend on nothing but the model, the step and what the task was made from. The mean of
        the gradients over ranks must be the gradient of the global batch.
        """

    def validation_loss(self, model: nn.Module) -> float:
        """The loss that chooses the model, the same number on every rank."""

    @property
    def watched(self) -> Mapping[str, float]:
        """Further numbers of the last validation, for the events."""

    @property
    def keeps(self) -> Literal["best", "last"]:
        """Whether that loss may choose the model, or the last one is kept."""


def learning_rate(training: Training, step: int) -> float:
    """The rate of `step`: torch's CosineAnnealingLR in closed form, going on past its T_max.

    Holzschuh et al. and Kascenas et al. leave T_max at 100 changes, 32 steps each, so their rate
    swings with a period of 6,400 steps; `lr_half_period` None goes down once, to the end.
    """
    half_period = training.lr_half_period or training.iterations
    changed_at = step // training.lr_step_every * training.lr_step_every
    return training.lr * (1 + math.cos(math.pi * changed_at / half_period)) / 2


@dataclass(frozen=True)
class Part:
    """Parameters that learn at the same rate."""

    begin: tuple[str, ...]
    """How their names begin. Each parameter belongs to one part."""
    rate: Callable[[int], float | None]
    """Step → their rate; None: they do not learn in it, and neither do the optimiser's moments. A
    function of the step alone, so that a run that goes on goes on at the same rate."""


def everything(training: Training) -> tuple[Part, ...]:
    """All parameters, at the rate that the settings say."""
    return (Part(("",), partial(learning_rate, training)),)


def train(
    model: nn.Module,
    task: Task,
    training: Training,
    folder: RunFolder,
    devices: Devices,
    facts: dict[str, Any],
    parts: Sequence[Part] = (),
) -> TrainingState:
    """Train `model` on this rank's device, from the folder's checkpoint if there is one.

    `facts` go into the event that opens the attempt; `parts` have rates of their own, none is
    `everything`. Returns the final state; its `best` are the
    weights that validation chose. Raises `LossNotFiniteError` if a loss or a gradient is not
    finite, `DiskFullError` if a checkpoint finds no room.
    """
    with CheckpointWriter(folder.checkpoint) as writer:
        loop = Loop(model, task, training, folder, devices, writer, parts)
        loop.begin(facts)
        while loop.state.step < training.iterations:
            loop.step()
            if _validates_after(loop.state.step, training):
                loop.validate()
            loop.look_at_the_clock()
        loop.checkpoint()
        loop.write_events()
        return loop.state


def _validates_after(step: int, training: Training) -> bool:
    return step % training.validate_every == 0 or step == training.iterations


class Loop:
    """The parts of a training that go on from step to step. The first rank alone writes."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        training: Training,
        folder: RunFolder,
        devices: Devices,
        writer: CheckpointWriter,
        parts: Sequence[Part] = (),
    ) -> None:
        self.model = model
        self.task = task
        self.training = training
        self.folder = folder
        self.devices = devices
        self.writer = writer
        self.unwritten: list[dict[str, Any]] = []
        self.parts = parts or everything(training)
        self.optimiser = make_optimiser(training, model, self.parts)
        self.state = self._resume()
        self.parallel = devices.parallel(model)
        self.last_beat = -math.inf
        self.last_checkpoint = self.last_look = time.monotonic()
        self.looked_at = self.look_at = self.state.step
        self.health = Health(model)

    def _resume(self) -> TrainingState:
        first = next(self.model.parameters())
        state = load_state(self.folder.checkpoint)
        if state is None:
            nothing = torch.zeros(2, dtype=first.dtype, device=first.device)
            return TrainingState(0, {}, {}, {}, 0, math.inf, nothing, 0)
        self.model.load_state_dict(state.model)
        self.optimiser.load_state_dict(state.optimiser)
        windows = state.window.to(first.device)
        same_ranks = len(windows) == self.devices.world_size
        state.window = windows[self.devices.rank] if same_ranks else windows.mean(dim=0)
        return state

    def begin(self, facts: dict[str, Any]) -> None:
        """Open an attempt in the events, after those that the checkpoint covers."""
        if self.devices.is_first:
            self.folder.truncate_events(self.state.events_bytes)
            attempt = self.devices.description() | facts
            self.folder.append_event("started", self.state.step, attempt=attempt)
        if self.devices.world_size > 1:
            self._group_gradients()

    def _group_gradients(self) -> None:
        """Let DDP see one backward pass, of which nothing is kept.

        After its first one it regroups the gradients, and with three ranks or more the grouping
        decides how their sums are rounded: the first step after a restart would differ.
        """
        with self.devices.autocast(self.training.precision):
            self.task.loss(self.parallel, self.state.step).backward()

    def step(self) -> None:
        """One step of the optimiser on the global batch."""
        rates = self._rates(self.state.step)
        self.optimiser.zero_grad()
        with self.devices.autocast(self.training.precision):
            loss = self.task.loss(self.parallel, self.state.step)
        loss.backward()
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate or 0.0
            if rate is None:  # a gradient of 0 would still move weights, by decay and by moments
                for parameter in group["params"]:
                    parameter.grad = None
        clip = self.training.clip_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if validates_next := _validates_after(self.state.step + 1, self.training):
            self.health.before_step()
        self.optimiser.step()
        if validates_next:
            self.health.after_step()
        self.state.window += torch.stack([loss.detach(), (norm > clip).to(loss.dtype)])
        self.health.look_at_gradient(norm, self.state.step)
        self.state.step += 1

    def _rates(self, step: int) -> list[float | None]:
        """Of the optimiser's groups, which are as many of each part."""
        rates = [part.rate(step) for part in self.parts]
        return [it for it in rates for _ in range(len(self.optimiser.param_groups) // len(rates))]

    def validate(self) -> None:
        """Validate, keep the model if it is the best so far, and note it for the events."""
        state = self.state
        with torch.no_grad(), self.devices.autocast(self.training.precision):
            validation_loss = self.task.validation_loss(self.model)
        train_loss, clipped = self._means_since_validation()
        self._require_finite(train_loss, validation_loss)
        if validation_loss < state.best_loss or self.task.keeps == "last":
            weights = self.model.state_dict().items()
            state.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights}
            state.best_step, state.best_loss = state.step, validation_loss
        values = {
            "train/loss": train_loss,
            "validation/loss": validation_loss,
            "lr": max(rate or 0.0 for rate in self._rates(state.step - 1)),
            "clipped_share": clipped,
        }
        if self.devices.is_first:
            values |= {**self.health.values(), **self.task.watched}
            self.unwritten.append({"step": state.step, "values": values})
            self.write_events(wait=False)

    def _means_since_validation(self) -> tuple[float, float]:
        """Training loss, and the share of steps whose gradient was clipped."""
        steps = (self.state.step - 1) % self.training.validate_every + 1
        total = self.devices.sum_over_ranks(self.state.window) / self.devices.world_size / steps
        self.state.window = torch.zeros_like(self.state.window)
        loss, clipped = total.tolist()
        return loss, clipped

    def _require_finite(self, train_loss: float, validation_loss: float) -> None:
        first = self.health.first_bad_step()
        if first is not None or not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            since = "" if first is None else f", gradients not since step {first + 1}"
            raise LossNotFiniteError(
                f"the loss is not finite at step {self.state.step}: training {train_loss}, "
                f"validation {validation_loss}{since}",
                where=self.folder.path,
                expected="finite losses and gradients",
                remedy="lower the learning rate, or set precision to fp32",
            )

    def look_at_the_clock(self) -> None:
        """Leave a heartbeat or a checkpoint if it is time; the result depends on neither.

        Raises `Preempted` if the place of any rank is being taken away.
        """
        self.write_events(wait=False)
        if self.state.step < self.look_at:
            return
        now = time.monotonic()
        checkpoint_due = now - self.last_checkpoint >= self.devices.checkpoint_every_s
        stop = False
        if now - self.last_beat >= HEARTBEAT_EVERY_S:
            self.last_beat = now
            stop = self.devices.should_stop()
            if self.devices.is_first:
                self.folder.beat(self.state.step, self.training.iterations)
        if self.devices.world_size > 1:
            stop, checkpoint_due = self._agree(stop, checkpoint_due, now)
        if stop or checkpoint_due:
            self.checkpoint()
        if stop:
            self.write_events()
            raise Preempted

    def _agree(self, stop: bool, checkpoint_due: bool, now: float) -> tuple[bool, bool]:
        """What any rank says, on every rank; and the step at which they ask each other again.

        Asking stalls the device, so it is done as rarely as one rank alone would look at its clock.
        """
        each_s = (now - self.last_look) / max(self.state.step - self.looked_at, 1)
        wait_s = min(HEARTBEAT_EVERY_S, self.devices.checkpoint_every_s)
        steps = max(1, int(wait_s / each_s)) if self.devices.is_first and each_s > 0 else 1
        self.last_look, self.looked_at = now, self.state.step
        first = steps if self.devices.is_first else 0
        said = torch.tensor([stop, checkpoint_due, first], device=self.devices.device)
        stops, dues, steps = self.devices.sum_over_ranks(said).tolist()
        self.look_at = self.state.step + steps
        return stops > 0, dues > 0

    def checkpoint(self) -> None:
        """Begin to write down what is needed to go on from here; all ranks come here at once."""
        windows = self.devices.of_all_ranks(self.state.window)
        if self.devices.is_first:
            self.write_events()
            state = self.state
            state.model, state.optimiser = self.model.state_dict(), self.optimiser.state_dict()
            state.events_bytes = self.folder.events.stat().st_size
            self.writer.begin(replace(state, window=windows))
        self.last_checkpoint = time.monotonic()

    def write_events(self, wait: bool = True) -> None:
        """Write the event of a checkpoint that is in place, and then what happened after it.

        A line counts once a later one says that a checkpoint covers it; so what happened while a
        checkpoint was being written may not stand before that. Raises `DiskFullError` if the
        checkpoint found no room.
        """
        written = self.writer.ended(wait)
        if written is not None:
            self.folder.append_event("checkpoint", written)
        if not self.writer.is_writing:
            for metrics in self.unwritten:
                self.folder.append_event("metrics", **metrics)
            self.unwritten.clear()


def make_optimiser(
    training: Training, model: nn.Module, parts: Sequence[Part] = ()
) -> torch.optim.Optimizer:
    """The optimiser of what learns, with one or two groups for each part in turn; each is fused, so
    that a step costs one pass."""
    lr, decay = training.lr, training.weight_decay
    parameters: Any = []
    for part in parts or everything(training):
        named = [it for it in model.named_parameters() if it[0].startswith(part.begin)]
        learning = [it for _, it in named if it.requires_grad]
        if training.decay_norms:
            parameters.append({"params": learning})
        else:  # gains, shifts and biases have one axis
            filters, others = (
                [it for it in learning if (it.ndim > 1) == many] for many in (True, False)
            )
            parameters += [{"params": filters}, {"params": others, "weight_decay": 0.0}]
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, lr, SGD_MOMENTUM, weight_decay=decay, nesterov=True, fused=True
        )
    kind = torch.optim.AdamW if training.optimiser == "adamw" else torch.optim.Adam
    return kind(parameters, lr, weight_decay=decay, amsgrad=True, fused=True)
