"""The loop: golden losses, interrupted = uninterrupted, one rank = two ranks."""

import errno
import hashlib
import math
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewscan.experiments import augment, checkpoint
from fewscan.experiments import train as train_module
from fewscan.experiments.checkpoint import TrainingState, load_state
from fewscan.experiments.data import Batch, SliceData
from fewscan.experiments.devices import Devices, PeerLost, Preempted, launch
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.pretrain import PretextTask
from fewscan.experiments.residency import InMemory
from fewscan.experiments.schedules import parts_of
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.denoise import Noise
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.spec import Finetune, Network, Pretrain, Training
from fewscan.experiments.train import Task, learning_rate, make_optimiser, train
from fewscan.experiments.unet import UNet
from fewscan.storage.errors import DeviceError, DiskFullError, RunError
from fewscan.storage.labels import LabelMeaning
from fewscan.storage.runs import RunFolder

TRAINING = Training(
    iterations=6, validate_every=2, batch_size=4, lr=1e-2, precision="fp64", lr_half_period=3
)
NETWORK = Network(width=4, depth=2)
PRETRAIN = Pretrain("data", NETWORK, TRAINING, Denoise(Noise(resolution=4)))
FINETUNE = Finetune("data", NETWORK, "multiclass", 1, TRAINING, seed=0)


def slices(count: int, seed: int, dtype: torch.dtype = torch.float64) -> SliceData:
    """Discs of tissue with a square lesion of two classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count, 2, 16, 16), generator=generator)
    rows = torch.arange(16) - 7.5
    images *= (rows[:, None] ** 2 + rows**2 < 49).float()
    labels = torch.zeros((count, 16, 16), dtype=torch.uint8)
    labels[:, 5:9, 5:9], labels[:, 6:8, 6:8] = 1, 2
    images[:, 0] += labels.float() / 2
    table = SliceTable.unrelated(2, (16, 16), count)
    return SliceData(InMemory(images.half(), labels), table, dtype, "cpu")


def train_once(spec: Pretrain | Finetune, folder: RunFolder, devices: Devices) -> TrainingState:
    devices.set_up()
    dtype = devices.dtype(spec.training.precision)
    data = slices(10, seed=1, dtype=dtype), slices(5, seed=2, dtype=dtype)
    if isinstance(spec, Pretrain):
        task: Task = PretextTask(spec, *data, devices)
    else:
        task = SegmentTask(spec, LabelMeaning(("a", "b")), *data, devices)
    outputs = 2 if isinstance(spec, Pretrain) else 3
    model, facts = initial_network(spec, 2, outputs, folder, devices)
    parts = parts_of(spec, spec.training) if isinstance(spec, Finetune) else ()
    return train(model, task, spec.training, folder, devices, facts, parts)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def losses(folder: RunFolder) -> list[float]:
    metrics = [e.values for e in folder.committed_events() if e.kind == "metrics"]
    return [value for m in metrics for value in (m["train/loss"], m["validation/loss"])]


GOLDEN = {
    "pretrain": [0.292984599, 0.199776521, 0.183893561, 0.185960450, 0.173729468, 0.142324925],
    "finetune": [2.339596737, 2.088698028, 2.054331104, 2.048739752, 2.025896905, 1.902329791],
}
"""Training and validation loss at steps 2, 4 and 6, in double precision, so that they hold on any
processor. They change only with the protocol; then print `losses` and look why."""


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_golden_losses(spec: Pretrain | Finetune, folder: RunFolder) -> None:
    train_once(spec, folder, Devices())
    assert losses(folder) == pytest.approx(GOLDEN[spec.kind], rel=1e-6)


def plain_seed(*purpose: object) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)


def plain_losses(spec: Pretrain | Finetune) -> list[float]:
    """The same training as a loop of a few lines, which shares networks and transforms alone."""
    kind, training, validation = spec.kind, slices(10, seed=1), slices(5, seed=2)
    order_seed = plain_seed(kind, 0, "order").initial_seed()
    epochs = [torch.randperm(10, generator=plain_seed(order_seed, "order", n)) for n in range(3)]
    order = torch.cat(epochs)
    torch.manual_seed(plain_seed(kind, 0, "weights").initial_seed())
    model = UNet(2, 2 if kind == "pretrain" else 3, width=4, depth=2).double()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-5, amsgrad=True)

    def denoising(batch: Batch, *purpose: object) -> Tensor:
        """Noise on 4×4, bilinear, rolled, inside the foreground, where the error counts."""
        clean, generator = batch.images_NCHW, plain_seed(kind, 0, *purpose)
        inside = clean.sum(dim=1, keepdim=True) > 0.01
        coarse = (torch.randn((len(clean), 2, 4, 4), generator=generator) * 0.2).double()
        shift = [int(torch.randint(16, (), generator=generator)) for _ in range(2)]
        noise = F.interpolate(coarse, (16, 16), mode="bilinear", align_corners=True)
        outputs = model(clean + noise.roll(shift, dims=(2, 3)) * inside)
        return ((outputs - clean).square() * inside).mean()

    def segmenting(batch: Batch, *purpose: object) -> Tensor:
        """Cross-entropy + 1 − mean soft Dice, augmented unless it is validated."""
        images, labels = batch.images_NCHW, batch.labels_NHW
        if purpose[0] == "augment":
            draws = augment.draw(augment.NNUNET, 4, 2, plain_seed(kind, 0, *purpose))
            images, labels = augment.apply(images, labels, draws)
        logits = model(images)
        p, t = logits.softmax(dim=1), F.one_hot(labels, 3).movedim(-1, 1)
        both, sums = ((x[:, 1:]).sum(dim=(0, 2, 3)) for x in (p * t, p + t))
        dice = (2 * both + 1e-5) / (sums + 1e-5)
        return F.cross_entropy(logits, labels) + 1 - dice.mean()

    loss = denoising if kind == "pretrain" else segmenting
    purpose = "draw" if kind == "pretrain" else "augment"
    found, window = [], []
    for step in range(6):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 3)) / 2
        optimiser.zero_grad()
        now = loss(training.batch(order[4 * step : 4 * step + 4]), purpose, step)
        now.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        window.append(now.item())
        if step % 2 == 1:
            with torch.no_grad():
                at_validation = loss(validation.batch(torch.arange(5)), "validation draw", 0)
            found += [sum(window) / 2, at_validation.item()]
            window = []
    return found


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_the_golden_losses_are_those_of_a_plain_loop(spec: Pretrain | Finetune) -> None:
    assert plain_losses(spec) == pytest.approx(GOLDEN[spec.kind], rel=1e-6)


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, amsgrad=True),
    "sgd": partial(torch.optim.SGD, momentum=0.99, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_does_the_steps_of_torchs_plain_one(name: str) -> None:
    training = replace(TRAINING, optimiser=name, lr=0.03, weight_decay=0.1)
    torch.manual_seed(0)
    ours, plain = (nn.Linear(3, 2, dtype=torch.float64) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    inputs = torch.randn(5, 3, dtype=torch.float64)
    one = make_optimiser(training, ours)
    other = OPTIMISERS[name](plain.parameters(), lr=0.03, weight_decay=0.1)
    for _ in range(4):
        for model, optimiser in ((ours, one), (plain, other)):
            optimiser.zero_grad()
            model(inputs).square().mean().backward()
            optimiser.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_optimisers_differ() -> None:
    """So that the setting is heard at all: each trains to another loss."""
    found = set()
    for name in OPTIMISERS:
        with TemporaryDirectory() as place:
            training = replace(TRAINING, optimiser=name, weight_decay=0.1)
            train_once(replace(PRETRAIN, training=training), RunFolder(Path(place)), Devices())
            found.add(losses(RunFolder(Path(place)))[-1])
    assert len(found) == len(OPTIMISERS)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    training = replace(TRAINING, optimiser=name, precision="fp32")
    spec = replace(PRETRAIN, training=training)
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    whole.path.mkdir()
    killed.path.mkdir()
    expected = train_once(spec, whole, Devices())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretextTask, "loss", dying_at(3, PretextTask.loss))
        with pytest.raises(Killed):
            train_once(spec, killed, Devices(checkpoint_every_s=0))
    state = train_once(spec, killed, Devices())
    assert losses(killed) == losses(whole)
    assert all(torch.equal(state.model[k], expected.model[k]) for k in expected.model)


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_training_learns(spec: Pretrain | Finetune, folder: RunFolder) -> None:
    longer = replace(spec.training, iterations=60, validate_every=10, lr_half_period=None)
    state = train_once(replace(spec, training=longer), folder, Devices())
    assert losses(folder)[-1] < 0.8 * losses(folder)[1]
    assert state.best_loss == min(losses(folder)[1::2])


class Killed(BaseException):
    """As SIGKILL: nothing in the code under test catches it."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
@settings(max_examples=5, deadline=None)
@given(kills=st.lists(st.integers(0, 5), max_size=3), every=st.booleans())
def test_interrupted_equals_uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
    spec: Pretrain | Finetune,
    precision: str,
    kills: list[int],
    every: bool,
) -> None:
    """Killed in any steps, with checkpoints after each step or none at all: the same bits."""
    spec = replace(spec, training=replace(spec.training, precision=precision))
    root = tmp_path_factory.mktemp("kill")
    whole, killed = RunFolder(root / "whole"), RunFolder(root / "killed")
    whole.path.mkdir()
    killed.path.mkdir()
    expected = train_once(spec, whole, Devices())
    devices = Devices(checkpoint_every_s=0.0 if every else math.inf)
    task = PretextTask if spec.kind == "pretrain" else SegmentTask
    for kill_at in kills:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "loss", dying_at(kill_at, task.loss))
            with pytest.raises(Killed):
                train_once(spec, killed, devices)
    state = train_once(spec, killed, devices)
    assert losses(killed) == losses(whole)
    assert (state.best_step, state.best_loss) == (expected.best_step, expected.best_loss)
    assert all(torch.equal(state.best[k], expected.best[k]) for k in expected.best)
    assert all(torch.equal(state.model[k], expected.model[k]) for k in expected.model)


def test_a_place_that_is_taken_away_leaves_a_checkpoint(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked at each heartbeat; what was computed until then is kept, and it is no error."""
    monkeypatch.setattr("fewscan.experiments.train.HEARTBEAT_EVERY_S", 0.0)
    whole = RunFolder(folder.path.with_name("whole"))
    whole.path.mkdir()
    train_once(PRETRAIN, whole, Devices())
    answers = iter([False, False, True])
    devices = Devices(checkpoint_every_s=math.inf, should_stop=lambda: next(answers))
    with pytest.raises(Preempted), folder.owned():
        train_once(PRETRAIN, folder, devices)
    assert not folder.error.exists()
    assert [e.step for e in folder.committed_events() if e.kind == "checkpoint"] == [3]
    train_once(PRETRAIN, folder, Devices())
    assert losses(folder) == losses(whole)


def dying_at(step_to_die: int, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def dying(task: object, model: nn.Module, step: int) -> Tensor:
        if step >= step_to_die:
            raise Killed
        return loss(task, model, step)

    return dying


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_two_ranks_equal_one(spec: Pretrain | Finetune, tmp_path: Path) -> None:
    """The same global batches, noise and augmentation, so the same losses up to rounding."""
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    one.path.mkdir()
    two.path.mkdir()
    train_once(spec, one, Devices())
    launch(partial(train_once, spec, two), Devices(world_size=2))
    assert losses(two) == pytest.approx(losses(one), rel=1e-9)
    assert len(losses(two)) == 6


def train_whole_stop_and_resume(
    spec: Pretrain, whole: RunFolder, stopped: RunFolder, devices: Devices
) -> None:
    """In each rank; the last one receives the stop at its third look, and no other hears of it."""
    train_once(spec, whole, devices)
    train_module.HEARTBEAT_EVERY_S = 0.0  # type: ignore[misc]  # this is a process of its own
    answers = iter([False, False, True])
    last = devices.rank == devices.world_size - 1
    stopping = replace(devices, should_stop=lambda: last and next(answers))
    with pytest.raises(Preempted):
        train_once(spec, stopped, stopping)
    devices.wait_for_all()  # the first rank may still be writing
    train_once(spec, stopped, devices)


def test_ranks_stop_together_and_end_with_the_same_bits(tmp_path: Path) -> None:
    """Stopped between two validations, so that each rank's window of losses must come back.

    Three ranks, because a sum of two does not depend on its order.
    """
    spec = replace(PRETRAIN, training=replace(TRAINING, precision="fp32", batch_size=6))
    whole, stopped = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    whole.path.mkdir()
    stopped.path.mkdir()
    devices = Devices(world_size=3, checkpoint_every_s=math.inf)
    launch(partial(train_whole_stop_and_resume, spec, whole, stopped), devices)
    assert [e.step for e in stopped.committed_events() if e.kind == "started"] == [0, 3]
    assert losses(stopped) == losses(whole)
    first, second = (load_state(folder.checkpoint) for folder in (whole, stopped))
    assert first is not None
    assert second is not None
    assert all(torch.equal(first.model[k], second.model[k]) for k in first.model)
    assert torch.equal(first.window, second.window)


def meet_until_the_other_leaves(folder: RunFolder, devices: Devices) -> None:
    def meet() -> None:
        with folder.owned(), devices.among_peers():
            while True:
                devices.sum_over_ranks(torch.ones(1))

    if devices.is_first:
        with pytest.raises(PeerLost):
            meet()


def test_a_rank_whose_peer_has_gone_has_not_failed(folder: RunFolder) -> None:
    launch(partial(meet_until_the_other_leaves, folder), Devices(world_size=2))
    assert not folder.error.exists()


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(DeviceError, match="batch of 4 cannot be shared by 3"):
        Devices(world_size=3).share_of(4)


def test_a_loss_that_is_not_finite_ends_the_run(folder: RunFolder) -> None:
    wild = replace(PRETRAIN, training=replace(TRAINING, lr=1e200, clip_norm=1e200))
    with pytest.raises(RunError, match=r"(?s)not finite at step 2.*lower the learning rate"):
        train_once(wild, folder, Devices())


def test_a_damaged_checkpoint_is_named(folder: RunFolder) -> None:
    train_once(PRETRAIN, folder, Devices())
    folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"(?s)cannot be read back.*checkpoint\.pt.*delete it"):
        train_once(PRETRAIN, folder, Devices())


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on(folder: RunFolder) -> None:
    """The fourth checkpoint finds no room; with room again the run ends as if there had been."""
    whole = RunFolder(folder.path.with_name("whole"))
    whole.path.mkdir()
    train_once(PRETRAIN, whole, Devices())
    write, written = Path.write_bytes, 0

    def fill(path: Path, data: bytes) -> int:
        nonlocal written
        written += 1
        if written < 4:
            return write(path, data)
        write(path, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(DiskFullError, match=r"(?s)no space left.*checkpoint\.pt.*free space"):
            train_once(PRETRAIN, folder, Devices(checkpoint_every_s=0))
    assert not list(folder.path.glob(".*"))
    train_once(PRETRAIN, folder, Devices())
    assert losses(folder) == losses(whole)


def test_a_step_does_not_wait_for_a_checkpoint_to_be_written(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is held up until step 5. What happens meanwhile comes after it, not before."""
    release, write, loss = threading.Event(), checkpoint.write_bytes, PretextTask.loss

    def slow(path: Path, data: bytes) -> None:
        assert release.wait(timeout=60)
        write(path, data)

    def releasing(task: PretextTask, model: nn.Module, step: int) -> Tensor:
        if step == 5:
            release.set()
        return loss(task, model, step)

    monkeypatch.setattr(checkpoint, "write_bytes", slow)
    monkeypatch.setattr(PretextTask, "loss", releasing)
    monkeypatch.setattr("fewscan.experiments.train.Loop.look_at_the_clock", checkpoint_after_step_1)
    train_once(PRETRAIN, folder, Devices())
    told = [(e.kind, e.step) for e in folder.committed_events()]
    assert told == [
        ("started", 0),
        ("checkpoint", 1),
        ("metrics", 2),
        ("metrics", 4),
        ("metrics", 6),
        ("checkpoint", 6),
    ]


def checkpoint_after_step_1(loop: Any) -> None:
    loop.write_events(wait=False)
    if loop.state.step == 1:
        loop.checkpoint()


@pytest.mark.parametrize("spec", [PRETRAIN, FINETUNE], ids=lambda s: s.kind)
def test_any_moment_is_a_good_moment_to_be_killed(
    spec: Pretrain | Finetune, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder as it is at each step, with a checkpoint on its way, is one to go on from."""
    moments: list[RunFolder] = []
    task = PretextTask if spec.kind == "pretrain" else SegmentTask
    loss = task.loss

    def copying(task: Any, model: nn.Module, step: int) -> Tensor:
        moment = folder.path.with_name(f"moment{step}")
        ignore = shutil.ignore_patterns("*.tmp", ".*")  # what the next owner removes
        moments.append(RunFolder(Path(shutil.copytree(folder.path, moment, ignore=ignore))))
        return loss(task, model, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "loss", copying)
        whole = train_once(spec, folder, Devices(checkpoint_every_s=0))
    for moment in moments:
        committed = losses(moment)
        assert committed == losses(folder)[: len(committed)]
        state = train_once(spec, moment, Devices())
        assert losses(moment) == losses(folder)
        assert all(torch.equal(state.model[k], whole.model[k]) for k in whole.model)


def test_the_learning_rate_is_torchs_cosine_annealing() -> None:
    """Kascenas et al.: T_max 100, stepped every 32 iterations, far beyond T_max."""
    training = Training(67200, 320, lr_half_period=3200, lr_step_every=32)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=100)
    for step in range(20000):
        if step and step % 32 == 0:
            optimiser.step()
            schedule.step()
        expected = optimiser.param_groups[0]["lr"]
        assert learning_rate(training, step) == pytest.approx(expected, rel=1e-6, abs=1e-12)
