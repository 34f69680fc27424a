"""The power that a plan promises, against simulated studies; its deviations, against known ones."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_runs import finish_all
from scipy import stats

from benchmarks.simulated import SCRATCH, Design, simulate_study
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.comparison import area, differences
from fewscan.harness.report.power import (
    HOW,
    NAMES,
    Deviations,
    PlannedComparison,
    deviations,
    pilot,
    planned_comparisons,
    power_lines,
)
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError

COUNTS = (1, 4, 16, 64)
STATED = {"seeds": 0.03, "patients": 0.05, "residual": 0.1, "pretrainings": 0.02}


def grid(seeds: int, patients: int, pretrainings: int | None = None) -> PlannedComparison:
    one = pretrainings == 1
    from_S = np.arange(seeds) % (pretrainings or seeds)
    units = (1,) * seeds if one else tuple(Counter(from_S.tolist()).values())
    arms = Arm("fine-tuning", "denoise"), Arm("fine-tuning")
    return PlannedComparison("binary", *arms, COUNTS, units, patients, one)


def design(seeds: int, patients: int, pretrainings: int | None, gain: float) -> Design:
    """With the deviations of `STATED`: those of two arms add up in a difference."""
    curves = {SCRATCH: dict.fromkeys(COUNTS, 0.3), "denoise": dict.fromkeys(COUNTS, 0.3 + gain)}
    return Design(
        curves,
        seeds=seeds,
        patients=patients,
        pretrainings=pretrainings,
        gain_sd=STATED["patients"],
        run_sd=STATED["seeds"] / 2**0.5,
        pretraining_sd=STATED["pretrainings"],
        residual_sd=STATED["residual"] / 2**0.5,
    )


@pytest.mark.parametrize(
    ("seeds", "patients", "pretrainings", "gain"),
    [(5, 40, None, 0.05), (5, 40, None, 0.0), (3, 40, None, 0.08), (6, 40, 3, 0.06)],
)
def test_the_power_is_how_often_simulated_studies_find_the_gain(
    seeds: int, patients: int, pretrainings: int | None, gain: float
) -> None:
    studies, found = 150, 0
    for number in range(studies):
        rng = np.random.default_rng((1, number))
        cells = simulate_study(design(seeds, patients, pretrainings, gain), rng)
        tested = area(cells["denoise"], cells[SCRATCH], resamples=800)
        assert tested is not None
        assert tested.p is not None
        found += tested.p < 0.05
    expected = grid(seeds, patients, pretrainings).power(gain, Deviations(**STATED))
    assert found / studies == pytest.approx(expected, abs=0.08)
    assert gain == 0 or 0.4 < expected < 0.9


def test_with_patients_alone_it_is_that_of_a_t_test() -> None:
    """Nothing else varies, so the units' part is 0."""
    alone = Deviations(seeds=0, patients=0.2, residual=0, pretrainings=0)
    for patients, gain in ((12, 0.1), (30, 0.12)):
        shift, edge = gain / 0.2 * patients**0.5, stats.t.ppf(0.975, patients - 1)
        expected = stats.nct.sf(edge, patients - 1, shift)
        assert grid(5, patients).power(gain, alone) == pytest.approx(expected, abs=0.003)


def test_the_smallest_gain_is_found_with_80_percent() -> None:
    it = Deviations(**STATED)
    for plan in (grid(2, 10), grid(5, 250), grid(5, 250, 1), grid(6, 100, 2)):
        gain = plan.smallest_gain(it, 0.025)
        assert gain is not None
        assert plan.power(gain, it, 0.025) == pytest.approx(0.8, abs=1e-6)
    found = [grid(seeds, 100).smallest_gain(it) for seeds in (2, 3, 5, 10)]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]


def test_of_one_seed_or_patient_nothing_is_found() -> None:
    it = Deviations(**STATED)
    for plan in (grid(1, 100), grid(5, 1)):
        assert plan.power(0.5, it) == 0
        assert plan.smallest_gain(it) is None


def test_deviations_are_those_of_the_pilot() -> None:
    """The mean over pilots of the variances that each estimates."""
    found = []
    for number in range(60):
        cells = simulate_study(design(5, 60, None, 0.02), np.random.default_rng((2, number)))
        it = deviations(differences(cells["denoise"], cells[SCRATCH]))
        assert it is not None
        found.append([getattr(it, name) ** 2 for name in NAMES])
    means = np.sqrt(np.mean(found, axis=0))
    np.testing.assert_allclose(means, [STATED[name] for name in NAMES], rtol=0.15)
    assert deviations({}) is None
    assert deviations({1: cells["denoise"][1].select((0,), cells["denoise"][1].patients)}) is None


@pytest.fixture
def planned(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Callable[..., Plan]:
    """Four seeds, three label counts."""

    def make(**changes: Any) -> Plan:
        finetune = tiny_document["finetune"] | {"label_counts": [1, 4, "all"], "seeds": [*range(4)]}
        return make_plan(tiny_study(finetune=finetune, **changes))

    return make


def with_pretrainings(document: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    return {"denoise": document["pretrain"]["denoise"] | {"seeds": seeds}}


def test_the_grid_is_that_of_the_plan(
    planned: Callable[..., Plan], tiny_document: dict[str, Any]
) -> None:
    (binary, multiclass) = planned_comparisons(planned())
    assert (binary.target, multiclass.target) == ("binary", "multiclass")
    assert (binary.counts, binary.units, binary.patients) == ((1, 4, 18), (1, 1, 1, 1), 5)
    assert binary.one_pretraining
    several = planned_comparisons(planned(pretrain=with_pretrainings(tiny_document, [0, 1, 2])))[0]
    assert sorted(several.units) == [1, 1, 2]
    assert not several.one_pretraining


def test_what_is_stated_is_said_with_the_power_of_the_gain(
    planned: Callable[..., Plan], tiny_document: dict[str, Any]
) -> None:
    pretrain = with_pretrainings(tiny_document, [0, 1, 2, 3])
    plan = planned(power=STATED | {"gain": 0.2}, pretrain=pretrain)
    grid, it = planned_comparisons(plan)[0], Deviations(**STATED)
    smallest = grid.smallest_gain(it, 0.025)
    line, note = power_lines(plan)
    assert line.startswith(
        f"power, binary · denoise, multiclass · denoise: a gain of {smallest:.3f} is found with 80%"
    )
    assert f"one of 0.2 with {grid.power(0.2, it, 0.025):.0%}" in line
    assert "3 label counts, 4 seeds, 4 pre-trainings, 5 patients" in line
    assert note.endswith("deviations stated; α = 0.05 / 2 comparisons")


def test_one_pretraining_is_said_and_its_luck_is_in_no_power(planned: Callable[..., Plan]) -> None:
    line, _ = power_lines(planned(power=STATED))
    other, _ = power_lines(planned(power=STATED | {"pretrainings": 0.5}))
    assert "it is about this one" in line
    assert line.split(" is found")[0] == other.split(" is found")[0]


def test_nothing_known_is_one_line_that_says_how(planned: Callable[..., Plan]) -> None:
    assert power_lines(planned()) == [HOW]
    assert power_lines(planned(power={"gain": 0.1, "seeds": 0.1})) == [HOW]


def test_a_pilot_or_the_own_runs_say_what_is_not_stated(
    planned: Callable[..., Plan], tmp_path: Any
) -> None:
    """A seed is worth the same to both arms of the fake runs, and so is a patient."""
    small = planned(name="small", folder=str(tmp_path / "small"))
    finish_all(small)
    expected = pilot(small)
    assert expected.keys() == {"binary", "multiclass"}
    assert expected["binary"] == Deviations(*[pytest.approx(0, abs=1e-12)] * 4)
    stated = {name: STATED[name] for name in ("seeds", "patients", "residual")}
    for lines in (
        power_lines(planned(power=stated), small),
        power_lines(planned(power=stated, name="small", folder=str(tmp_path / "small"))),
    ):
        assert "pretrainings 0.000" in lines[0]
        assert "seeds 0.030" in lines[0]
        assert "deviations stated, and of small's finished runs" in lines[-1]


def test_a_pilot_that_cannot_be_paired_says_nothing(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned()
    finish_all(plan)

    def refuse(*args: object) -> None:
        raise StudyError("odd", where="", expected="", remedy="")

    monkeypatch.setattr("fewscan.harness.report.power.differences", refuse)
    assert power_lines(plan) == [HOW]
