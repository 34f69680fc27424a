"""Adaptive sweeps make no more false findings than they say; looked at like plain studies they do.

Few patients, label counts and resamples: `python -m benchmarks --only sequential` is the long one.
All draws are fixed, so a test that passes once passes always.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import sequential
from benchmarks.sequential import DECIDED, Outcome, Rule
from benchmarks.simulated import SCRATCH, Design, falling_gain, simulate_study
from fewscan.harness.looks import Look, planned_looks

STUDIES = 80
COUNTS = (1, 4, 16)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "RESAMPLES", 1500)


def design(gain: float, seeds: int = 40) -> Design:
    """Runs differ, patients hardly: what is seen at one look says little of the next."""
    curves = falling_gain(gain, COUNTS)
    arms = {SCRATCH: curves[SCRATCH], "arm 0": curves["denoise"]}
    spread = {"gain_sd": 0.0, "residual_sd": 0.01, "run_sd": 0.05}
    return Design(arms, patients=12, seeds=seeds, **spread)


def outcomes(design: Design, rule: Rule = DECIDED) -> list[Outcome]:
    studies = (simulate_study(design, np.random.default_rng(n)) for n in range(STUDIES))
    return [sequential.adaptive(design, it, rule, n) for n, it in enumerate(studies)]


def test_false_findings_are_rare_because_looks_share_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = stats.binom.ppf(0.999, STUDIES, 0.05)
    found = outcomes(design(0.0))
    assert sum(bool(it.shown) for it in found) <= most
    assert sum(not it.held for it in found) <= most

    def greedy(first: int, most: int) -> tuple[Look, ...]:
        return tuple(replace(look, error=0.05) for look in planned_looks(first, most))

    monkeypatch.setattr(sequential, "planned_looks", greedy)
    found = outcomes(design(0.0))
    assert sum(bool(it.shown) for it in found) > most
    assert sum(not it.held for it in found) > most


def test_a_large_gain_is_found_with_few_seeds() -> None:
    found = outcomes(design(0.3, seeds=20))
    full = sequential.cost({"arm 0": dict.fromkeys(COUNTS, 20)})
    assert np.mean([bool(it.shown) for it in found]) > 0.95
    assert np.mean([it.cost for it in found]) < 0.6 * full


def test_a_narrow_interval_ends_it_too() -> None:
    wide, narrow = (
        np.mean([it.looks for it in outcomes(design(0.0, 20), Rule(False, half_width))])
        for half_width in (0.5, 0.05)
    )
    assert wide < narrow


def test_simulations_become_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "RESULTS", tmp_path / "sequential.json")
    sequential.run(2, {"little": (design(0.0), DECIDED), "much": (design(0.3), DECIDED)})
    lines = [line for line in sequential.table().split("\n") if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| little", "| much"]
    assert len({line.count("|") for line in lines}) == 1
