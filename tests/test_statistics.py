"""Intervals hold and findings are true in simulated studies; the same with a part broken do not.

Few patients, label counts and resamples: `python -m benchmarks --only statistics` is the long one.
All draws are fixed, so a test that passes once passes always.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import statistics
from benchmarks.simulated import COLLAPSED, Design, falling_gain, simulate_study
from benchmarks.statistics import PLATEAU, Rates, Tally, simulate
from fewscan.harness.report.comparison import Branch

STUDIES, RESAMPLES = 120, 300
COUNTS = (1, 6, 36)
NOTHING, GAIN = falling_gain(0.0, COUNTS), falling_gain(0.06, COUNTS)


def rates(design: Design, *, may_collapse: bool = True, with_saved: bool = False) -> Rates:
    return simulate(
        design, STUDIES, may_collapse=may_collapse, with_saved=with_saved, resamples=RESAMPLES
    )


def holds(tally: Tally) -> bool:
    """As often as a 95 % interval, but for bad luck of one in a thousand."""
    return tally.hits >= stats.binom.ppf(0.001, tally.of, 0.95)


def is_rare(tally: Tally) -> bool:
    """As rare as 5 %, but for bad luck of one in a thousand."""
    return tally.hits <= stats.binom.ppf(0.999, tally.of, 0.05)


@pytest.mark.parametrize(
    "settings",
    [
        {"seeds": 5},
        {"seeds": 3, "missing": 0.2},
        {"empty": 0.3},
        {"skewed": True},
        {"patients": 8, "seeds": 2},
        {"patients": 2, "seeds": 3},
        {"seeds": 6, "pretraining_sd": 0.03, "pretrainings": 3},
        {"seeds": 5, "pretraining_sd": 0.03, "pretrainings": 3},
    ],
    ids=str,
)
def test_the_interval_of_the_area_holds_the_truth_as_often_as_it_says(
    settings: dict[str, Any],
) -> None:
    found = rates(Design(GAIN, **{"patients": 60} | settings))
    assert found.area.of > 0.9 * STUDIES
    assert holds(found.area)


def test_pretrainings_that_are_taken_for_as_many_as_seeds_are_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three pre-trainings for six seeds, and then nobody says so; one, which nothing can mend."""
    design = Design(NOTHING, patients=60, seeds=6, pretraining_sd=0.05, pretrainings=3)
    assert is_rare(rates(design).false)
    assert not is_rare(rates(replace(design, pretrainings=1)).false)

    def silent(*arguments: object) -> object:
        study = simulate_study(*arguments)  # type: ignore[arg-type]
        return {
            arm: {n: replace(cell, pretrainings=()) for n, cell in curve.items()}
            for arm, curve in study.items()
        }

    monkeypatch.setattr(statistics, "simulate_study", silent)
    assert not is_rare(rates(design).false)


def test_a_false_finding_in_a_whole_report_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four arms without a gain; without the correction it is not."""
    design = Design(NOTHING | dict.fromkeys("abc", NOTHING["denoise"]), patients=60, seeds=8)
    assert is_rare(rates(design).false)
    monkeypatch.setattr(statistics, "corrected", dict[str, Branch])
    assert not is_rare(rates(design).false)


def test_counts_of_a_decided_area_are_still_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """One count has a gain that decides the area, eight have none."""
    scratch = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 8, 1000), 0.5)
    design = Design({"scratch": scratch, "denoise": scratch | {1000: 0.8}}, patients=60, seeds=8)
    found = rates(design)
    assert found.area_shown.share == 1
    assert is_rare(found.false)
    monkeypatch.setattr(statistics, "corrected", dict[str, Branch])
    assert not is_rare(rates(design).false)


def test_the_area_finds_what_no_single_count_does() -> None:
    counts = (1, 2, 4, 8, 16, 32, 64)
    found = rates(Design(falling_gain(0.06, counts), patients=100, seeds=4))
    assert found.area_shown.hits > 2 * found.holm_shown.hits
    assert found.area_shown.hits > STUDIES / 2


@pytest.mark.parametrize("arms", [("denoise",), ("denoise", "scratch")])
def test_intervals_hold_where_runs_collapse(arms: tuple[str, ...]) -> None:
    """And would not, if those that are not seen in a cell were not allowed for."""
    curves = falling_gain(0.0, (1, 2, 4, 8, 16, 32))
    design = Design(curves, patients=60, seeds=5, collapse=dict.fromkeys(arms, 0.2))
    found = rates(design, with_saved=True)
    for tally in (found.area, found.means, found.counts, found.saved):
        assert holds(tally)
    assert not holds(rates(design, may_collapse=False).means)


def test_intervals_without_a_collapse_are_none_the_wider() -> None:
    allowed, plain = (rates(Design(GAIN, patients=60), may_collapse=it) for it in (True, False))
    assert (allowed.area_widths, allowed.count_widths) == (plain.area_widths, plain.count_widths)


def test_labels_needed_on_a_plateau_are_known_as_well_as_it_says() -> None:
    found = rates(Design(PLATEAU, patients=60, seeds=4), with_saved=True)
    assert holds(found.saved)


def test_simulations_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESULTS", tmp_path / "statistics.json")
    (first, *_) = statistics.PLAIN
    design = Design(NOTHING, seeds=2, patients=5)
    statistics.run(2, {"two patients": replace(design, patients=2), first: design})
    text = statistics.table()
    rows = [line.split(" | ") for line in text.split("\n") if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[1:]] == [
        "| two patients",
        f"| {first}",
        f"| {first}; not allowed for",
    ]
    assert all(0 <= float(share) <= 100 for row in rows[1:3] for share in row[1:9])
    assert rows[3][4] == "–"
    assert "2 studies each." in text


def test_the_simulated_truth_is_the_mean_of_what_is_simulated() -> None:
    """Over many studies, for every effect that is drawn; the arm's collapsed runs included."""
    design = Design(
        GAIN,
        seeds=40,
        patients=40,
        pretraining_sd=0.05,
        skewed=True,
        collapse={"denoise": 0.2},
        empty=0.2,
        missing=0.1,
    )
    each = [simulate_study(design, np.random.default_rng(number)) for number in range(60)]
    for arm in ("scratch", "denoise"):
        means = [float(np.nanmean(study[arm][6].scores_SP)) for study in each]
        error = np.std(means, ddof=1) / np.sqrt(len(means))
        assert abs(np.mean(means) - design.truth(arm, 6)) < 3.5 * error
    collapsed = np.nanmean(each[0]["denoise"][6].scores_SP, axis=1) < 2 * COLLAPSED
    assert 2 <= collapsed.sum() <= 16
    shared = simulate_study(replace(design, pretrainings=3), np.random.default_rng(0))
    assert len({*shared["denoise"][6].pretrainings}) == 3
    assert shared["scratch"][6].pretrainings == ()
