"""Every benchmark runs, on tiny scans, and nothing here decides on time; the table is true."""

import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import arithmetic, makespan, results, sequential, statistics
from benchmarks.__main__ import NAMES
from benchmarks.measure import Cost, SideBySide, side_by_side
from benchmarks.results import Finding
from benchmarks.setting import Setting
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.storage.system.workers import usable_cpus

TINY = (
    "network={width: 2, depth: 2}",
    "pretrain.denoise.training.iterations=2",
    "finetune.training.iterations=2",
    "finetune.seeds=[0]",
    "finetune.label_counts=[1]",
    "finetune.targets=[binary]",
    "baselines=[unsupervised]",
    "evaluation.nsd_tolerance_mm=null",  # MONAI takes seconds to load, in each process
)


@pytest.mark.parametrize("name", NAMES)
def test_each_subject_compares_and_measures(name: str, scans: Path, tmp_path: Path) -> None:
    """The published way and ours agree (each subject asserts it), and every number is a number."""
    setting = Setting(scans, tmp_path, 16, 2, noop_runs=8, planned_runs=60, demo_overrides=TINY)
    findings = import_module(f"benchmarks.{name}").measure(setting)
    assert findings
    for finding in findings:
        assert all(math.isfinite(value) and value >= 0 for value in finding.values), finding.what


@pytest.mark.parametrize(
    ("page", "table"),
    [
        (results.README, results.table),
        (arithmetic.PAGE, arithmetic.table),
        (statistics.PAGE, statistics.table),
        (sequential.PAGE, sequential.table),
    ],
)
def test_the_tables_are_what_they_are_made_from(page: Path, table: Callable[[], str]) -> None:
    shown = page.read_text().partition(results.BEGIN)[2].partition(results.END)[0]
    assert shown == table(), "python -m benchmarks --table writes it"


def test_two_ways_take_turns_and_neighbours_are_compared() -> None:
    calls: list[str] = []
    costs = side_by_side(lambda: calls.append("plain"), lambda: calls.append("fast"), rounds=3)
    assert calls == ["plain", "fast"] * 4
    assert len(costs.ratios("wall_s")) == 3
    costs = SideBySide((Cost(6, 8), Cost(9, 8)), (Cost(2, 1), Cost(3, 4)))
    assert costs.ratios("wall_s") == (3, 3)
    assert costs.ratios("core_s") == (8, 2)


@pytest.mark.parametrize(
    ("target", "values", "reached", "words"),
    [
        ({"at_least": 12}, (11.0, 12.0, 30.0), True, "≥ 12×"),
        ({"at_least": 12}, (11.0, 11.9, 30.0), False, "≥ 12×"),
        ({"at_most": 0.4}, (0.3, 0.5), True, "≤ 0.4×"),
        ({}, (1.0,), None, ""),
    ],
)
def test_a_target_is_reached_by_the_median(
    target: dict[str, float], values: tuple[float, ...], reached: bool | None, words: str
) -> None:
    finding = Finding("x", values, "×", **target)
    assert finding.reached is reached
    assert finding.target == words


def test_results_say_what_they_were_measured_on_and_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{results.BEGIN}old\n{results.END}after\n")
    path = results.write(
        "speed",
        [Finding("a thing", (12345.0, 0.25), "slices/s", core_ratios=(2.0, 3.0), note="why")],
    )
    measured = json.loads(path.read_text())["measured"]
    assert set(measured) == {
        *("date", "device", "cpu", "cores", "load_before", "python", "versions", "commit")
    }
    results.write_between_marks(readme, results.table())
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| a thing |  | 6,173 slices/s (0.25–12,345) | 2.5× |  |  |  |" in text
    assert "- *a thing*: why" in text


def test_the_bound_of_a_makespan(tiny_study: Callable[..., Study]) -> None:
    """A pre-training of 5 s, fine-tunings of 2 s from it, others of 1 s, and scores of 2 s."""
    plan = make_plan(tiny_study())
    seconds = {run.run_id: 2.0 if run.parents else 1.0 for run in plan.runs}
    seconds[plan.runs[0].run_id] = 5.0
    assert makespan.longest_chain(plan, seconds) == 9.0
    ends: dict[str, float] = {}
    for run in plan.runs:
        folder = plan.folder_of(run)
        plan.record(run).write(folder)
        begun = max([0.0, *(ends[parent] for parent in run.parents)])
        ends[run.run_id] = begun + seconds[run.run_id]
        end = 100 + ends[run.run_id]
        folder.append_event("finished", 1, end, seconds=seconds[run.run_id])
    work = sum(seconds.values()) / usable_cpus()
    schedule, whole = makespan.findings(plan, (98.0, 111.0))
    assert schedule.result == pytest.approx(9 / max(9.0, work))
    assert whole.result == pytest.approx(13 / max(9.0, work))
