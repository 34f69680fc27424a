"""What is noted of a network while it learns, and the published constants' dead levels."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import run_in_process
from torch import nn

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.health import Health, dead_levels, gains
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Pretrain, Training
from fewscan.experiments.train import Loop, make_optimiser
from fewscan.experiments.unet import UNet
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.storage.errors import LossNotFiniteError

LEVELS = ["down_1", "down_2", "down_3", "up_2", "up_1"]


@pytest.fixture
def model() -> UNet:
    torch.manual_seed(0)
    return UNet(in_channels=2, out_channels=1, width=4, depth=3)


def test_levels_are_those_of_the_network(model: UNet) -> None:
    assert gains(model) == dict.fromkeys(LEVELS, 1.0)
    assert list(gains(nn.Sequential(model))) == LEVELS, "inside another module too"
    assert gains(nn.Linear(2, 2)) == {}


def test_gains_are_those_of_the_norms(model: UNet) -> None:
    first, second = (model.down_path[1].block[n].weight for n in (3, 7))
    with torch.no_grad():
        first.fill_(-0.5)
        second.fill_(0.1)
    found = gains(model)
    assert found["down_2"] == pytest.approx(0.3)
    assert [found[level] for level in LEVELS if level != "down_2"] == [1.0] * 4
    assert dead_levels(found) == ()
    assert dead_levels(found | {"down_3": 0.09}) == ("down_3",)


def test_a_step_is_measured_in_parts_of_the_weights(model: UNet) -> None:
    health = Health(model)
    assert "step_ratio/down_1" not in health.values()
    health.before_step()
    with torch.no_grad():
        for parameter in model.down_path[0].parameters():
            parameter.mul_(1.01)
    health.after_step()
    values = health.values()
    assert values["step_ratio/down_1"] == pytest.approx(0.01, rel=1e-4)
    assert values["step_ratio/up_1"] == 0
    filters = [it.weight for it in model.down_path[0].modules() if isinstance(it, nn.Conv2d)]
    norm = torch.cat([it.flatten() for it in filters]).norm().item()
    assert values["weight_norm/down_1"] == pytest.approx(norm)


def test_the_first_gradient_that_is_not_finite_is_noted(model: UNet) -> None:
    health = Health(model)
    for step, norm in enumerate([1.0, 2.0, math.nan, 1.0, math.inf]):
        health.look_at_gradient(torch.tensor(norm), step)
        assert health.first_bad_step() == (None if step < 2 else 2)


def test_every_training_notes_them(tiny_study: Callable[..., Study]) -> None:
    """Among the events and, of the kept model, in the result."""
    plan = make_plan(tiny_study())
    run_in_process(plan, plan.runs[:1])
    folder = plan.folder_of(plan.runs[0])
    noted = [event.values for event in folder.committed_events() if event.kind == "metrics"]
    for values in noted:
        levels = ("down_1", "down_2", "up_1")
        wanted = {f"{n}/{level}" for n in ("gain", "weight_norm", "step_ratio") for level in levels}
        assert wanted | {"clipped_share"} <= values.keys()
        assert 0 <= values["clipped_share"] <= 1
    assert Result.read(folder).gains == gains(load_model(folder.model))


@pytest.mark.parametrize(("clip", "share"), [(1e-9, 1.0), (1e9, 0.0)])
def test_the_share_of_clipped_steps(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any], clip: float, share: float
) -> None:
    wish = tiny_document["pretrain"]["denoise"]
    wish = wish | {"training": wish["training"] | {"clip_norm": clip}}
    plan = make_plan(tiny_study(pretrain={"denoise": wish}))
    run_in_process(plan, plan.runs[:1])
    events = plan.folder_of(plan.runs[0]).committed_events()
    shares = [it.values["clipped_share"] for it in events if it.kind == "metrics"]
    assert shares == [share, share]


def test_a_gradient_that_is_not_finite_is_named_by_its_step(
    tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the losses that are looked at would not show it."""
    step = Loop.step

    def poisoned(loop: Loop) -> None:
        step(loop)
        if loop.state.step == 2:
            loop.health.look_at_gradient(torch.tensor(math.nan), 1)

    monkeypatch.setattr(Loop, "step", poisoned)
    plan = make_plan(tiny_study())
    with pytest.raises(LossNotFiniteError, match="gradients not since step 2"):
        run_in_process(plan, plan.runs[:1])


def test_decay_leaves_the_norms_alone_where_it_is_told_to(model: UNet) -> None:
    """With it they shrink, whatever the gradient says; without either they stay."""
    for decays, expected in ((True, 0.9), (False, 1.0)):
        training = Training(
            1, 1, lr=0.1, weight_decay=1.0, optimiser="adamw", decay_norms=decays, clip_norm=1.0
        )
        network = UNet(2, 1, 4, 3)
        optimiser = make_optimiser(training, network)
        before = network.down_path[0].block[1].weight.detach().clone()
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        assert gains(network)["down_3"] == pytest.approx(expected)
        assert torch.allclose(network.down_path[0].block[1].weight, before * 0.9)


def test_the_published_decay_kills_deep_levels_and_its_absence_does_not(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """The mechanism of the published constants, at a rate and decay where it takes 150 steps."""
    wish = tiny_document["pretrain"]["denoise"]
    training = wish["training"] | {"iterations": 150, "validate_every": 150, "lr": 0.02}
    found = {}
    for decays in (True, False):
        changed = training | {"weight_decay": 1e-2, "decay_norms": decays}
        study = tiny_study(
            pretrain={"denoise": wish | {"training": changed}},
            network={"width": 4, "depth": 3},
            name=f"decay {decays}",
        )
        plan = make_plan(study)
        spec = plan.runs[0].spec
        assert isinstance(spec, Pretrain)
        assert spec == replace(spec, training=replace(spec.training, decay_norms=decays))
        run_in_process(plan, plan.runs[:1])
        found[decays] = Result.read(plan.folder_of(plan.runs[0])).gains
    assert "down_3" in dead_levels(found[True])
    assert dead_levels(found[False]) == ()
