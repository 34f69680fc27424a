"""What the report dares to say, from cells with a known answer."""

from dataclasses import replace

import numpy as np
import pytest
from fake_scores import cell

from fewscan.experiments.catalogue import METRICS
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.cells import Cell, Pretraining
from fewscan.harness.report.comparison import area, compare
from fewscan.harness.report.evidence import Evidence, Outcome, correct
from fewscan.harness.report.findings import Finding, caution, findings
from fewscan.harness.report.labels_saved import labels_saved
from fewscan.harness.report.results import Quantity
from fewscan.harness.report.tables import interval, labels, number, p_text

DICE = Quantity("binary", METRICS["dice"], "dice", "Dice", ("dice",), leads=True)
SCRATCH, DENOISE = Arm("fine-tuning"), Arm("fine-tuning", "denoise")


def evidence_of(scratch: dict[int, Cell], other: dict[int, Cell], planned: int) -> Evidence:
    """All that is known of two arms."""
    compared, saved = compare(other, scratch), labels_saved(other, scratch)
    outcomes = [Outcome(DICE, SCRATCH, n, planned, cell=it) for n, it in scratch.items()]
    outcomes += [
        Outcome(
            *(DICE, DENOISE, n, planned, SCRATCH, it),
            comparison=compared.get(n),
            saved=saved.get(n),
        )
        for n, it in other.items()
    ]
    found = area(other, scratch)
    areas = {} if found is None else {DENOISE: found}
    (evidence,) = correct([Evidence(DICE, "scratch", outcomes, {}, areas)])
    return evidence


def verdict(
    effects: dict[int, float],
    seeds: int = 5,
    noise: float = 0.02,
    pretrainings: int | None = None,
) -> Finding:
    """Forty patients; pre-training has an effect for each label count."""
    rng = np.random.default_rng(0)
    scratch, other = {}, {}
    started: list[frozenset[Pretraining]] = [
        frozenset({("denoise", seed % (pretrainings or seeds))}) for seed in range(seeds)
    ]
    for place, (count, effect) in enumerate(effects.items()):
        base_SP = 0.3 + 0.1 * place + 0.05 * rng.standard_normal((seeds, 40))
        scratch[count] = cell(base_SP)
        better = cell(base_SP + effect + noise * rng.standard_normal((seeds, 40)))
        other[count] = replace(better, pretrainings=tuple(started))
    (found,) = findings(evidence_of(scratch, other, seeds))
    return found


def test_a_clear_gain_is_said_with_the_labels_it_saves() -> None:
    """The area first, then the counts, then what they save."""
    found = verdict({1: 0.1, 10: 0.0, 100: 0.0})
    assert found.kind == "helps"
    area, counts, rest, saved = found.sentences
    assert area.startswith(
        "Pre-training (denoise) raises the Dice by 0.024, averaged over 1 to 100 labelled scans on "
        "the logarithmic axis (95 % interval of the difference +0.0"
    )
    assert area.endswith("; p < 0.001).")
    assert "shown to be higher with 1 labelled scan (by 0.098, 95 % interval" in counts
    assert rest == "With 10 and 100 labelled scans alone no difference could be shown."
    assert saved.startswith("For what it reaches with 1 labelled scan, scratch needs ")


@pytest.mark.parametrize(
    ("effects", "kind"),
    [
        ({1: 0.1, 10: 0.1}, "helps"),
        ({1: -0.1, 10: 0.0}, "hurts"),
        ({1: 0.1, 10: 0.1, 100: -0.1}, "mixed"),
        ({1: 0.0, 10: 0.0}, "open"),
    ],
)
def test_the_kind_follows_the_sign(effects: dict[int, float], kind: str) -> None:
    assert verdict(effects).kind == kind


def test_what_is_not_shown_is_not_called_absent() -> None:
    found = verdict({1: 0.0, 10: 0.0}, seeds=3)
    text = " ".join(found.sentences)
    assert "No effect of pre-training (denoise) on the Dice can be concluded" in text
    assert "does not prove that there is none" in text
    assert "With 3 seeds intervals are wide" in text


def test_what_is_quoted_where_nothing_is_shown_is_the_area_and_not_the_narrowest_count() -> None:
    rng = np.random.default_rng(3)
    scratch, other = {}, {}
    for count, noise in ((1, 0.2), (10, 0.001), (100, 0.2)):
        base_SP = 0.5 + 0.05 * rng.standard_normal((3, 40))
        scratch[count] = cell(base_SP)
        other[count] = cell(base_SP + noise * rng.standard_normal((3, 1)))
    evidence = evidence_of(scratch, other, 3)
    (found,) = findings(evidence)
    quoted = evidence.areas[DENOISE].difference
    assert f"(95 % interval {interval(quoted, '+')};" in found.sentences[0]
    narrowest = evidence.of_arm(DENOISE)[10].comparison
    assert narrowest is not None
    assert interval(narrowest.difference, "+") not in " ".join(found.sentences)


def test_a_count_is_not_looked_at_where_the_area_is_not_decided() -> None:
    """A gain at one count that is lost at the others."""
    found = verdict({1: 0.3, 10: -0.15, 100: -0.01}, noise=0.1)
    assert found.kind == "open"
    assert "no label count is looked at by itself" in found.sentences[-1]


@pytest.mark.parametrize(
    ("pretrainings", "said"),
    [
        (1, "All seeds of denoise start from one pre-training: this is about these weights"),
        (3, "The 5 seeds of denoise start from 3 pre-trainings, fewer than there are seeds"),
        (5, None),
    ],
)
@pytest.mark.parametrize("effect", [0.1, 0.0])
def test_the_verdict_says_how_many_pretrainings_it_is_about(
    pretrainings: int, said: str | None, effect: float
) -> None:
    """Whether something is shown or not."""
    found = verdict({1: effect, 10: effect}, pretrainings=pretrainings)
    about = [it for it in found.sentences if "pre-trainings" in it or "these weights" in it]
    assert len(about) == (0 if said is None else 1)
    assert not about or about[0].startswith(said)


def test_label_counts_that_are_not_in_the_area_are_said() -> None:
    rng = np.random.default_rng(0)
    scratch = {n: cell(0.5 + 0.05 * rng.standard_normal((3, 40))) for n in (1, 10, 100)}
    other = {n: cell(it.scores_SP + 0.2) for n, it in scratch.items()}
    other[100] = cell(other[100].scores_SP[:1])
    (found,) = findings(evidence_of(scratch, other, 3))
    assert (
        "This is over 1 and 10 labelled scans; with 100 too few runs of both arms are finished."
    ) in found.sentences


def test_runs_that_collapsed_are_counted_in_the_verdict() -> None:
    scratch = {n: cell(np.full((3, 20), 0.5)) for n in (1, 10)}
    evidence = evidence_of(scratch, {n: cell(it.scores_SP + 0.1) for n, it in scratch.items()}, 3)
    outcomes = [
        replace(it, collapsed=(1,)) if (it.arm, it.labels) == (DENOISE, 10) else it
        for it in evidence.outcomes
    ]
    (found,) = findings(replace(evidence, outcomes=outcomes))
    assert (
        "Collapsed, and counted like any other: 1 of the 6 runs of denoise and 0 of the 6"
        in (found.sentences[-1])
    )


def test_an_interval_that_leaves_out_0_before_correction_alone_says_so() -> None:
    assert "only before the correction" in caution(Estimate(0.1, (0.01, 0.2)))
    assert caution(Estimate(0.1, (-0.01, 0.2))) == ""


def test_arms_that_are_the_same_are_called_so() -> None:
    """And not "no effect can be concluded", of which the interval is the proof."""
    found = verdict({1: 0.0, 8: 0.0}, noise=0.0)
    assert found.kind == "open"
    text = " ".join(found.sentences)
    assert (
        "denoise and scratch do not differ: the Dice of every patient and seed is the same" in text
    )
    assert "prove" not in text
    assert "interval" not in text


def test_one_patient_is_not_enough() -> None:
    rng = np.random.default_rng(0)
    scratch, other = ({1: cell(rng.random((5, 1)))} for _ in range(2))
    (found,) = findings(evidence_of(scratch, other, 5))
    assert found.kind == "open"
    assert "two seeds and two patients" in " ".join(found.sentences)


def test_one_seed_is_not_enough() -> None:
    found = verdict({1: 0.3}, seeds=1)
    assert found.kind == "open"
    assert "it takes two seeds and two patients" in found.sentences[0]


def test_several_comparisons_are_said() -> None:
    scratch = {1: cell(0.5 + 0.05 * np.random.default_rng(0).standard_normal((3, 40)))}
    evidence = evidence_of(scratch, {1: cell(scratch[1].scores_SP + 0.1)}, 3)
    (found,) = findings(replace(evidence, tested=4))
    assert "with 1 labelled scan (95 % interval of the difference" in found.sentences[0]
    assert found.sentences[0].endswith("p < 0.001, corrected for 4 comparisons).")


def test_numbers_in_words() -> None:
    assert (number(-0.0504, "+"), number(0.5), number(None)) == ("−0.050", "0.500", "missing")
    assert interval(Estimate(0.1, (-0.05, 0.25)), "+") == "−0.050 to +0.250"
    assert interval(Estimate(0.1, None)) == "–"
    assert (p_text(0.0001), p_text(0.0401), p_text(None)) == ("< 0.001", "0.040", "–")
    assert [labels(n, (1, 938)) for n in (1.0, 9.26, np.inf)] == ["≤ 1", "9.26", "> 938"]
