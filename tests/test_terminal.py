"""The report in a terminal of 80 columns: label counts as rows, no number cut short."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_runs import finish, finish_all
from rich.console import Console

from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.terminal import render_report
from fewscan.harness.study import Study

COUNTS = [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18]
"""As many as the published study has."""


def printed(plan: Plan, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as shown:
        console.print(render_report(one_study(plan)))
    return [line.rstrip() for line in shown.get().splitlines()]


@pytest.fixture
def grid(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Callable[..., Plan]:
    """A study of eleven label counts and two seeds."""

    def make(names: tuple[str, ...] = ("denoise",), **more: Any) -> Plan:
        wish = tiny_document["pretrain"]["denoise"]
        wishes = {
            name: wish | {"training": wish["training"] | {"lr": 0.01 * (k + 1)}}
            for k, name in enumerate(names)
        }
        arms = {"label_counts": COUNTS, "seeds": [0, 1], "inits": ["scratch", *names]}
        finetune = tiny_document["finetune"] | arms | {"targets": ["binary"]} | more
        return make_plan(tiny_study(pretrain=wishes, finetune=finetune))

    return make


def test_eleven_label_counts_fit_80_columns_with_every_number_whole(
    grid: Callable[..., Plan],
) -> None:
    plan = grid()
    finish_all(plan)
    lines = printed(plan)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    first = next(
        n for n, line in enumerate(lines) if line.split() == ["scans", "scratch", "denoise"]
    )
    rows = [line.split() for line in lines[first + 1 : first + 12]]
    assert [int(row[0]) for row in rows] == COUNTS
    # Dice of `fake_runs`: 0.1 to 0.2 by patient, 0.01 a seed, 0.1 a tenfold, 0.2 for pre-training.
    assert (rows[0][1], rows[0][3]) == ("0.155", "0.355")
    assert rows[0][2].startswith("(0.")
    assert all(len(row) == 5 for row in rows)


def test_the_answer_comes_first(grid: Callable[..., Plan]) -> None:
    plan = grid()
    finish_all(plan)
    assert printed(plan, width=400)[0].startswith("Binary: with pre-training (denoise) ")


def test_arms_that_have_no_room_follow_below(grid: Callable[..., Plan]) -> None:
    plan = grid(("a", "b", "c", "d"))
    finish_all(plan)
    heads = [line.split() for line in printed(plan) if line.startswith("scans")]
    assert heads[:2] == [["scans", "scratch", "a", "b"], ["scans", "c", "d"]]
    (wide, *_) = [line.split() for line in printed(plan, 200) if line.startswith("scans")]
    assert wide == ["scans", "scratch", "a", "b", "c", "d"]


def test_probes_at_one_count_and_anomaly_scores_are_a_list(grid: Callable[..., Plan]) -> None:
    plan = grid(probes={"levels": [2], "label_counts": [4]})
    finish_all(plan)
    found = [line for line in printed(plan) if line.endswith("denoise (probe 2) at 4")]
    assert found
    assert all(line.startswith("0.") for line in found)
    assert any(line.endswith("unsupervised: denoise") for line in printed(plan))
    assert not any("probe" in line for line in printed(plan) if line.startswith("scans"))


def test_what_is_not_finished_is_said(grid: Callable[..., Plan]) -> None:
    plan = grid()
    for run in plan.runs:
        if run.place.labels != 4 and (run.place.labels, run.place.seed) != (6, 1):
            finish(plan, run)
    lines = printed(plan)
    assert ["4", "missing", "missing"] in [line.split() for line in lines]
    assert any(line.split() == ["1/2", "seeds"] * 2 for line in lines)


def test_a_long_name_without_a_space_is_broken_and_not_cut(grid: Callable[..., Plan]) -> None:
    plan = grid(("a_pretraining_with_a_very_long_name",))
    finish_all(plan)
    text = "\n".join(printed(plan))
    assert "…" not in text
    assert "a_pretraining_wit" in text
    assert "h_a_very_long_nam" in text
