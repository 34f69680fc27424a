"""Probes: a new head on frozen features, of any level; random features as their control."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import run_in_process

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune
from fewscan.experiments.unet import UNet
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.studies import one_study
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError


@pytest.fixture
def probed(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    grid = tiny_document["finetune"] | {"targets": ["binary"], "probes": {"levels": [0, 2]}}
    return make_plan(tiny_study(finetune=grid, baselines=["random features"]))


def test_a_head_at_a_level_sees_the_map_of_that_level() -> None:
    torch.manual_seed(0)
    network = UNet(2, 3, width=4, depth=3, head_level=2)
    images_NCHW = torch.randn(2, 2, 16, 16)
    seen = {}
    network.down_path[1].register_forward_hook(lambda _, __, output: seen.update(it=output))
    output_NCHW = network(images_NCHW)
    assert seen["it"].shape == (2, 8, 8, 8)
    upsampled = F.interpolate(seen["it"], (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output_NCHW, network.last(upsampled))
    with pytest.raises(ValueError, match="head at level 4"):
        UNet(2, 3, width=4, depth=3, head_level=4)


def test_probes_are_arms_with_random_features_as_control(probed: Plan) -> None:
    arms = dict.fromkeys(run.place.arm for run in probed.grid)
    assert [arm.title for arm in arms] == [
        "from scratch",
        "pre-trained: denoise",
        "random features, frozen",
        "denoise's features, frozen",
        "random features of level 2, frozen",
        "denoise's features of level 2, frozen",
    ]
    assert [arm.key for arm in arms][2:] == [
        "scratch (probe)",
        "denoise (probe)",
        "scratch (probe 2)",
        "denoise (probe 2)",
    ]
    counts = {arm: {it.place.labels for it in probed.grid if it.place.arm == arm} for arm in arms}
    assert all(found == {1, 18} for found in counts.values())


def test_a_baseline_is_a_line_and_no_hypothesis(probed: Plan) -> None:
    """More comparisons cost power; what is tested is pre-training against scratch."""
    assert one_study(probed).references() == {Arm("fine-tuning", "denoise"): Arm("fine-tuning")}


@pytest.mark.parametrize("level", [0, 2])
def test_only_the_head_learns(probed: Plan, level: int) -> None:
    pretrained = probed.runs[0]
    chosen = [
        run
        for run in probed.runs
        if isinstance(run.spec, Finetune)
        and (run.spec.schedule, run.spec.probe_level) == ("probe", level)
        and (run.place.labels, run.place.seed) == (1, 0)
    ]
    run_in_process(probed, [pretrained, *chosen])
    assert [run.place.arm.init for run in chosen] == [None, "denoise"]
    before = load_model(probed.folder_of(pretrained).model).state_dict()
    for run in chosen:
        model = load_model(probed.folder_of(run).model)
        assert model.shape.head_level == level
        body = {k: v for k, v in model.state_dict().items() if not k.startswith("last.")}
        same = all(torch.equal(tensor, before[name]) for name, tensor in body.items())
        assert same == (run.place.arm.init == "denoise"), "the features are those of the init"
        assert Result.read(probed.folder_of(run)).best_step is not None
        score = next(it for it in probed.scores if it.parents == (run.run_id,))
        run_in_process(probed, [score])
        assert Result.read(probed.folder_of(score)).test["pooled_ap"] is not None
    heads = [load_model(probed.folder_of(run).model).last.weight for run in chosen]
    assert not torch.equal(*heads)


def test_a_level_that_the_network_lacks_is_refused(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"] | {"probes": {"levels": [3]}}
    with pytest.raises(StudyError, match="level 3 of a network of depth 2"):
        make_plan(tiny_study(finetune=grid))


def test_a_probe_has_its_own_counts_and_training(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"]
    own = grid["training"] | {"iterations": 2, "lr": 0.1}
    probes = {"label_counts": [2], "training": own}
    plan = make_plan(tiny_study(finetune=grid | {"probes": probes}))
    found = [
        run.spec
        for run in plan.runs
        if isinstance(run.spec, Finetune) and run.spec.schedule == "probe"
    ]
    assert {it.label_count for it in found} == {2}
    assert {(it.training.iterations, it.training.lr) for it in found} == {(2, 0.1)}
