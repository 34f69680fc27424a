"""What to run next: the noisy cell is named, its seed's worth is what it turns out to be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_runs import finish

from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.evidence import gather
from fewscan.harness.report.next_steps import next_steps, variance
from fewscan.harness.report.results import read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.study import Study

COUNTS = (1, 2, 4)


def cells(seeds: int, by_seed: dict[int, float], by_patient: float = 0.0) -> dict[int, Cell]:
    """Differences whose seeds, at each count, and patients have these standard deviations."""
    rng = np.random.default_rng(0)
    patient_P = by_patient * rng.standard_normal(20)
    names = tuple(f"P{number}" for number in range(20))
    return {
        n: Cell(
            f"{n}",
            tuple(range(seeds)),
            names,
            (("T",),) * seeds,
            deviation * rng.standard_normal((seeds, 1)) + patient_P,
        )
        for n, deviation in by_seed.items()
    }


def test_the_noisy_count_is_where_a_seed_is_worth_most() -> None:
    found = variance(cells(200, {1: 0.01, 2: 0.01, 4: 0.1}))
    assert found is not None
    assert found.widest == 4
    # w = ¼ at the ends of three counts that double.
    assert found.by_count[4] == pytest.approx((0.25 * 0.1) ** 2 / 200, rel=0.2)
    assert found.by_count[4] / found.whole > 0.9


def test_one_more_seed_takes_what_it_takes() -> None:
    few = variance(cells(4, {1: 0.1, 2: 0.0, 4: 0.0}))
    assert few is not None
    assert few.with_one_more(1) == pytest.approx(few.whole * 4 / 5)


def test_patients_are_told_from_seeds() -> None:
    found = variance(cells(5, dict.fromkeys(COUNTS, 0.001), by_patient=0.2))
    assert found is not None
    assert found.patients / found.whole > 0.99
    assert found.patients == pytest.approx(0.2**2 / 20, rel=0.5)


def test_of_one_seed_nothing_is_known() -> None:
    assert variance(cells(1, dict.fromkeys(COUNTS, 0.1))) is None
    assert variance({}) is None


@pytest.fixture
def plan(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    grid = {"label_counts": [1, 4, "all"], "seeds": [0, 1, 2], "targets": ["binary"]}
    return make_plan(tiny_study(finetune=tiny_document["finetune"] | grid))


def test_the_report_names_the_cell_and_its_cost(plan: Plan) -> None:
    """Seeds differ at 4 scans alone; a fine-tuning and a score take 36 s each."""
    for run in plan.runs:
        noisy = run.place.labels == 4 and not run.place.arm.is_scratch
        is_arm = run.place.is_cell and not run.place.arm.is_scratch
        bonus = (0.3 * (run.place.seed - 1) if noisy else 0.0) - 0.2 * is_arm
        finish(plan, run, bonus)
    studies = one_study(plan)
    (said,) = next_steps(studies, gather(studies, read_results(studies), leading=True))
    assert said.startswith("To know more about denoise (binary), whose interval is ±")
    assert (
        "of its variance is from seeds at 4 labelled scans; one more there, of denoise and" in said
    )
    assert f"takes about {4 * 36 / 3600:.2g} device-hours" in said


def test_nothing_is_asked_for_where_all_is_decided(plan: Plan) -> None:
    for run in plan.runs:
        finish(plan, run)
    studies = one_study(plan)
    assert next_steps(studies, gather(studies, read_results(studies), leading=True)) == []
