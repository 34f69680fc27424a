"""Common random numbers: what arms of a cell share, and what they do not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fewscan.experiments import augment
from fewscan.experiments.checkpoint import save_model
from fewscan.experiments.data import SliceData
from fewscan.experiments.devices import Devices
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.pretrain import PretextTask
from fewscan.experiments.residency import InMemory
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.denoise import Noise
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.seeds import seed_for
from fewscan.experiments.spec import Finetune, Network, Pretrain, RunSpec, Training, run_id
from fewscan.experiments.unet import UNet
from fewscan.storage.labels import LabelMeaning
from fewscan.storage.runs import RunFolder

TRAINING = Training(iterations=6, validate_every=2, batch_size=4, precision="fp32")
FINETUNE = Finetune("data", Network(4, 2), "multiclass", 1, TRAINING, seed=0)
PRETRAIN = Pretrain("data", Network(4, 2), TRAINING, Denoise(Noise(4)))
CPU = Devices()


@given(a=st.tuples(st.text(), st.text(), st.integers(0)), b=st.integers(1, 5))
def test_seeds_differ_by_purpose_and_step(a: tuple[str, str, int], b: int) -> None:
    root, purpose, step = a
    seed = seed_for(root, purpose, step)
    assert seed == seed_for(root, purpose, step)
    assert 0 <= seed < 2**63
    assert seed != seed_for(root, purpose, step + b)
    assert seed != seed_for(root, purpose + "x", step)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run beside two pre-trained ones, "abc" and "def"."""
    for n, name in enumerate(("abc", "def")):
        torch.manual_seed(100 + n)
        model = UNet(2, 2, width=4, depth=2)
        (tmp_path / name).mkdir()
        save_model(RunFolder(tmp_path / name).model, model, model.state_dict())
    return RunFolder(tmp_path / "run")


def slices(count: int = 10) -> SliceData:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((count, 2, 16, 16), generator=generator).half()
    labels = torch.randint(3, (count, 16, 16), generator=generator).byte()
    table = SliceTable.unrelated(2, (16, 16), count)
    return SliceData(InMemory(images, labels), table, torch.float32, "cpu")


def seen(spec: Pretrain | Finetune) -> list[Tensor]:
    """What a network is fed and asked in its first steps: order and all draws show in it."""
    task = (
        SegmentTask(spec, LabelMeaning(("a", "b")), slices(), slices(), CPU)
        if isinstance(spec, Finetune)
        else PretextTask(spec, slices(), slices(), CPU)
    )
    batches = [task.batch(step) for step in range(6)]
    images = [inputs for inputs, _ in batches]
    return images + [targets for _, targets in batches if isinstance(targets, Tensor)]


def order_of(spec: Finetune) -> list[list[int]]:
    order = SegmentTask(spec, LabelMeaning(("a", "b")), slices(), slices(), CPU).order
    return [order.indices(step).tolist() for step in range(6)]


def network_of(spec: Pretrain | Finetune, folder: RunFolder) -> nn.Module:
    return initial_network(spec, 2, 3 if isinstance(spec, Finetune) else 2, folder, CPU)[0]


def weights_of(model: nn.Module, part: str) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if name.startswith(part)}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


CHANGES: dict[str, Finetune] = {
    "pre-trained": replace(FINETUNE, init="abc"),
    "pre-trained otherwise": replace(FINETUNE, init="def"),
    "its encoder alone": replace(FINETUNE, init="abc", transfer="encoder"),
    "another rate": replace(FINETUNE, training=replace(TRAINING, lr=3e-3)),
    "another optimiser": replace(FINETUNE, training=replace(TRAINING, optimiser="sgd")),
    "longer": replace(FINETUNE, training=replace(TRAINING, iterations=60)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_arms_of_a_cell_share_order_augmentation_and_head(change: str, folder: RunFolder) -> None:
    arm = CHANGES[change]
    assert run_id(arm) != run_id(FINETUNE)
    assert order_of(arm) == order_of(FINETUNE)
    assert all(map(torch.equal, seen(arm), seen(FINETUNE)))
    ours, theirs = network_of(arm, folder), network_of(FINETUNE, folder)
    assert same(weights_of(ours, "last."), weights_of(theirs, "last."))
    transferred = arm.init is not None
    assert same(weights_of(ours, "down_path."), weights_of(theirs, "down_path.")) != transferred
    up = transferred and arm.transfer == "all"
    assert same(weights_of(ours, "up_path."), weights_of(theirs, "up_path.")) != up


def test_another_seed_changes_them_all(folder: RunFolder) -> None:
    other = replace(FINETUNE, seed=1)
    assert order_of(other) != order_of(FINETUNE)
    assert not any(map(torch.equal, seen(other), seen(FINETUNE)))
    ours, theirs = network_of(other, folder), network_of(FINETUNE, folder)
    assert not same(weights_of(ours, "last."), weights_of(theirs, "last."))
    assert not same(weights_of(ours, "down_path."), weights_of(theirs, "down_path."))


def test_members_of_an_ensemble_have_draws_of_their_own(folder: RunFolder) -> None:
    """Others than any seed's; and arms share those of a member as they share a cell's."""
    members = [replace(FINETUNE, member=member) for member in range(3)]
    others = [*members, replace(FINETUNE, seed=1), replace(FINETUNE, seed=2)]
    assert members[0] == FINETUNE
    assert len({str(order_of(spec)) for spec in others}) == len(others)
    heads = [weights_of(network_of(spec, folder), "last.") for spec in others]
    assert len({str(head["last.weight"]) for head in heads}) == len(others)
    assert not any(map(torch.equal, seen(members[1]), seen(FINETUNE)))
    arm = replace(members[1], init="abc", transfer="encoder")
    assert order_of(arm) == order_of(members[1])
    assert all(map(torch.equal, seen(arm), seen(members[1])))
    ours, theirs = network_of(arm, folder), network_of(members[1], folder)
    assert same(weights_of(ours, "last."), weights_of(theirs, "last."))
    fold = replace(members[1], folds=3, selection="within")
    assert order_of(fold) == order_of(members[1])


def test_augmentation_is_drawn_anew_each_step() -> None:
    """From the cell's seed and the step: also where the batch is the same."""
    task = SegmentTask(FINETUNE, LabelMeaning(("a", "b")), slices(4), slices(4), CPU)
    drawn = []
    for step in range(4):
        images_NCHW, _ = task.batch(step)
        drawn.append(images_NCHW.sum().item())
    assert len(set(drawn)) == 4
    assert augment.NNUNET.mirror_probability > 0


def test_pretrainings_share_what_a_setting_does_not_touch(folder: RunFolder) -> None:
    """Another rate, or stronger noise: the same order, weights and draws."""
    faster = replace(PRETRAIN, training=replace(TRAINING, lr=3e-3))
    assert all(map(torch.equal, seen(faster), seen(PRETRAIN)))
    stronger = replace(PRETRAIN, scheme=Denoise(Noise(4, std=0.4)))
    clean = seen(replace(PRETRAIN, scheme=Denoise(Noise(4, std=0.0))))
    for once, twice, none in zip(seen(PRETRAIN), seen(stronger), clean, strict=True):
        torch.testing.assert_close(twice - none, 2 * (once - none), rtol=1e-3, atol=1e-5)
    ours, theirs = (network_of(spec, folder).state_dict() for spec in (stronger, PRETRAIN))
    assert same(ours, theirs)
    other = replace(PRETRAIN, seed=1)
    assert not any(map(torch.equal, seen(other), seen(PRETRAIN)))


def test_stages_do_not_share_their_numbers() -> None:
    """A pre-training and a fine-tuning of one seed see slices in orders of their own."""
    kinds: list[RunSpec] = [PRETRAIN, FINETUNE]
    assert len({seed_for(spec.kind, 0, "order") for spec in kinds}) == 2
