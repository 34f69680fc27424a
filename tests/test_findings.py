"""What the report dares to say, from cells with a known answer."""

import numpy as np
import pytest
from fake_scores import cell

from fewscan.experiments.catalogue import METRICS
from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.comparison import compare
from fewscan.harness.report.evidence import Evidence, Outcome
from fewscan.harness.report.findings import Finding, caution, findings
from fewscan.harness.report.labels_saved import labels_saved
from fewscan.harness.report.results import Quantity
from fewscan.harness.report.tables import interval, labels, number, p_text

DICE = Quantity("binary", METRICS["dice"], "dice", "Dice", ("dice",), leads=True)
SCRATCH, DENOISE = Arm("fine-tuning"), Arm("fine-tuning", "denoise")


def verdict(effects: dict[int, float], seeds: int = 5, noise: float = 0.02) -> Finding:
    """Forty patients; pre-training has an effect for each label count."""
    rng = np.random.default_rng(0)
    scratch, other = {}, {}
    for place, (count, effect) in enumerate(effects.items()):
        base_SP = 0.3 + 0.1 * place + 0.05 * rng.standard_normal((seeds, 40))
        scratch[count] = cell(base_SP)
        other[count] = cell(base_SP + effect + noise * rng.standard_normal((seeds, 40)))
    compared, saved = compare(other, scratch), labels_saved(other, scratch)
    outcomes = [Outcome(DICE, SCRATCH, n, seeds, cell=it) for n, it in scratch.items()]
    outcomes += [
        Outcome(DICE, DENOISE, n, seeds, SCRATCH, it, compared.get(n), saved.get(n))
        for n, it in other.items()
    ]
    (found,) = findings(Evidence(DICE, "scratch", outcomes, objections={}))
    return found


def test_a_clear_gain_is_said_with_the_labels_it_saves() -> None:
    found = verdict({1: 0.1, 10: 0.0, 100: 0.0})
    assert found.kind == "helps"
    assert "raises the Dice with 1 labelled scan by 0.098 (95 % interval" in found.sentences[0]
    assert found.sentences[1] == "With 10 and 100 labelled scans no difference could be shown."
    assert found.sentences[2].startswith("For what it reaches with 1 labelled scan, scratch needs ")


@pytest.mark.parametrize(
    ("effects", "kind"),
    [
        ({1: 0.1, 10: 0.1}, "helps"),
        ({1: -0.1, 10: 0.0}, "hurts"),
        ({1: 0.1, 10: -0.1}, "mixed"),
        ({1: 0.0, 10: 0.0}, "open"),
    ],
)
def test_the_kind_follows_the_sign(effects: dict[int, float], kind: str) -> None:
    assert verdict(effects).kind == kind


def test_what_is_not_shown_is_not_called_absent() -> None:
    found = verdict({1: 0.0, 10: 0.0}, seeds=3)
    text = " ".join(found.sentences)
    assert "No effect of pre-training on the Dice can be concluded" in text
    assert "does not prove that there is none" in text
    assert "With 3 seeds intervals are wide" in text


def test_an_interval_that_leaves_out_0_before_correction_alone_says_so() -> None:
    assert "only before the correction" in caution(Estimate(0.1, (0.01, 0.2)))
    assert caution(Estimate(0.1, (-0.01, 0.2))) == ""


def test_one_seed_is_not_enough() -> None:
    found = verdict({1: 0.3}, seeds=1)
    assert found.kind == "open"
    assert "it takes two seeds and two patients" in found.sentences[0]


def test_numbers_in_words() -> None:
    assert (number(-0.0504, "+"), number(0.5), number(None)) == ("−0.050", "0.500", "missing")
    assert interval(Estimate(0.1, (-0.05, 0.25)), "+") == "−0.050 to +0.250"
    assert interval(Estimate(0.1, None)) == "–"
    assert (p_text(0.0001), p_text(0.0401), p_text(None)) == ("< 0.001", "0.040", "–")
    assert [labels(n, (1, 938)) for n in (1.0, 9.26, np.inf)] == ["≤ 1", "9.26", "> 938"]
