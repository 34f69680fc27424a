"""The sentence at the top: labels needed with and without pre-training for a score."""

import csv
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_runs import finish_all

from fewscan.experiments.catalogue import METRICS
from fewscan.harness.arms import Arm
from fewscan.harness.planner import make_plan
from fewscan.harness.report.answer import answer, how_many
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.comparison import Area
from fewscan.harness.report.evidence import REACH, Evidence, Outcome, gather
from fewscan.harness.report.figures import colours_of, draw_evidence
from fewscan.harness.report.labels_needed import Extrapolation, LabelsNeeded
from fewscan.harness.report.results import Quantity, read_results
from fewscan.harness.report.studies import Studies, one_study, two_studies
from fewscan.harness.report.terminal import render_report
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Study
from fewscan.harness.study_file import parse_study
from fewscan.storage.errors import StudyError

DICE = Quantity("binary", METRICS["dice"], "dice", "Dice", ("dice",), leads=True)
SCRATCH, DENOISE, OTHER = (Arm("fine-tuning", init) for init in (None, "denoise", "other"))


def needs(
    value: float,
    interval: tuple[float, float] | None,
    reason: str = "",
    curve: Extrapolation | None = None,
) -> LabelsNeeded:
    how: Any = "not reached" if math.isinf(value) else "interpolated"
    return LabelsNeeded(0.7, Estimate(value, interval), how, reason, (1, 64), curve)


def evidence(needed: dict[Arm, LabelsNeeded], named: bool = True) -> Evidence:
    outcomes = [
        Outcome(DICE, arm, 4, 5, None if arm == SCRATCH else SCRATCH)
        for arm in (SCRATCH, DENOISE, OTHER)
    ]
    return Evidence(DICE, "scratch", outcomes, {}, needed=needed, is_named=named)


def test_one_sentence_says_what_pretraining_does() -> None:
    known = {SCRATCH: needs(29.3, (20, 44.2)), DENOISE: needs(12 + 1e-12, (7, 20.5))}
    assert answer(evidence(known)) == (
        "Binary: with pre-training (denoise) 12 (95 % interval 7 to 21) labelled scans do what "
        "30 (95 % interval 20 to 45) do without: a Dice of 0.700."
    )


def test_several_arms_and_a_score_that_nobody_named() -> None:
    few, none = needs(1, (1, 3)), needs(math.inf, (40, math.inf), "too few")
    found = answer(evidence({SCRATCH: none, DENOISE: few, OTHER: few}, named=False))
    without = "does what more than 64 (95 % interval 40 to > 64) do without"
    assert found == (
        f"Binary: with pre-training (denoise) at most 1 (95 % interval ≤ 1 to 3) labelled scan "
        f"{without}; with pre-training (other) at most 1 (95 % interval ≤ 1 to 3) labelled scan "
        f"{without}: a Dice of 0.700, 0.9 times what scratch reaches with its most labels "
        "(scratch: too few)."
    )


def test_an_interval_that_is_all_there_could_be_answers_nothing() -> None:
    anything = needs(math.inf, (0.5, math.inf))
    found = answer(evidence({SCRATCH: needs(12, (7, 21)), DENOISE: anything}))
    assert found.startswith(
        "Binary: how many labelled scans do with pre-training (denoise) what how many do without "
        "cannot be said (95 % intervals ≤ 1 to > 64, and 7 to 21): a Dice"
    )


def test_what_cannot_be_said_is_not() -> None:
    assert "4 (no interval: it takes two seeds" in how_many(needs(3.5, None))
    assert how_many(needs(math.inf, (math.inf, math.inf))) == "more than 64"
    assert answer(evidence({})) == ""
    assert answer(evidence({DENOISE: needs(4, None)})) == ""


@pytest.fixture
def studies(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any], undrawn: None
) -> Callable[..., Studies]:
    def make(**changes: Any) -> Studies:
        finetune = tiny_document["finetune"] | {
            "label_counts": [1, 2, 4, 8, "all"],
            "seeds": [0, 1, 2],
        }
        found = one_study(make_plan(tiny_study(finetune=finetune, **changes)))
        finish_all(found.first)
        return found

    return make


def test_the_score_is_the_studys_or_what_the_reference_nearly_reaches(
    studies: Callable[..., Studies],
) -> None:
    """Scratch has 0.16 and 0.1 for each tenfold of labels; 18 scans. Pre-training adds 0.2."""
    named = studies(report={"reach": {"binary": 0.2}})
    binary, multiclass = gather(named, read_results(named), leading=True)
    assert (binary.is_named, multiclass.is_named) == (True, False)
    assert [it.key for it in binary.needed] == ["scratch", "denoise"]
    scratch, denoise = binary.needed.values()
    assert (scratch.score, scratch.how) == (0.2, "interpolated")
    assert scratch.needed.value == pytest.approx(10**0.4)
    assert denoise.needed.value == 1
    (most,) = [it.mean for it in multiclass.outcomes if it.arm == SCRATCH and it.labels == 18]
    assert most is not None
    assert most.value is not None
    assert {it.score for it in multiclass.needed.values()} == {REACH * most.value}
    others = [it for it in gather(named, read_results(named)) if not it.quantity.leads]
    assert not any(it.needed for it in others)


def test_page_table_and_terminal_say_it(
    studies: Callable[..., Studies], capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    named = studies(report={"reach": {"binary": 0.2}})
    write_report(named)
    sentence = answer(gather(named, read_results(named), leading=True)[0])
    assert "do without: a Dice at the chosen threshold of 0.200." in sentence
    page = (named.report_folder / "report.html").read_text()
    shown = page.index(sentence)
    assert shown < page.index('<div class="finding')
    Console(width=400).print(render_report(named))
    assert sentence in capsys.readouterr().out
    with (named.report_folder / "labels_needed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["target"], row["arm"], row["named"]) for row in rows] == [
        (target, arm, str(target == "binary"))
        for target in ("binary", "multiclass")
        for arm in ("scratch", "denoise")
    ]
    assert float(rows[0]["needed"]) == pytest.approx(10**0.4)
    assert float(rows[0]["low"]) <= float(rows[0]["needed"]) <= float(rows[0]["high"])
    assert (rows[0]["fewest_searched"], rows[0]["how"]) == ("1", "interpolated")


def test_of_two_studies_the_first_names_the_score(
    studies: Callable[..., Studies], tmp_path: Any
) -> None:
    first = studies(name="a", report={"reach": {"binary": 0.2}})
    second = studies(name="b", folder=str(tmp_path / "b"), report={"reach": {"binary": 0.3}})
    both = two_studies(first.first, second.first)
    assert both.reach == {"binary": 0.2}
    assert both.differences() == []
    (binary, _) = gather(both, read_results(both), leading=True)
    assert "with b/denoise at most 1" in answer(binary)
    assert "do with a/scratch" in answer(binary)


def test_the_power_law_is_drawn_dashed_with_its_band() -> None:
    curve = Extrapolation((64, 128, 256), (0.6, 0.65, 0.7), (0.55, 0.6, 0.62), (0.65, 0.7, 0.75))
    drawn = evidence({SCRATCH: needs(200, (100, 250), curve=curve), DENOISE: needs(4, (3, 5))})
    means = draw_evidence(drawn, colours_of([SCRATCH, DENOISE])).axes[0]
    lines = [np.asarray(it.get_xydata()).tolist() for it in means.get_lines()]
    assert [it for it in lines if len(it) > 2] == [[[64, 0.6], [128, 0.65], [256, 0.7]]]
    (band,) = means.collections
    assert band.get_datalim(means.transData).intervaly.tolist() == [0.55, 0.75]
    assert means.get_xlim()[1] >= 256
    assert "asked for: 0.7" in {it.get_label() for it in means.get_lines()}


@pytest.mark.parametrize("score", [0, 1, 70])
def test_a_score_that_no_metric_has_is_refused(tiny_document: dict[str, Any], score: float) -> None:
    document = tiny_document | {"report": {"reach": {"binary": score}}}
    with pytest.raises(StudyError, match=r"reach.binary is .* between 0 and 1; write 0.7 for 70 %"):
        parse_study(document, "here")


def test_of_many_arms_the_sentence_names_those_that_are_told_apart() -> None:
    """One after the other they would fill a screen."""
    arms = [Arm("fine-tuning", f"scheme {n}") for n in range(6)]
    outcomes = [Outcome(DICE, SCRATCH, 4, 5)] + [Outcome(DICE, it, 4, 5, SCRATCH) for it in arms]
    needed = {SCRATCH: needs(12, (7, 21))} | {it: needs(9, (4, 16)) for it in arms}

    def said(p_values: list[float]) -> str:
        areas = {}
        for n, (arm, p) in enumerate(zip(arms, p_values, strict=True)):
            gain = Estimate(0.01 * n - 0.02, (0.01 * n - 0.03, 0.01 * n - 0.01))
            level = Estimate(0.6, None)
            areas[arm] = Area((1, 64), 5, 5, False, 20, level, level, gain, p, p)
        return answer(
            Evidence(DICE, "scratch", outcomes, {}, areas, 21, needed, None, is_named=True)
        )

    end = (
        " against scratch, by the area under the curve (corrected for 21 comparisons); scheme 5 "
        "gains most, +0.030 (95 % interval +0.020 to +0.040); scratch needs 12 (95 % interval 7 "
        "to 21) labelled scans for a Dice of 0.700."
    )
    assert said([1.0] * 6) == f"Binary: of 6 arms none can be told apart,{end}"
    assert said([0.01, 1, 1, 1, 0.02, 0.01]) == (
        "Binary: of 6 arms scheme 4 and scheme 5 are better, scheme 0 is worse, of 3 it cannot "
        f"be said,{end}"
    )
