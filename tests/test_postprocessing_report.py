"""What the report says of post-processing: what was chosen, and Dice before and after."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from fake_runs import finish, finish_all

from fewscan.experiments.postprocess import Fitted, Rule, Tried
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.report.postprocessing import postprocessing_table, read_postprocessed
from fewscan.harness.report.results import read_results
from fewscan.harness.report.studies import one_study, two_studies
from fewscan.harness.report.tables import to_csv
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Study

GRID = {"label_counts": [2, 8], "seeds": [0, 1, 2]}
GAIN = 0.05
"""Of each class of each patient."""


def fitted(run: PlannedRun) -> Fitted:
    """Seed 0 keeps the largest component, seeds 1 and 2 that and fill holes; of 2 scans none is
    held out."""
    if run.place.labels == 2:
        return Fitted()
    largest, holes = Rule("largest component", (1,)), Rule("holes", (1,))
    rules = (largest,) if run.place.seed == 0 else (largest, holes)
    tried = tuple(Tried(it, 0.5, 0.6, (), True) for it in rules)
    names = ("lesion",) if run.place.target == "binary" else ("oedema",)
    return Fitted(1, rules, dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.6), tried)


def finish_postprocessed(plan: Plan) -> None:
    for run in plan.runs:
        if run not in plan.scores:
            finish(plan, run)
            continue
        finish(plan, run, postprocess=fitted(run).to_json())
        cases = plan.folder_of(run).cases
        rows = list(csv.DictReader(cases.open()))
        for row in rows:
            for name in [it for it in row if it.startswith("dice_") and "scan" not in it]:
                key = "lesion" if "chosen" in name else name.removeprefix("dice_")
                before = f"{float(row[name]) - GAIN}" if row[name] else ""
                row[f"dice_before_postprocessing_{key}"] = before
        with cases.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture
def plan(tiny_study: Callable[..., Study], tiny_document: dict[str, Any], undrawn: None) -> Plan:
    finetune = tiny_document["finetune"] | GRID | {"selection": "within"}
    evaluation = {"postprocess": {"largest_component": True, "fill_holes": True}}
    plan = make_plan(tiny_study(finetune=finetune, evaluation=evaluation))
    finish_postprocessed(plan)
    return plan


def rows_of(plan: Plan) -> list[dict[str, str]]:
    studies = one_study(plan)
    text = to_csv(postprocessing_table(read_postprocessed(studies, read_results(studies))))
    return list(csv.DictReader(io.StringIO(text)))


def test_what_was_chosen_and_what_it_did(plan: Plan) -> None:
    wanted = {"target": "binary", "arm": "denoise", "label_count": "8"}
    (row,) = [row for row in rows_of(plan) if wanted.items() <= row.items()]
    said = "largest component of lesion (3 of 3 seeds); holes of lesion filled (2 of 3 seeds)"
    assert row["chosen"] == said
    assert (row["scans_fewest"], row["scans_most"], row["seeds"]) == ("1", "1", "3")
    validation = float(row["validation_before"]), float(row["validation_after"])
    assert validation == (0.5, 0.6)
    assert float(row["test_after"]) - float(row["test_before"]) == pytest.approx(GAIN)
    assert [float(row[key]) for key in ("change", "low", "high")] == pytest.approx([GAIN] * 3)


def test_where_no_scan_chooses_that_is_said(plan: Plan) -> None:
    rows = [row for row in rows_of(plan) if row["label_count"] == "2"]
    assert len(rows) == 4, "two arms of two targets"
    assert {row["chosen"] for row in rows} == {"not fitted: no scan chooses"}
    assert {row["validation_before"] for row in rows} == {""}


def test_classes_are_averaged(plan: Plan) -> None:
    (row,) = [
        row
        for row in rows_of(plan)
        if (row["target"], row["arm"], row["label_count"]) == ("multiclass", "scratch", "8")
    ]
    assert float(row["change"]) == pytest.approx(GAIN)


def test_page_and_csv_have_it_and_without_it_they_have_nothing_of_it(
    plan: Plan, tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    write_report(one_study(plan))
    report = plan.folder.report
    assert "<h2>Post-processing</h2>" in (report / "report.html").read_text()
    assert len((report / "postprocessing.csv").read_text().splitlines()) == 1 + len(rows_of(plan))
    finetune = tiny_document["finetune"] | GRID | {"selection": "within"}
    folder = str(plan.folder.path.with_name("plain"))
    plain = make_plan(tiny_study(finetune=finetune, folder=folder, name="plain"))
    finish_all(plain)
    write_report(one_study(plain))
    assert "Post-processing" not in (plain.folder.report / "report.html").read_text()
    assert not (plain.folder.report / "postprocessing.csv").exists()
    both = two_studies(plain, plan)
    assert ("evaluation.postprocess.fill_holes", "False", "True") in both.differences()
    assert {row.arm.study for row in read_postprocessed(both, read_results(both))} == {"tiny"}
