"""The average of two studies' networks, cell by cell: 2D and 3D on one store."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_runs import finish_all
from rich.console import Console
from tiny import run_in_process

from fewscan.experiments.cost import run_flops
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune, Score
from fewscan.harness.arms import Arm
from fewscan.harness.concerns import concerns
from fewscan.harness.label_budget import label_budgets
from fewscan.harness.listing import render_status
from fewscan.harness.loading import load_plan
from fewscan.harness.partner import finished_elsewhere, take_over
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.status import read_status
from fewscan.harness.trained import load_trained
from fewscan.storage.errors import StudyError

Write = Callable[..., Path]
VOLUMES = {"width": 4, "depth": 2, "dims": 3, "patch": [4, 8, 8]}


@pytest.fixture
def write(tiny_document: dict[str, Any], tmp_path: Path) -> Write:
    """Write a study file: the tiny one, with other top-level keys and keys of its fine-tuning."""

    def made(name: str, finetune: dict[str, Any] | None = None, **changes: Any) -> Path:
        document = tiny_document | {"name": name, "folder": name, "baselines": []} | changes
        document["evaluation"] = {"nsd_tolerance_mm": None}
        grid = tiny_document["finetune"] | {"targets": ["binary"], "label_counts": [1, 4]}
        document["finetune"] = grid | (finetune or {})
        document["pretrain"] = {"denoise": tiny_document["pretrain"]["denoise"] | {"slices": "all"}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return made


@pytest.fixture
def both(write: Write) -> tuple[Plan, Plan]:
    """Slices, and volumes with slices as their partner."""
    slices = load_plan(write("slices"))
    return slices, load_plan(write("volumes", {"partner": "slices.yaml"}, network=VOLUMES))


def averages(plan: Plan) -> list[PlannedRun]:
    return [run for run in plan.grid if run.place.arm.partner]


def test_each_arm_of_both_has_its_average(both: tuple[Plan, Plan], write: Write) -> None:
    slices, plan = both
    alone = load_plan(write("volumes", network=VOLUMES))
    assert {it.run_id for it in alone.runs} < {it.run_id for it in plan.runs}
    assert [it.run_id for it in plan.grid if not it.place.arm.partner] == [
        it.run_id for it in alone.grid
    ]
    found = averages(plan)
    assert found[0].name == "score binary · scratch (with slices) · 1 scan · seed 0"
    assert len(found) == len(alone.grid)
    theirs = {it.run_id: it for it in slices.runs}
    runs = {it.run_id: it for it in plan.runs}
    for run in found:
        own, other = (runs[it] for it in run.parents)
        assert isinstance(own.spec, Finetune)
        assert isinstance(other.spec, Finetune)
        assert (own.spec.network.dims, other.spec.network.dims) == (3, 2)
        assert other.run_id in theirs
        shared = [(it.spec.label_count, it.spec.seed, it.place.target) for it in (own, other)]  # type: ignore[union-attr]
        assert shared[0] == shared[1]
        each = [
            run_flops(Score("", plan.study.evaluation, (it.run_id,)), it.spec.network, plan.store)
            for it in (own, other)
        ]
        assert run.flops == pytest.approx(sum(each))


def test_a_partners_runs_are_no_cells_of_the_study(both: tuple[Plan, Plan]) -> None:
    _, plan = both
    taken = [run for run in plan.runs if run.made_in is not None]
    assert {run.name.partition(": ")[0] for run in taken} == {"slices"}
    assert not any(run.place.is_cell for run in taken)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_status(read_status(plan)))
    text = console.export_text()
    (line,) = [it for it in text.splitlines() if "slices, the partner" in it]
    assert f"{len(taken)} runs" in line


def test_it_is_compared_with_random_weights_in_the_same_company(both: tuple[Plan, Plan]) -> None:
    references = one_study(both[1]).references()
    pair, single = Arm("fine-tuning", "denoise", partner="slices"), Arm("fine-tuning", "denoise")
    assert references[pair] == Arm("fine-tuning", partner="slices")
    assert references[Arm("fine-tuning", partner="slices")] == Arm("fine-tuning")
    assert references[single] == Arm("fine-tuning")


def test_labels_are_those_of_one_cell(both: tuple[Plan, Plan]) -> None:
    plan = both[1]
    budgets = label_budgets(plan)
    for run in averages(plan):
        assert len(budgets[run.run_id].training) == run.place.labels


def test_what_the_partner_has_finished_is_taken_over_and_the_maps_are_averaged(
    both: tuple[Plan, Plan],
) -> None:
    slices, plan = both
    run_in_process(slices, slices.runs)
    waiting = finished_elsewhere(plan)
    made_there = [run for run in plan.runs if run.made_in is not None]
    assert {it.run_id for it in waiting} == {it.run_id for it in made_there}
    assert any("are taken over by the next sweep" in it for it in concerns(plan))
    take_over(plan, waiting)
    assert not finished_elsewhere(plan)
    assert all(plan.folder_of(run).result.exists() for run in made_there)
    run_in_process(plan, [run for run in plan.runs if run.made_in is None])
    run = averages(plan)[-1]
    folder = plan.folder_of(run)
    whole, own, other = (
        load_trained(it.path).predictor
        for it in (folder, *(folder.sibling(parent) for parent in run.parents))
    )
    scan = plan.store.split.test[0]
    images = torch.from_numpy(plan.store.read_subject(scan).images_NCHW)
    spacing_mm = plan.store.spacing_mm_ZHW(scan)
    maps = [torch.cat([*it.in_batches(images, spacing_mm)]) for it in (whole, own, other)]
    assert torch.allclose(maps[0], (maps[1] + maps[2]) / 2, atol=1e-6)
    assert not torch.allclose(maps[1], maps[2], atol=1e-4)
    labelled = {*Result.read(folder).labelled}
    assert len(labelled) == run.place.labels
    assert np.isfinite(Result.read(folder).test["pooled_ap"])  # type: ignore[arg-type]


@pytest.mark.usefixtures("undrawn")
def test_the_report_has_it_on_the_same_axis(both: tuple[Plan, Plan]) -> None:
    plan = both[1]
    finish_all(plan)
    write_report(one_study(plan))
    page = (plan.folder.report / "report.html").read_text()
    assert "scratch (with slices)" in page
    assert "pre-trained: denoise (with slices)" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"selection": "within"}}, "the partner has finetune.selection within"),
        ({"finetune": {"partner": "volumes.yaml"}}, r"the partner has finetune\.partner"),
        ({"split": {"folds": 3}}, r"the partner has split\.folds 3"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    write: Write, changes: dict[str, Any], message: str
) -> None:
    write("slices", **changes)
    with pytest.raises(StudyError, match=message):
        load_plan(write("volumes", {"partner": "slices.yaml"}, network=VOLUMES))


def test_the_same_networks_are_no_partners(write: Write) -> None:
    write("slices")
    with pytest.raises(StudyError, match="is the same network in slices"):
        load_plan(write("volumes", {"partner": "slices.yaml"}))


def test_what_the_partner_lacks_is_said(write: Write) -> None:
    write("slices", {"inits": ["scratch"], "label_counts": [4]})
    plan = load_plan(write("volumes", {"partner": "slices.yaml"}, network=VOLUMES))
    assert {(it.place.arm.key, it.place.labels) for it in averages(plan)} == {
        ("scratch (with slices)", 4)
    }
    assert any("no denoise with slices, which lacks" in it for it in plan.left_out)
