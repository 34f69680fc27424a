"""Many arms: their ranking and how stable it is, each against each; nine arms in a report."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import PATIENTS, finish_all, write_cases

from fewscan.experiments.spec import Score
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.comparison import area
from fewscan.harness.report.evidence import gather
from fewscan.harness.report.figures import OTHERS, SCRATCH, colours_of, draw_evidence, rows_of
from fewscan.harness.report.power import power_lines
from fewscan.harness.report.ranking import MOST_TESTED, Ranking, other_pairs, rank
from fewscan.harness.report.results import read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import gather_report, write_report
from fewscan.harness.study_file import parse_study

ARMS = [Arm("fine-tuning", name) for name in (None, "a", "b", "c")]
COUNTS = (1, 4, 16)


def simulated(
    means: Mapping[Arm, float], seed: int = 0, seeds: int = 5, patients: int = 40
) -> dict[Arm, dict[int, Cell]]:
    """Arms of known worth; patients are hard or easy for all of them alike."""
    rng = np.random.default_rng(seed)
    hard_P = rng.normal(0, 0.15, patients)
    names = tuple(f"P{n}" for n in range(patients))
    return {
        arm: {
            n: Cell(
                f"{arm.key}, {n}",
                tuple(range(seeds)),
                names,
                tuple((f"S{seed}",) for seed in range(seeds)),
                worth
                + 0.1 * math.log10(n)
                + hard_P
                + rng.normal(0, 0.02, (seeds, 1))
                + rng.normal(0, 0.05, (seeds, patients)),
            )
            for n in COUNTS
        }
        for arm, worth in means.items()
    }


def ranking_of(arms: Mapping[Arm, Mapping[int, Cell]], **keywords: Any) -> Ranking:
    found = rank(arms, **keywords)
    assert found is not None
    return found


WORTH = dict(zip(ARMS, (0.3, 0.5, 0.5, 0.4), strict=True))


def test_arms_are_ranked_by_their_areas() -> None:
    cells = simulated(WORTH)
    found = ranking_of(cells)
    areas = {arm: area(it) for arm, it in cells.items()}
    for it in found.ranked:
        own = areas[it.arm]
        assert own is not None
        assert it.area.value == own.mean.value
        assert it.area.interval == pytest.approx(own.mean.interval, abs=0.02)
    values = [it.area.value for it in found.ranked]
    assert values == sorted(values, reverse=True)  # type: ignore[type-var]
    assert [it.rank for it in found.ranked] == [1, 2, 3, 4]
    assert found.counts == COUNTS
    worst_first = ranking_of(cells, higher_is_better=False)
    assert [it.arm for it in worst_first.ranked] == [it.arm for it in found.ranked][::-1]


def test_equal_arms_share_the_first_place_and_others_never_have_it() -> None:
    """a and b are equally good, c is clearly worse, scratch the worst."""
    found = {it.arm: it for it in ranking_of(simulated(WORTH)).ranked}
    first = [found[arm].best for arm in ARMS]
    assert first[0] == first[3] == 0
    assert first[1] + first[2] == pytest.approx(1)  # type: ignore[operator]
    assert 0.02 < (first[1] or 0) < 0.98
    assert [found[arm].ranks for arm in ARMS] == [(4, 4), (1, 2), (1, 2), (3, 3)]


def test_over_many_studies_equal_arms_are_best_equally_often() -> None:
    best = [
        [
            it.best
            for it in sorted(
                ranking_of(simulated(WORTH, n), resamples=200).ranked,
                key=lambda it: it.arm.init or "",
            )
        ]
        for n in range(60)
    ]
    means_A = np.array(best, dtype=float).mean(axis=0)
    assert means_A == pytest.approx([0, 0.5, 0.5, 0], abs=0.12)


def test_a_pair_is_tested_as_any_comparison_is() -> None:
    cells = simulated(WORTH)
    found = ranking_of(cells)
    assert len(found.pairs) == 6
    for it in found.pairs:
        whole = area(cells[it.first], cells[it.second])
        assert whole is not None
        assert (it.difference, it.p) == (whole.difference, whole.p)
        assert (it.difference.value or 0) >= 0, "the better one comes first"


def test_the_probability_of_improvement_is_counted() -> None:
    """Patients and seeds for which one does better, ties shared; counts weigh as in the area."""
    cells = simulated(dict(zip(ARMS[:3], (0.5, 0.52, 0.4), strict=True)), patients=20)
    twin = dict(cells[ARMS[1]])
    found = ranking_of(cells | {ARMS[3]: twin})
    pairs = {frozenset((it.first, it.second)): it for it in found.pairs}
    even = pairs[frozenset((ARMS[1], ARMS[3]))].improvement
    assert (even.value, even.interval) == (0.5, (0.5, 0.5))
    it = pairs[frozenset((ARMS[0], ARMS[1]))]
    weights = {1: 0.25, 4: 0.5, 16: 0.25}
    wins = dict.fromkeys(COUNTS, 0)
    for n in COUNTS:
        first, second = (cells[arm][n].scores_SP for arm in (it.first, it.second))
        for row, other in zip(first.tolist(), second.tolist(), strict=True):
            wins[n] += sum(a > b for a, b in zip(row, other, strict=True))
    expected = sum(weights[n] * wins[n] / 100 for n in COUNTS)
    assert it.improvement.value == pytest.approx(expected)
    assert it.improvement.interval is not None
    low, high = it.improvement.interval
    assert 0 <= low < expected < high <= 1
    down = ranking_of(cells | {ARMS[3]: twin}, higher_is_better=False)
    flipped = {frozenset((p.first, p.second)): p for p in down.pairs}[frozenset(ARMS[:2])]
    assert (flipped.first, flipped.second) == (it.second, it.first)
    assert flipped.improvement.value == pytest.approx(1 - (1 - expected))


def test_what_is_missing_is_left_out() -> None:
    cells = simulated(WORTH)
    del cells[ARMS[1]][16]
    cells[ARMS[3]] = {}
    found = ranking_of(cells)
    assert (found.counts, found.left_out) == ((1, 4), (ARMS[3],))
    assert len(found.ranked) == 3
    assert rank({arm: cells[arm] for arm in ARMS[:2]}) is None
    cells[ARMS[0]] = {16: cells[ARMS[0]][16]}
    assert rank(cells) is None, "no label count is shared"
    one = ranking_of(simulated(WORTH, seeds=1))
    assert {(it.best, it.ranks) for it in one.ranked} == {(None, None)}
    assert {it.p for it in one.pairs} == {None}


def test_which_pairs_are_tested_is_known_before() -> None:
    """Those beside arms and their references; none of two arms, or of too many."""
    references = dict.fromkeys(ARMS[1:], ARMS[0])
    found = other_pairs(ARMS, references)
    assert found == [frozenset(it) for it in ((ARMS[1], ARMS[2]), (ARMS[1], ARMS[3]), ARMS[2:])]
    assert other_pairs(ARMS[:2], references) == []
    many = [Arm("fine-tuning", str(n)) for n in range(MOST_TESTED + 1)]
    assert other_pairs(many, {}) == []
    assert len(other_pairs(many[1:], {})) == 66


NINE = ["scratch", *(f"scheme_{n}" for n in range(1, 9))]


@pytest.fixture
def zoo(tiny_document: dict[str, Any], undrawn: None) -> Plan:
    """Nine arms, finished: each is worth 0.05 more than the one before."""
    wish = tiny_document["pretrain"]["denoise"]
    pretrain = {
        name: wish | {"seeds": [0, 1, 2], "training": wish["training"] | {"iterations": 5 + k}}
        for k, name in enumerate(NINE[1:])
    }
    finetune = tiny_document["finetune"] | {
        "inits": NINE,
        "label_counts": [1, 4, 16],
        "seeds": [0, 1, 2],
        "targets": ["binary"],
    }
    document = tiny_document | {"pretrain": pretrain, "finetune": finetune, "baselines": []}
    plan = make_plan(parse_study(document, "zoo"))
    finish_all(plan)
    rng = np.random.default_rng(1)
    for run in plan.grid:
        worth = 0.05 * NINE.index(run.place.arm.init or "scratch")
        base = 0.2 + worth + 0.1 * math.log10(run.place.labels or 1) + rng.normal(0, 0.005, 6)
        write_cases(plan.folder_of(run).cases, base + 0.01 * np.arange(len(PATIENTS)), False)
    return plan


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_nine_arms_in_a_report(zoo: Plan) -> None:
    studies = one_study(zoo)
    write_report(studies)
    report = zoo.folder.report
    ranking = rows(report, "ranking.csv")
    assert [it["arm"] for it in ranking] == NINE[::-1]
    assert [it["rank"] for it in ranking] == [str(n) for n in range(1, 10)]
    assert float(ranking[0]["best"]) > 0.9
    pairs = rows(report, "pairs.csv")
    assert len(pairs) == 36
    areas = [it for it in rows(report, "areas.csv") if it["metric"] == ranking[0]["metric"]]
    compared = {it["arm"]: it for it in areas if it["reference"]}
    with_scratch = [it for it in pairs if it["against"] == "scratch"]
    assert {it["arm"] for it in with_scratch} == compared.keys()
    for it in with_scratch:
        assert it["p"] == compared[it["arm"]]["p"], "one number for one comparison"
        assert it["difference"] == compared[it["arm"]]["difference"]
    for it in pairs:
        assert float(it["p"]) >= float(it["p_uncorrected"])
        assert float(it["p"]) <= 36 * float(it["p_uncorrected"]) + 1e-12
    page = (report / "report.html").read_text()
    assert "36 comparisons, arms and pairs of arms times targets" in page
    assert "corrected for 36 comparisons" in page


def test_power_is_that_of_the_whole_family(zoo: Plan) -> None:
    assert "α = 0.05 / 36 comparisons" in "\n".join(power_lines(zoo))


def test_more_arms_than_stand_abreast_have_a_row_each(zoo: Plan) -> None:
    """In figures each is highlighted before the others; in tables counts are the columns."""
    studies = one_study(zoo)
    results = read_results(studies)
    (evidence,) = gather(studies, results, leading=True)
    report = gather_report(studies, results)
    arms = list(dict.fromkeys(it.arm for it in report.points))
    colours = colours_of(arms)
    assert len({*colours.values()}) == 9
    assert rows_of(arms[:4]) == [arms[:4]]
    assert rows_of(arms) == [(arm,) for arm in arms]
    for figure, columns in ((report.figures["figure"], 4), (draw_evidence(evidence, colours), 3)):
        grid = np.array(figure.axes).reshape(9, -1)
        assert grid.shape[1] <= columns
        for arm, axes in zip(arms, grid[:, 0], strict=True):
            drawn = [it.get_color() for it in axes.lines if len(it.get_xdata()) == 3]
            assert drawn.count(colours[arm]) >= 1
            assert drawn.count(OTHERS) + drawn.count(SCRATCH) >= 8
            assert not {*drawn} & ({*colours.values()} - {colours[arm]})
            assert axes.get_ylabel().replace("\n", " ") == arm.title
    ranges = {axes.get_ylim() for axes in np.array(figure.axes).reshape(9, -1)[:, 1]}
    assert len(ranges) == 1, "differences can be compared by eye"
    few = draw_evidence(evidence, dict(list(colours.items())[:4]))
    assert len(few.axes) == 3
    write_report(studies)
    page = (zoo.folder.report / "report.html").read_text()
    means = page[page.index("<h3>Means</h3>") :]
    head = re.findall(r"<th[^>]*>([^<]*)</th>", means[: means.index("</thead>")])
    assert head == ["metric", "arm", *(f"{n} labelled scan{'s' * (n > 1)}" for n in (1, 4, 16))]


def test_arithmetic_is_shown_for_each_arm(tiny_document: dict[str, Any], undrawn: None) -> None:
    """A frozen encoder and a probe cost less; what each costs in all is what the plan says."""
    inits = [
        "scratch",
        {"init": "denoise", "schedule": ["plain", "frozen", "probe"]},
    ]
    finetune = tiny_document["finetune"] | {"inits": inits, "targets": ["binary"]}
    plan = make_plan(parse_study(tiny_document | {"finetune": finetune}, "tiny"))
    finish_all(plan)
    write_report(one_study(plan))
    found = {it["what"]: it for it in rows(plan.folder.report, "arithmetic.csv")}
    share = {name: float(it["of_plain"]) for name, it in found.items()}
    assert share["from scratch"] == share["pre-trained: denoise"] == pytest.approx(1)
    assert share["pre-train denoise"] == pytest.approx(1)
    assert share["denoise's features, frozen"] == pytest.approx(1 / 3)
    assert 1 / 3 < share["pre-trained: denoise (frozen)"] < 1
    trained = sum(run.flops for run in plan.runs if not isinstance(run.spec, Score))
    assert sum(float(it["pflop"]) for it in found.values()) == pytest.approx(trained / 1e15)


def test_probes_at_one_label_count_are_dots_below_the_curves(tiny_document: dict[str, Any]) -> None:
    """They make no curve: each would have a row of panels with a single point."""
    finetune = tiny_document["finetune"] | {
        "label_counts": [1, 4],
        "inits": ["scratch", "denoise"],
        "targets": ["binary"],
        "probes": {"levels": [1], "label_counts": [4]},
    }
    plan = make_plan(parse_study(tiny_document | {"finetune": finetune}, "tiny"))
    finish_all(plan)
    studies = one_study(plan)
    results = read_results(studies)
    (evidence,) = gather(studies, results, leading=True)
    report = gather_report(studies, results)
    colours = colours_of(list(dict.fromkeys(it.arm for it in report.points)))
    for figure in (draw_evidence(evidence, colours), report.figures["figure"]):
        curves, dots = np.array(figure.axes).reshape(2, -1)
        assert "denoise (probe 1)" not in curves[0].get_legend_handles_labels()[1]
        names = [it.get_text() for it in dots[0].get_yticklabels()]
        assert names == ["scratch (probe 1)", "denoise (probe 1)"]
        assert dots[0].get_title() == "a new head on frozen features, 4 labelled scans"
