"""Intervals of pooled numbers in simulated studies, and the tables of what was simulated.

`python -m benchmarks --only statistics` is the long one. All draws are fixed.
"""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from benchmarks import answers
from benchmarks.answers import POOLED, Pixels, measure, pooled_coverage, scores_of, tables
from fewscan.experiments import metrics

TRUTH = 0.4207
"""The pooled AP of `Pixels` of many patients and seeds: `Pixels(0).truth()`, in eight seconds."""
STUDIES = 40
FEWEST = stats.binom.ppf(0.001, STUDIES, 0.95) / STUDIES
"""Share of a 95 % interval, but for bad luck of one in a thousand."""
DESIGN = Pixels(24, seeds=3)


def test_the_truth_is_that_of_many_patients() -> None:
    """Of a tenth as many, within their luck."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(8):
        ((counts_P2V,), _) = Pixels(2000, seeds=1).study(rng)
        found.append(POOLED["AP"](scores_of(counts_P2V.sum(axis=0))))
    assert np.mean(found) == pytest.approx(TRUTH, abs=0.03)


def test_the_intervals_of_pooled_numbers_hold() -> None:
    """Over patients with lesions of very unequal size, and seeds."""
    held = pooled_coverage(DESIGN, STUDIES, "AP", TRUTH, resamples=300)
    assert min(held.values()) >= FEWEST


def test_shares_that_spread_too_little_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each patient contributes, without the factor n − 1 of the jackknife."""
    right = metrics.pseudo_values

    def timid(whole: float, without: Mapping[str, float]) -> dict[str, float]:
        others = len(without) - 1
        return {it: whole + (v - whole) / others for it, v in right(whole, without).items()}

    monkeypatch.setattr(metrics, "pseudo_values", timid)
    held = pooled_coverage(DESIGN, STUDIES // 2, "AP", TRUTH, resamples=300)
    assert held["level"] < FEWEST


def test_the_tables_hold_what_was_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "RESAMPLES", 50)
    monkeypatch.setattr(answers, "PLANS", answers.PLANS[:1])
    monkeypatch.setattr(answers, "CURVES", dict([*answers.CURVES.items()][:1]))
    monkeypatch.setattr(answers, "ASKED", (20,))
    monkeypatch.setattr(answers, "pooled_coverage", lambda *_: {"level": 0.9, "difference": 1.0})
    monkeypatch.setattr(Pixels, "truth", lambda _: dict.fromkeys(POOLED, 0.5))
    found = measure(2)
    assert [len(found[key]) for key in ("pooled", "needed", "power")] == [12, 1, 1]
    text = tables(found)
    assert "| AP | 0.8 | 8 | 2 | 0.9 | 1 |" in text
    assert "| seeds | pretrainings | patients | gain | promised | found |" in text
    assert tables({"needed": found["needed"]}).count("**") == 2
