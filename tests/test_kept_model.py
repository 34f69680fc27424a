"""Which weights a training starts from and which it keeps: seen at the stages themselves."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_schemes
from torch import Tensor, nn

from fewscan.experiments import finetune as finetune_module
from fewscan.experiments.checkpoint import Weights, load_model
from fewscan.experiments.devices import Devices
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.pretrain import PretextTask
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.settings import Transfer
from fewscan.experiments.spec import Finetune, Network, Pretrain, RunSpec, Training, run_id
from fewscan.experiments.stages import run_stage
from fewscan.experiments.train import train
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

NETWORK = Network(width=4, depth=2)
TRAINING = Training(iterations=8, validate_every=2, batch_size=4, lr=1e-2, precision="fp32")
VALIDATION_LOSSES = (0.7, 0.3, 0.3, 0.9)
"""After steps 2, 4, 6 and 8: the best comes neither first nor last, and again as good."""
BEST_STEP = 4


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


def spec_of(kind: str, store: SliceStore) -> Pretrain | Finetune:
    if kind == "pretrain":
        return Pretrain(store.fingerprint, NETWORK, TRAINING)
    return Finetune(store.fingerprint, NETWORK, "multiclass", 2, TRAINING, seed=0)


def folder_of(spec: RunSpec, store: SliceStore, root: Path) -> RunFolder:
    folder = RunFolder(root / run_id(spec))
    RunRecord(spec, "study", spec.kind, SliceFormat.of_store(store), store.path).write(folder)
    return folder


def copied(model: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """The weights at each validation, which has the losses above."""
    found: list[Weights] = []

    def scripted(task: object, model: nn.Module) -> float:
        found.append(copied(model))
        return VALIDATION_LOSSES[len(found) - 1]

    for task in (PretextTask, SegmentTask):
        monkeypatch.setattr(task, "validation_loss", scripted)
    return found


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_the_model_of_the_lowest_validation_loss_is_kept(
    kind: str, store: SliceStore, validated: list[Weights], tmp_path: Path
) -> None:
    """As it was then, not as training went on with it; of two as good the first."""
    folder = folder_of(spec_of(kind, store), store, tmp_path)
    run_stage(folder, Devices())
    assert not any(same(validated[1], validated[n]) for n in (0, 2, 3))
    assert same(load_model(folder.model).state_dict(), validated[1])
    result = Result.read(folder)
    assert (result.best_step, result.validation_loss) == (BEST_STEP, 0.3)


class Killed(BaseException):
    """As SIGKILL: nothing in the code under test catches it."""


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_it_is_kept_over_a_kill(
    kind: str,
    store: SliceStore,
    validated: list[Weights],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best came before it, and nothing after it is better."""
    folder = folder_of(spec_of(kind, store), store, tmp_path)
    task: Any = PretextTask if kind == "pretrain" else SegmentTask
    loss, dead = task.loss, False

    def dying(self: Any, model: nn.Module, step: int) -> Tensor:
        nonlocal dead
        if step == 7 and not dead:
            dead = True
            raise Killed
        found: Tensor = loss(self, model, step)
        return found

    monkeypatch.setattr(task, "loss", dying)
    with pytest.raises(Killed):
        run_stage(folder, Devices(checkpoint_every_s=0.0))
    run_stage(folder, Devices())
    assert len(validated) == len(VALIDATION_LOSSES), "it went on from its checkpoint"
    assert same(load_model(folder.model).state_dict(), validated[1])
    assert Result.read(folder).best_step == BEST_STEP


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_finished_run_is_left_as_it_is(
    kind: str, store: SliceStore, validated: list[Weights], tmp_path: Path
) -> None:
    """Rerunning is resuming: there is nothing to go on with, so nothing is trained or written."""
    folder = folder_of(spec_of(kind, store), store, tmp_path)
    run_stage(folder, Devices())
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    run_stage(folder, Devices())
    assert {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()} == before
    assert len(validated) == len(VALIDATION_LOSSES)


@pytest.fixture
def toys() -> Iterator[None]:
    with toy_schemes.registered():
        yield


@pytest.mark.usefixtures("toys")
def test_a_scheme_that_keeps_the_last_keeps_the_last(
    store: SliceStore, validated: list[Weights], tmp_path: Path
) -> None:
    spec = Pretrain(store.fingerprint, NETWORK, TRAINING, toy_schemes.Neighbours())
    folder = folder_of(spec, store, tmp_path)
    run_stage(folder, Devices())
    assert same(load_model(folder.model).state_dict(), validated[3])
    assert Result.read(folder).best_step == 8


STARTS: dict[Transfer, tuple[str, ...]] = {
    "all": ("down_path.", "up_path."),
    "encoder": ("down_path.",),
}


@pytest.mark.parametrize("transfer", STARTS)
def test_a_finetuning_starts_from_what_was_transferred_and_from_the_head_of_its_cell(
    transfer: Transfer, store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four channels were reconstructed, and there are background and three classes: the heads have
    one shape, so that taking the wrong one raises nothing."""
    pretraining = spec_of("pretrain", store)
    parent = folder_of(pretraining, store, tmp_path)
    run_stage(parent, Devices())
    taught = load_model(parent.model).state_dict()
    scratch = spec_of("finetune", store)
    spec = replace(scratch, init=run_id(pretraining), transfer=transfer)
    starts: list[Weights] = []

    def watched(model: nn.Module, *rest: Any) -> Any:
        starts.append(copied(model))
        return train(model, *rest)

    monkeypatch.setattr(finetune_module, "train", watched)
    for it in (spec, scratch):
        run_stage(folder_of(it, store, tmp_path), Devices())
    start, random = starts
    assert start.keys() == taught.keys() == random.keys()
    assert taught["last.weight"].shape == random["last.weight"].shape
    for name, tensor in start.items():
        transferred = name.startswith(STARTS[transfer])
        assert torch.equal(tensor, taught[name]) == transferred, name
        assert torch.equal(tensor, random[name]) != transferred, name


def test_a_pretraining_that_goes_on_from_another_takes_all_of_it(
    store: SliceStore, tmp_path: Path
) -> None:
    first = spec_of("pretrain", store)
    parent = folder_of(first, store, tmp_path)
    run_stage(parent, Devices())
    second = replace(first, init=run_id(first), seed=1)
    model, facts = initial_network(second, 4, 4, folder_of(second, store, tmp_path), Devices())
    assert same(model.state_dict(), load_model(parent.model).state_dict())
    assert (facts["init"], set(facts["loaded"])) == (run_id(first), set(model.state_dict()))
    fresh, facts = initial_network(first, 4, 4, parent, Devices())
    assert not same(fresh.state_dict(), model.state_dict())
    assert (facts["init"], facts["loaded"]) == ("scratch", [])
