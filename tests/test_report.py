"""The report of a fake study: run folders written by hand, their numbers computed directly."""

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import PATIENTS, dice_of, finish, finish_all

from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.comparison import Branch, area, compare, corrected
from fewscan.harness.report.evidence import Quartiles, gather, quartiles
from fewscan.harness.report.figures import LABEL_AXES, colours_of, draw_evidence, draw_published
from fewscan.harness.report.results import panel_points, read_results
from fewscan.harness.report.run_log import read_logs
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.tables import escape_latex
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Study
from fewscan.harness.study_file import parse_study

GRID = {"label_counts": [1, 4, "all"], "seeds": [0, 1, 2]}
FILES = {
    *(
        f"{name}.{kind}"
        for name in ("figure", "binary", "multiclass", "training")
        for kind in ("png", "pdf")
    ),
    "report.html",
    "figure.csv",
    "numbers.csv",
    "areas.csv",
    "intervals.csv",
    "differences.csv",
    "labels_saved.csv",
    "labels_needed.csv",
    "quartiles.csv",
    "trainings.csv",
    "trials.csv",
    "ranking.csv",
    "pairs.csv",
    "arithmetic.csv",
    "tables.tex",
    "grid.txt",
}


@pytest.fixture
def plan(
    tiny_study: Callable[..., Study],
    tiny_document: dict[str, Any],
    undrawn: None,
) -> Plan:
    """Three label counts and three seeds."""
    return make_plan(tiny_study(finetune=tiny_document["finetune"] | GRID))


@pytest.fixture(scope="module")
def finished(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The same study, finished and reported with its figures; not to be changed."""
    training = {"iterations": 4, "validate_every": 2}
    finetune = {"inits": ["scratch", "denoise"], "training": training} | GRID
    document = {
        "name": "finished",
        "store": str(store_path),
        "folder": str(tmp_path_factory.mktemp("finished")),
        "pretrain": {"denoise": {"training": training}},
        "finetune": finetune,
    }
    plan = make_plan(parse_study(document, "finished"))
    finish_all(plan)
    assert write_report(one_study(plan))[0].name == "figure.png"
    return plan


def table(plan: Plan, name: str) -> list[dict[str, str]]:
    with (plan.folder.report / name).open(newline="") as file:
        return list(csv.DictReader(file))


def lines(plan: Plan, name: str, **wanted: str) -> list[dict[str, str]]:
    return [row for row in table(plan, name) if wanted.items() <= row.items()]


def page(plan: Plan) -> str:
    """The page without the links of numbers to their runs, of which `test_page` sees."""
    text = (plan.folder.report / "report.html").read_text()
    return re.sub(r'<a class="runs"[^>]*>([^<]*)</a>', r"\1", text)


DICE = "dice_at_chosen_threshold"


def test_every_file_is_there(finished: Plan) -> None:
    report = finished.folder.report
    files = {file.name: file.stat().st_size for file in report.glob("[!.]*")}
    assert files.keys() == FILES
    assert min(files.values()) > 0


def test_numbers_are_those_of_the_cases(finished: Plan) -> None:
    (row,) = lines(finished, "intervals.csv", metric=DICE, arm="scratch", label_count="4")
    expected = [
        dice_of(r).mean() for r in finished.runs if r.name.startswith("score binary · scratch · 4")
    ]
    assert len(expected) == 3
    assert float(row["mean"]) == pytest.approx(np.mean(expected), abs=1e-12)
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert (row["seeds"], row["planned"], row["patients"]) == ("3", "3", "6")
    (unsupervised,) = lines(finished, "intervals.csv", metric=DICE, label_count="")
    assert float(unsupervised["mean"]) == pytest.approx(0.15)
    assert unsupervised["low"] == ""


def test_a_class_that_is_not_defined_for_a_patient_is_left_out(finished: Plan) -> None:
    wanted = {"arm": "scratch", "label_count": "1"}
    dice_SP = np.array(
        [dice_of(r) for r in finished.runs if r.name.startswith("score binary · scratch · 1 ")]
    )
    (core,) = lines(finished, "intervals.csv", metric="dice_necrotic_core", **wanted)
    assert core["patients"] == "3"
    assert float(core["mean"]) == pytest.approx(dice_SP[:, :3].mean())
    (mean,) = lines(finished, "intervals.csv", metric="dice_class_mean", **wanted)
    shares_P = np.array([1.75 / 3] * 3 + [0.75 / 2] * 3)
    assert float(mean["mean"]) == pytest.approx((dice_SP * shares_P).mean())


def test_nsd_is_compared_as_dice_is(finished: Plan) -> None:
    for name in ("intervals.csv", "differences.csv"):
        for dice, nsd in (("dice_class_mean", "nsd_class_mean"), ("dice_oedema", "nsd_oedema")):
            rows = [
                [{**row, "metric": "", "p": ""} for row in lines(finished, name, metric=metric)]
                for metric in (dice, nsd)
            ]
            assert rows[0] == rows[1] != []


def test_hd95_has_quartiles_in_which_infinity_is_the_largest(finished: Plan) -> None:
    """Three seeds of ∞, 10, 20, 30, 40, 50 mm."""
    wanted = {"target": "binary", "arm": "scratch", "label_count": "4"}
    (row,) = lines(finished, "quartiles.csv", **wanted)
    ends = [row[name] for name in ("lower", "median", "upper")]
    assert (row["metric"], row["patients"], row["values"]) == ("hd95_mm_lesion", "6", "18")
    assert ends == ["20.0", "30.0", "50.0"]
    assert float(row["infinite_share"]) == pytest.approx(1 / 6)
    assert '<td class="n">30.0<small>20.0 to 50.0; 17% ∞; 6 patients</small></td>' in page(finished)
    found = quartiles(np.array([1.0, math.inf, math.nan, math.inf, math.inf]))
    assert found == Quartiles(4, 1.0, math.inf, math.inf, 0.75)
    assert quartiles(np.array([math.nan])) == Quartiles(0, None, None, None, None)


def test_false_positives_are_shown_with_how_many_patients_they_are_about(finished: Plan) -> None:
    """Three patients have no necrotic core; all have the other classes: nothing is said there."""
    wanted = {"target": "multiclass", "arm": "scratch", "label_count": "4"}
    rows = lines(finished, "quartiles.csv", **wanted)
    invented = {it["metric"]: it for it in rows if it["metric"].startswith("false_positive")}
    (row,) = invented.values()
    assert (row["metric"], row["median"]) == ("false_positive_mm3_necrotic_core", "8.0")
    assert (row["patients"], row["seeds"], row["values"]) == ("3", "3", "9")
    assert '<td class="n">8.0<small>8.0 to 8.0; 3 patients</small></td>' in page(finished)


def test_published_figures_are_drawn_and_cited(
    tiny_study: Callable[..., Study], undrawn: None
) -> None:
    line = {"label": "line", "citation": "A & B (2001)", "metric": "pooled_ap", "value": 0.5}
    points = [[4, 0.4], [1, 0.1]]
    dots = {"label": "dots", "citation": "C (2002)", "metric": "pooled_ap", "points": points}
    published = [line, dots]
    plan = make_plan(tiny_study(published=published))
    finish_all(plan)
    write_report(one_study(plan))
    assert "A &amp; B (2001)" in page(plan)
    assert "0.1 with 1 labelled scan; 0.4 with 4 labelled scans" in page(plan)
    figure = draw_published([], {}, plan.study.published)
    drawn = {line.get_label(): line.get_xydata() for line in figure.axes[0].get_lines()}
    assert np.array_equal(drawn["published: dots"], [[1, 0.1], [4, 0.4]])
    assert drawn["published: line"][:, 1].tolist() == [0.5, 0.5]
    assert not figure.axes[1].get_lines()


def test_differences_are_those_of_the_statistics(finished: Plan) -> None:

    def cells(arm: str) -> dict[int, Cell]:
        found = {}
        for count in (1, 4, 18):
            runs = [
                run
                for run in finished.grid
                if (run.place.target, run.place.arm.key, run.place.labels) == ("binary", arm, count)
            ]
            subsets = tuple((str(run.place.seed),) for run in runs)
            scores_SP = np.array([dice_of(run) for run in runs])
            found[count] = Cell(arm, (0, 1, 2), tuple(PATIENTS), subsets, scores_SP)
        return found

    expected = compare(cells("denoise"), cells("scratch"), may_collapse=True)
    rows = lines(finished, "differences.csv", metric=DICE)
    assert [int(row["label_count"]) for row in rows] == [1, 4, 18]
    for row, it in zip(rows, expected.values(), strict=True):
        assert float(row["difference"]) == pytest.approx(0.2)
        assert float(row["p_uncorrected"]) == pytest.approx(it.p)
        assert row["standardised"] == ""  # the same for all patients
    whole = area(cells("denoise"), cells("scratch"), may_collapse=True)
    assert whole is not None
    (row,) = lines(finished, "areas.csv", metric=DICE, arm="denoise")
    assert float(row["difference"]) == pytest.approx(0.2)
    assert (row["label_counts"], row["seeds"], row["units"]) == ("1, 4, 18", "3", "3")
    assert float(row["p_uncorrected"]) == pytest.approx(whole.p)
    assert whole.mean.value == pytest.approx(float(row["area"]))


def test_p_values_are_corrected_for_all_that_the_report_tests(finished: Plan) -> None:
    """An area and three label counts for each of two targets; no other metric is tested."""
    rows = table(finished, "areas.csv")
    p_values = {row["metric"]: row["p"] for row in rows if row["arm"] == "denoise"}
    tested = {metric for metric, p in p_values.items() if p}
    assert tested == {DICE, "dice_class_mean"}
    branches = {}
    for metric in tested:
        (whole,) = lines(finished, "areas.csv", metric=metric, arm="denoise")
        counts = lines(finished, "differences.csv", metric=metric)
        each = {int(row["label_count"]): float(row["p_uncorrected"]) for row in counts}
        branches[metric] = Branch(float(whole["p_uncorrected"]), each)
    expected = corrected(branches)
    for metric in tested:
        assert float(p_values[metric]) == pytest.approx(expected[metric].area)
        for row in lines(finished, "differences.csv", metric=metric):
            count = int(row["label_count"])
            assert float(row["p"]) == pytest.approx(expected[metric].counts[count])
    assert {row["p"] for row in lines(finished, "differences.csv", metric="nsd_oedema")} == {""}


def test_collapsed_runs_are_counted_and_shown(plan: Plan) -> None:
    """One run of 18 scores nearly 0."""
    finish_all(plan)
    odd = next(run for run in plan.runs if run.name == "score binary · denoise · 4 scans · seed 1")
    finish(plan, odd, bonus=-dice_of(odd).mean())
    write_report(one_study(plan))
    rows = lines(plan, "intervals.csv", metric=DICE)
    found = {(row["arm"], row["label_count"]): row["collapsed"] for row in rows}
    assert found.pop(("denoise", "4")) == "1"
    assert {*found.values()} == {"0"}
    assert "<li>pre-trained: denoise, 4 labelled scans: seed 1 of 3</li>" in page(plan)
    assert "1 of the 9 runs of denoise and 0 of the 9 runs of scratch" in page(plan)


def test_labels_that_scratch_never_saves_are_not_reached(finished: Plan) -> None:
    """0.2 is worth a factor of 100, and there are 18 scans."""
    rows = lines(finished, "labels_saved.csv", metric=DICE)
    assert [row["needed"] for row in rows] == ["inf"] * 3
    assert "not reached (&gt; 18)" in page(finished)
    assert "scratch does not reach with 18" in page(finished)


def test_the_verdict_is_said_in_words_with_its_interval(finished: Plan) -> None:
    sentence = re.search(r"<p>(Pre-training \(denoise\) raises.*)</p>", page(finished))
    assert sentence is not None
    assert "by 0.200, averaged over 1 to 18 labelled scans" in sentence[1]
    assert "(95 % interval of the difference +0." in sentence[1]
    assert "All seeds of denoise start from one pre-training: this is about these weights" in (
        page(finished)
    )
    (row,) = lines(finished, "areas.csv", metric=DICE, arm="denoise")
    assert row["one_pretraining"] == "True"


def test_a_table_of_the_page_aligns_numbers_and_escapes_texts(
    tiny_study: Callable[..., Study], undrawn: None
) -> None:
    line = {"label": "<i>x</i>", "citation": "A" * 50, "metric": "pooled_ap", "value": 0.5}
    plan = make_plan(tiny_study(published=[line]))
    finish_all(plan, lambda run: run.place.arm.is_scratch)
    write_report(one_study(plan))
    assert '<th>metric</th><th class="n">labelled scans</th>' in page(plan)
    assert '<td class="a">&lt;i&gt;x&lt;/i&gt;</td>' in page(plan)
    assert f'<td class="">{"A" * 50}</td>' in page(plan)
    assert '<td class="n missing">missing</td>' in page(plan)


def test_a_title_stands_over_its_column_wherever_that_is(finished: Plan) -> None:
    """Numbers may stand before texts, as in the table of trainings."""
    tables = re.findall(r"<table>.*?</table>", page(finished), flags=re.DOTALL)
    for each in tables:
        head, *rows = re.findall(r"<tr>.*?</tr>", each, flags=re.DOTALL)
        for row in rows:
            cells = re.findall(r'<td class="(.*?)">', row)
            assert [it.startswith("n") for it in cells] == numbers_in_head(head)
    heads = [re.findall(r"<th(?: [^>]*)?>(.*?)</th>", each) for each in tables]
    (trainings,) = [it for it in heads if it[0] == "training"]
    assert trainings[-2:] == ["lowest gain", "of level"]
    assert any(it != sorted(it) for it in map(numbers_in_head, tables)), "one is there"


def numbers_in_head(table: str) -> list[bool]:
    return [kind == "n" for kind in re.findall(r'<th(?: class="(n?)")?>', table)]


def test_one_seed_concludes_nothing(tiny_study: Callable[..., Study], undrawn: None) -> None:
    plan = make_plan(tiny_study())
    finish_all(plan)
    write_report(one_study(plan))
    assert "Nothing can be concluded" in page(plan)
    assert "it takes two seeds" in page(plan)
    assert {row["low"] for row in table(plan, "differences.csv")} == {""}


def test_an_unfinished_study_shows_what_is_missing_and_why(plan: Plan) -> None:
    finish_all(plan, lambda run: run.place.arm.is_scratch and run.place.seed < 2)
    failed = plan.runs[0]
    plan.record(failed).write(plan.folder_of(failed))
    plan.folder_of(failed).fail(ValueError("the loss is not finite <b>at</b> step 3"))
    write_report(one_study(plan))
    text = page(plan)
    assert "50 of 74 runs are not finished" in text
    assert "the loss is not finite &lt;b&gt;at&lt;/b&gt; step 3" in text
    assert f"waits for run {failed.run_id}, which did not succeed" in text
    assert "not begun" in text
    assert "no label count has finished runs of both arms" in text
    for row in lines(plan, "intervals.csv", arm="denoise"):
        assert (row["seeds"], row["mean"]) == ("0", "")
    for row in lines(plan, "intervals.csv", metric=DICE, arm="scratch"):
        assert (row["seeds"], row["planned"]) == ("2", "3")
    assert {row["difference"] for row in table(plan, "differences.csv")} == {""}
    assert table(plan, "labels_saved.csv") == []


def test_arms_given_other_scans_are_not_compared(plan: Plan) -> None:
    finish_all(plan)
    odd = next(run for run in plan.runs if run.name == "score binary · denoise · 4 scans · seed 1")
    finish(plan, odd, labelled=["T9"])
    write_report(one_study(plan))
    assert "different labelled scans for seed 1" in page(plan)
    assert {row["difference"] for row in lines(plan, "differences.csv", target="binary")} == {""}
    assert "" not in {
        row["difference"] for row in lines(plan, "differences.csv", metric="dice_oedema")
    }


def test_other_patients_in_one_seed_are_said(plan: Plan) -> None:
    finish_all(plan)
    odd = next(run for run in plan.runs if run.name == "score binary · denoise · 4 scans · seed 1")
    cases = plan.folder_of(odd).cases
    cases.write_text(cases.read_text().replace("P0,", "P9,"))
    write_report(one_study(plan))
    assert "the seeds of denoise, 4 scans were tested on different patients" in page(plan)
    assert {row["target"] for row in table(plan, "quartiles.csv")} == {"multiclass"}


def test_a_finished_run_without_cases_is_named(plan: Plan) -> None:
    finish_all(plan)
    run = next(run for run in plan.runs if run.name == "score binary · scratch · 1 scan · seed 0")
    plan.folder_of(run).cases.unlink()
    write_report(one_study(plan))
    assert "its cases.csv is gone" in page(plan)
    (row,) = lines(plan, "intervals.csv", metric=DICE, arm="scratch", label_count="1")
    assert row["seeds"] == "2"


def test_the_page_needs_no_network(finished: Plan) -> None:
    addresses = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", page(finished))
    assert addresses
    for address in addresses:
        beside = (finished.folder.report / address).exists() if len(address) < 200 else False
        assert address.startswith(("data:image/svg+xml;base64,", "#")) or beside, address
    assert not re.search(r"url\(|@import|<script|<link|https?://", page(finished))


def test_names_are_escaped(tiny_study: Callable[..., Study], undrawn: None) -> None:
    plan = make_plan(tiny_study(name="<i>$a_1$ & 50 %</i>"))
    finish_all(plan)
    write_report(one_study(plan))
    assert "<h1><small>fewscan report</small>&lt;i&gt;$a_1$ &amp; 50 %&lt;/i&gt;</h1>" in page(plan)
    assert "<i>" not in page(plan)
    latex = (plan.folder.report / "tables.tex").read_text()
    assert r"$<$i$>$\$a\_1\$ \& 50 \%$<$/i$>$, binary" in latex


def test_latex_escapes_what_is_special() -> None:
    assert escape_latex("a_b\\{−1}") == r"a\_b\textbackslash{}\{$-$1\}"


def test_the_record_says_what_ran_where(finished: Plan) -> None:
    trained = len(finished.runs) - len(finished.scores)
    rows = re.search(r"What ran on what</h2>.*?<tbody>(.*?)</tbody>", page(finished), re.DOTALL)
    assert rows is not None
    texts = re.findall(r"<td[^>]*>(.*?)</td>", rows[1])
    assert texts == [
        "node7", "cpu", "torch 2.99", "1", f"{trained}", f"{36 * trained:,}",
        f"{trained / 100:.3f}",
    ]  # fmt: skip


def test_seconds_of_interrupted_attempts_count(plan: Plan) -> None:
    run = plan.runs[0]
    folder = plan.folder_of(run)
    plan.record(run).write(folder)
    place = {"device": "cpu", "ranks": 2}
    folder.append_event("started", 0, 100.0, attempt=place | {"host": "a"})
    folder.append_event("checkpoint", 1, 110.0)
    folder.append_event("started", 1, 500.0, attempt=place | {"host": "b"})
    folder.append_event("finished", 2, 530.0, seconds=31.0)
    log = read_logs(one_study(plan))[0]
    assert (log.attempts, log.hosts, log.seconds) == (2, ("a", "b"), 41.0)
    assert log.device_hours == pytest.approx(82 / 3600)


def test_energy_is_what_was_sampled_and_no_more(plan: Plan) -> None:
    for run in plan.runs[:2]:  # a pre-training, and its score
        finish(plan, run)
    write_report(one_study(plan))
    assert "<dd>not known</dd>" in page(plan)
    for watts in (200.0, 400.0):
        plan.folder_of(plan.runs[0]).append_usage({"gpu_power_watts": watts})
    assert read_logs(one_study(plan))[0].gpu_kwh == pytest.approx(0.3 * 36 / 3600)
    write_report(one_study(plan))
    assert "<dd>0.003 kWh</dd>" in page(plan)
    finish(plan, plan.runs[2])
    write_report(one_study(plan))
    assert "<dd>0.003 kWh in 1 of 2 runs</dd>" in page(plan)


def test_the_page_says_of_energy_what_the_numbers_say(plan: Plan) -> None:
    """Once it gave kilowatt-hours and said that nothing measures them."""
    finish_all(plan)
    write_report(one_study(plan))
    assert "no run sampled what its GPU drew" in page(plan)
    plan.folder_of(plan.runs[0]).append_usage({"gpu_power_watts": 300.0})
    write_report(one_study(plan))
    assert "0.003 kWh in 1 of 37 runs" in page(plan)
    assert "Energy is of the 1 runs of 37 that sampled their GPU" in page(plan)
    assert "not known" not in page(plan)


def test_the_same_folders_give_the_same_bytes(finished: Plan) -> None:
    names = sorted(FILES)
    first = [(finished.folder.report / name).read_bytes() for name in names]
    write_report(one_study(finished))
    assert [(finished.folder.report / name).read_bytes() for name in names] == first


def test_what_a_killed_writer_has_left_goes_with_the_next_report(finished: Plan) -> None:
    left = finished.folder.report / ".training.pdf.3923.partial"
    finished.folder.report.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    write_report(one_study(finished))
    assert not left.exists()


def test_labels_are_counted_in_tables_and_under_each_figure(finished: Plan) -> None:
    """Of 24 scans 18 train, one of the tiny store's validates: its label chooses."""
    for name in ("figure.csv", "intervals.csv"):
        (row,) = lines(finished, name, metric=table(finished, name)[0]["metric"], arm="scratch")[:1]
        assert int(row["labels_in_all"]) == int(row["label_count"]) + 1
        (row,) = lines(finished, name, metric=table(finished, name)[0]["metric"], arm="denoise")[:1]
        assert int(row["labels_in_all"]) == 19, "the masks told the pre-training what is healthy"
    text = page(finished)
    assert (
        text.count("Scans whose labels count, at so many labelled scans: from scratch 2 at 1") == 3
    )
    assert "1 learnt from, 1 to choose, 19 masks for healthy slices: 19 in all" in text


def test_the_axis_may_be_all_labels(finished: Plan) -> None:
    points = panel_points(one_study(finished), read_results(one_study(finished)))
    colours = colours_of(list(dict.fromkeys(it.arm for it in points if it.labels is not None)))
    for axis, first in (("learnt", 1), ("all", 2)):
        axes = draw_published(points, colours, axis=axis).axes[0]
        assert axes.lines[0].get_xdata()[0] == first
        assert axes.get_xlabel() == LABEL_AXES[axis]


def test_how_trainings_went_is_on_the_page(finished: Plan) -> None:
    text = page(finished)
    assert "Epochs, rates, last models and gains of all trainings" in text
    rows = table(finished, "trainings.csv")
    assert {row["training"] for row in rows} == {"pre-train denoise", "scratch", "denoise"}
    assert table(finished, "trials.csv") == []
    assert "Learning rates that were tried" not in text


def test_a_long_schedule_is_a_line(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """It has one label count, all of them, and is compared with nothing."""
    plan = make_plan(
        tiny_study(finetune=tiny_document["finetune"] | GRID, baselines=["supervised long"])
    )
    finish_all(plan)
    studies = one_study(plan)
    points = panel_points(studies, read_results(studies))
    colours = colours_of(list(dict.fromkeys(it.arm for it in points if it.labels is not None)))
    evidence, *_ = gather(studies, read_results(studies), leading=True)
    for axes in (draw_published(points, colours).axes[0], draw_evidence(evidence, colours).axes[0]):
        (line,) = [it for it in axes.lines if "long schedule" in str(it.get_label())]
        assert list(line.get_xdata()) == [0, 1], "from edge to edge"
    assert {arm.schedule for arm in studies.references()} == {"plain"}
