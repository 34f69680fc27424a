"""How fast which part of a network learns when it is fine-tuned, and which slices it sees."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from test_train import FINETUNE, Killed, dying_at, losses, slices, train_once
from tiny import run_in_process

from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.devices import Devices, launch
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.order import BatchOrder, OversampledOrder
from fewscan.experiments.schedules import parts_of
from fewscan.experiments.spec import Finetune, Training
from fewscan.experiments.train import everything, learning_rate, make_optimiser
from fewscan.experiments.unet import UNet
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.storage.labels import LabelMeaning
from fewscan.storage.runs import RunFolder

LONG = Training(iterations=1000, validate_every=500, lr=1e-3)
SHORT = replace(FINETUNE.training, iterations=40, validate_every=4, lr_half_period=None)
"""A sawtooth of 1, 1 and 2 steps, and 36 of falling."""
PARENT = "abcdef012345"


def tuned(schedule: str, **changes: object) -> Finetune:
    """From another network, where what is transferred is told apart."""
    spec: Finetune = replace(FINETUNE, training=SHORT, schedule=schedule, init=PARENT, **changes)  # type: ignore[arg-type]
    return spec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Room for run folders, among them that of a network to start from."""
    parent = RunFolder(tmp_path / PARENT)
    parent.path.mkdir()
    torch.manual_seed(5)
    network = UNet(2, 2, FINETUNE.network.width, FINETUNE.network.depth)
    save_model(parent.model, network, network.state_dict())
    return tmp_path


def folder_in(root: Path, name: str) -> RunFolder:
    (root / name).mkdir()
    return RunFolder(root / name)


def rates(spec: Finetune, training: Training) -> dict[str, list[float | None]]:
    """Beginning of a name → the rate at each step."""
    return {
        name: [part.rate(step) for step in range(training.iterations)]
        for part in parts_of(spec, training)
        for name in part.begin
    }


def test_a_warm_up_rises_for_a_twentieth_and_falls_as_nnunet_does() -> None:
    found = rates(replace(FINETUNE, training=LONG, schedule="warmup"), LONG)
    expected = [1e-3 * (n + 1) / 50 for n in range(50)]
    expected += [1e-3 * (1 - n / 950) ** 0.9 for n in range(950)]
    assert found.keys() == {"down_path.", "up_path.", "last."}
    assert all(each == pytest.approx(expected) for each in found.values())


def test_a_sawtooth_teaches_the_decoder_before_everything() -> None:
    found = rates(replace(FINETUNE, training=LONG, schedule="sawtooth"), LONG)
    alone = [1e-3 * (n + 1) / 25 for n in range(25)]
    alone += [1e-3 * (1 - n / 25) ** 0.9 for n in range(25)]
    together = [1e-3 * (n + 1) / 50 for n in range(50)]
    together += [1e-3 * (1 - n / 900) ** 0.9 for n in range(900)]
    assert found["up_path."] == found["last."] == pytest.approx(alone + together)
    assert found["down_path."][:50] == [None] * 50
    assert found["down_path."][50:] == pytest.approx(together)


@pytest.mark.parametrize("schedule", ["plain", "frozen", "probe"])
@pytest.mark.parametrize("training", [LONG, replace(LONG, lr_half_period=100, lr_step_every=32)])
def test_the_others_follow_the_cosine(schedule: str, training: Training) -> None:
    found = rates(replace(tuned(schedule), training=training), training)
    cosine = [learning_rate(training, step) for step in range(1000)]
    learns = {"plain": 3, "frozen": 2, "probe": 1}[schedule]
    assert [*found] == ["down_path.", "up_path.", "last."][3 - learns :]
    assert all(each == cosine for each in found.values())


def test_a_rate_that_changes_rarely_changes_at_those_steps() -> None:
    training = replace(LONG, lr_step_every=20)
    found = rates(replace(FINETUNE, training=training, schedule="sawtooth"), training)
    for each in found.values():
        assert all(each[step] == each[step // 20 * 20] for step in range(1000))


def test_what_is_transferred_has_a_rate_of_its_own() -> None:
    both = rates(tuned("plain", lr_scale=0.1), LONG)
    encoder = rates(tuned("sawtooth", lr_scale=0.1, transfer="encoder"), LONG)
    for step in (0, 49, 50, 500, 999):
        assert both["down_path."][step] == both["up_path."][step]
        assert both["up_path."][step] == pytest.approx(0.1 * (both["last."][step] or 0))
        assert encoder["up_path."][step] == encoder["last."][step]
        if step >= 50:
            assert encoder["down_path."][step] == pytest.approx(0.1 * (encoder["last."][step] or 0))


def test_all_at_one_rate_is_one_group(root: Path) -> None:
    """So the bits and the checkpoints of finished runs are those of before."""
    assert len(parts_of(tuned("plain"), SHORT)) == len(everything(SHORT)) == 1
    model = UNet(2, 3, 4, 2)
    (ours,) = make_optimiser(SHORT, model, parts_of(tuned("plain"), SHORT)).param_groups
    assert [*map(id, ours["params"])] == [*map(id, model.parameters())]


@pytest.mark.parametrize("decay_norms", [True, False])
def test_a_step_goes_as_far_as_the_rate_says(root: Path, decay_norms: bool) -> None:
    """Adam's first step is its rate, whatever the gradient."""
    training = replace(SHORT, iterations=1, validate_every=1, weight_decay=0.0, lr=1e-3)
    training = replace(training, decay_norms=decay_norms)
    spec = replace(tuned("plain", lr_scale=0.25), training=training)
    folder = folder_in(root, "run")
    before, _ = initial_network(spec, 2, 3, folder, Devices())
    after = train_once(spec, folder, Devices()).model
    for name, tensor in before.state_dict().items():
        moved = (after[name] - tensor).abs().max().item()
        assert moved == pytest.approx(1e-3 if name.startswith("last.") else 2.5e-4, rel=1e-3)


FROZEN = {"plain": (), "frozen": ("down_path.",), "probe": ("down_path.", "up_path.")}


@pytest.mark.parametrize("schedule", FROZEN)
@pytest.mark.parametrize("init", [PARENT, None], ids=["transferred", "random"])
def test_what_is_frozen_does_not_change(root: Path, schedule: str, init: str | None) -> None:
    """Of random weights too: the control of what a frozen encoder is worth."""
    spec, folder = replace(tuned(schedule), init=init), folder_in(root, "run")
    before, _ = initial_network(spec, 2, 3, folder, Devices())
    still = {name for name, it in before.named_parameters() if not it.requires_grad}
    after = train_once(spec, folder, Devices()).model
    same = {name for name, it in before.state_dict().items() if torch.equal(it, after[name])}
    frozen = {name for name in after if name.startswith(FROZEN[schedule] or "-")}
    assert same == still == frozen


def killed_at(step: int, spec: Finetune, folder: RunFolder) -> None:
    """A training that goes on until then, with a checkpoint after each step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentTask, "loss", dying_at(step, SegmentTask.loss))
        with pytest.raises(Killed):
            train_once(spec, folder, Devices(checkpoint_every_s=0))


def test_the_encoder_waits_for_the_decoder(root: Path) -> None:
    """Until then it has neither moved nor any moments, so that its first step is its rate."""
    spec = tuned("sawtooth")
    first = replace(spec, training=replace(SHORT, iterations=40, weight_decay=0.1))
    folder = folder_in(root, "run")
    before = initial_network(first, 2, 3, folder, Devices())[0].state_dict()
    killed_at(2, first, folder)
    state = torch.load(folder.checkpoint, weights_only=True)
    model, groups = state["model"], state["optimiser"]["param_groups"]
    assert all(torch.equal(it, model[n]) for n, it in before.items() if n.startswith("down_path."))
    assert not any(
        torch.equal(it, model[n]) for n, it in before.items() if n.startswith("up_path.")
    )
    assert state["optimiser"]["state"].keys() == {*groups[1]["params"]}
    after = train_once(first, folder, Devices()).model
    assert not any(torch.equal(it, after[n]) for n, it in before.items())


SCHEDULES = {
    "warmup": tuned("warmup"),
    "sawtooth": tuned("sawtooth"),
    "sawtooth, encoder, scaled": tuned("sawtooth", transfer="encoder", lr_scale=0.1),
    "frozen": tuned("frozen"),
    "scaled": tuned("plain", lr_scale=0.1),
}


@pytest.mark.parametrize("spec", SCHEDULES.values(), ids=SCHEDULES)
def test_interrupted_equals_uninterrupted(spec: Finetune, root: Path) -> None:
    """Killed while the decoder learns alone, at the step in which the encoder joins, after it."""
    whole, killed = folder_in(root, "whole"), folder_in(root, "killed")
    expected = train_once(spec, whole, Devices())
    for step in (1, 2, 3, 20):
        killed_at(step, spec, killed)
    state = train_once(spec, killed, Devices())
    assert losses(killed) == losses(whole)
    assert all(torch.equal(state.model[k], expected.model[k]) for k in expected.model)


def train_all(root: Path, devices: Devices) -> None:
    """In one process group, for it takes longer to start than they do."""
    for name, spec in SCHEDULES.items():
        train_once(spec, RunFolder(root / f"{name}, two"), devices)


def test_two_ranks_equal_one(root: Path) -> None:
    folders = {name: (folder_in(root, name), folder_in(root, f"{name}, two")) for name in SCHEDULES}
    launch(partial(train_all, root), Devices(world_size=2))
    for name, (one, two) in folders.items():
        train_once(SCHEDULES[name], one, Devices())
        assert losses(two) == pytest.approx(losses(one), rel=1e-8), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scale": 0.1, "init": None}, "nothing is transferred"),
        ({"lr_scale": 0.0}, "what is never to learn is frozen"),
        ({"lr_scale": -1.0}, "lr_scale is -1"),
        ({"oversample_foreground": 1.5}, "at most 1"),
        (
            {"schedule": "warmup", "training": replace(SHORT, lr_half_period=9)},
            "a curve of its own",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tuned("plain"), **changes)  # type: ignore[arg-type]


LESIONS_N = torch.tensor([2, 5, 7])


@pytest.mark.parametrize(
    ("share", "places"), [(1 / 3, 5), (0.33, 5), (0.5, 8), (1.0, 16), (0.01, 0)]
)
def test_a_part_of_each_batch_shows_a_lesion(share: float, places: int) -> None:
    """As many as nnU-Net: what is left after rounding the rest. The others are drawn from all."""
    order = OversampledOrder.of(BatchOrder(10, 16, seed=1), LESIONS_N, share)
    batches = [order.indices(step) for step in range(30)]
    assert {batch.shape for batch in batches} == {(16,)}
    parts = [b.split([16 - places, places]) for b in batches]
    first, last = (torch.cat(it) for it in zip(*parts, strict=True))
    assert {*last.tolist()} <= {2, 5, 7}
    counts = [Counter(part.tolist()).values() for part in (first, last)]
    assert all(max(count) - min(count) <= 1 for count in counts if count), "equally often"
    if places < 16:
        assert {*first.tolist()} == {*range(10)}


def test_a_task_oversamples_only_if_it_is_asked_to_and_there_is_something() -> None:
    """Order is a function of seed and step: asked for late or early, on any rank, the same."""
    data, meaning = slices(10, seed=1), LabelMeaning(("a", "b"))
    shows_N = torch.zeros(10, dtype=torch.bool)
    shows_N[LESIONS_N] = True

    def task(share: float, shows: bool, devices: Devices = Devices()) -> SegmentTask:  # noqa: B008
        spec = replace(FINETUNE, oversample_foreground=share)
        lesions_N = shows_N.numpy() & shows
        return SegmentTask(spec, meaning, data, data, devices, shows_lesion_N=lesions_N)

    plain = [task(0, True).order.indices(step).tolist() for step in range(5)]
    assert [task(0.5, False).order.indices(step).tolist() for step in range(5)] == plain
    asked = task(0.5, True)
    late = asked.order.indices(4).tolist()
    assert late == task(0.5, True).order.indices(4).tolist() != plain[4]
    assert {*late[2:]} <= {2, 5, 7}
    halves = [task(0.5, True, Devices(rank=rank, world_size=2)).batch(3) for rank in (0, 1)]
    whole = asked.batch(3)
    for mine, parts in zip(whole, zip(*halves, strict=True), strict=True):
        assert torch.equal(mine, torch.cat(parts))


def test_a_run_draws_from_the_slices_with_a_lesion(
    tiny_study: Callable[..., Study],
    tiny_document: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the store says of its slices is what is then seen in them."""
    grid = tiny_document["finetune"] | {"oversample_foreground": 1.0, "seeds": [3]}  # type: ignore[operator]
    plan = make_plan(tiny_study(finetune=grid))
    run = next(run for run in plan.runs if isinstance(run.spec, Finetune))
    seen, loss_of = [], SegmentTask.loss_of
    monkeypatch.setattr(
        SegmentTask,
        "loss_of",
        lambda task, model, images, targets: (
            seen.append(targets.flatten(1).any(dim=1)) or loss_of(task, model, images, targets)
        ),
    )
    spec = replace(run.spec, augmentation=replace(run.spec.augmentation, policy="none"))
    run_in_process(plan, [replace(run, spec=spec)])
    assert torch.cat(seen).all()
    assert len(seen) == 4
