"""The report's page and figures: what a reviewer, a phone and a journal ask of them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from fake_runs import finish_all

from fewscan.experiments.settings import Selection
from fewscan.experiments.spec import Augmentation, Training
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.examples import MARGIN, Choice, Examples, cropped
from fewscan.harness.report.figures import WIDTH, colours_of, draw_published, save_figure
from fewscan.harness.report.methods import (
    AUGMENTATIONS,
    NORMALISATIONS,
    OPTIMISERS,
    SELECTIONS,
    methods,
)
from fewscan.harness.report.results import panel_points, read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Study
from fewscan.storage.intensity import Normalisation
from fewscan.storage.slices import SliceStore

ARMS = {"label_counts": [1, 4, "all"], "seeds": [0, 1]}


@pytest.fixture
def finished(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    plan = make_plan(tiny_study(finetune=tiny_document["finetune"] | ARMS))
    finish_all(plan)
    return plan


@pytest.fixture
def page(finished: Plan, undrawn: None) -> str:
    write_report(one_study(finished))
    return (finished.folder.report / "report.html").read_text()


def test_the_answer_comes_first_then_one_figure_then_methods(page: str) -> None:
    order = [
        page.index(it) for it in ('class="answer"', 'id="figure"', 'id="methods"', 'id="pixels"')
    ]
    assert order == sorted(order)
    assert page[: order[2]].count("<figure>") == 1


def test_links_within_the_page_lead_somewhere(page: str) -> None:
    wanted = set(re.findall(r'href="#([^"]+)"', page))
    assert {"answer", "figure", "methods", "binary", "multiclass", "missing"} <= wanted
    assert wanted <= set(re.findall(r'id="([^"]+)"', page))


def test_a_number_leads_to_the_runs_it_is_made_of(page: str, finished: Plan) -> None:
    cells = re.findall(r'<a class="runs" href="#([^"]+)">', page)
    assert len({*cells}) >= len(finished.grid) / 2, "each cell has two seeds"
    for anchor in cells:
        (row,) = re.findall(rf'<tr id="{anchor}">.*?href="\.\./runs/([^"]+)"', page, re.DOTALL)
        (run,) = [it for it in finished.scores if it.run_id == row]
        place = run.place
        words = {str(place.target), *re.findall(r"\w+", place.arm.key), str(place.labels or 0)}
        assert words <= {*anchor.split("-")}


def test_links_lead_to_files_that_are_there(page: str, finished: Plan) -> None:
    links = re.findall(r'href="([^"#]+)"', page)
    assert {"figure.pdf", "figure.png"} <= {*links}
    folders = [it for it in links if it.startswith("../runs/")]
    assert {Path(it).name for it in folders} == {run.run_id for run in finished.runs}
    assert all((finished.folder.report / it).exists() for it in links)


def test_methods_say_what_was_run(finished: Plan, store_path: Path) -> None:
    said = dict(methods(one_study(finished)))
    assert "18 train, 1 validation, 5 test; 5 test patients" in said["Data"]
    assert finished.store.fingerprint in said["Data"]
    assert "16 × 16 pixels" in said["Slices"]
    assert "divided by the 0.99 quantile" in said["Slices"]
    assert said["Network"].startswith("2D U-Net, width 4, 2 levels, ")
    assert said["Pre-training"].startswith(
        "denoise: denoise (resolution 4, std 0.2). It is trained on"
    )
    for words in ("4 updates", "batch 4", "rate 0.01 ", "weight decay 1e-05", "1 seed."):
        assert words in said["Pre-training"]
    assert "4 updates at 1, 4, 18 labelled scans" in said["Fine-tuning"]
    assert "2 seeds" in said["Fine-tuning"]
    assert said["Statistics"].endswith("is 0.05.")


def test_methods_change_with_the_study(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"] | {"selection": "last", "iterations": {1: 4, 18: 8}}
    wish = tiny_document["pretrain"]["denoise"] | {"slices": "all"}
    plan = make_plan(tiny_study(finetune=grid, pretrain={"denoise": wish}))
    said = dict(methods(one_study(plan)))
    assert said["Model and threshold"].startswith("None: the last model is kept")
    assert "4 updates at 1 labelled scans; 8 updates at 18" in said["Fine-tuning"]
    assert "on all slices" in said["Pre-training"]
    assert said["Computed with"] == "Not recorded."


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (OPTIMISERS, get_type_hints(Training)["optimiser"]),
        (NORMALISATIONS, Normalisation),
        (SELECTIONS, Selection),
        (AUGMENTATIONS, get_type_hints(Augmentation)["policy"]),
    ],
)
def test_methods_have_words_for_every_setting(words: dict[str, str], hint: Any) -> None:
    assert words.keys() == set(get_args(hint))


def test_methods_say_whose_slices_a_pretraining_sees(
    tiny_study: Callable[..., Study], store_path: Path, tmp_path: Path
) -> None:
    """Another store is named; without it they are the study's own training scans."""
    plan = make_plan(tiny_study())
    (said,) = (text for term, text in methods(one_study(plan)) if term == "Pre-training")
    assert "of the training scans, " in said
    other = SliceStore.open(store_path)
    elsewhere = replace(plan, stores={"denoise": other})
    (said,) = (text for term, text in methods(one_study(elsewhere)) if term == "Pre-training")
    assert f"of the training scans of another store ({other.fingerprint[:12]})" in said


def test_nothing_of_ours_is_called_published(page: str) -> None:
    assert "as published</h2>" not in page.lower()


def test_it_is_made_for_phones_and_the_dark(page: str) -> None:
    assert 'content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    tables = page.count("<table>")
    assert tables == page.count('<div class="scroll"><table>')


def test_figures_are_as_journals_want_them(finished: Plan, tmp_path: Path) -> None:
    studies = one_study(finished)
    points = panel_points(studies, read_results(studies))
    arms = list(dict.fromkeys(it.arm for it in points if it.labels is not None))
    figure = draw_published(points, colours_of(arms))
    assert figure.get_figwidth() == pytest.approx(WIDTH)
    assert 170 / 25.4 < WIDTH < 190 / 25.4
    save_figure(figure, tmp_path / "it.pdf")
    pdf = (tmp_path / "it.pdf").read_bytes()
    assert b"/FontFile2" in pdf, "TrueType"
    assert b"/Type3" not in pdf
    for axes in figure.axes:
        low, high = axes.get_ylim()
        for band in axes.collections:
            for path in band.get_paths():
                assert path.vertices[:, 1].min() >= max(0, low) - 1e-9
                assert path.vertices[:, 1].max() <= min(1, high) + 1e-9


def test_panels_of_a_target_that_is_not_asked_for_are_not_drawn(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    plan = make_plan(tiny_study(finetune=tiny_document["finetune"] | {"targets": ["binary"]}))
    finish_all(plan)
    studies = one_study(plan)
    points = panel_points(studies, read_results(studies))
    arms = list(dict.fromkeys(it.arm for it in points if it.labels is not None))
    assert len(draw_published(points, colours_of(arms)).axes) == 2


def examples(size: int = 40) -> Examples:
    """Two heads in a corner of their slices."""
    images_NHW = np.zeros((2, size, size), np.float32)
    images_NHW[0, 5:20, 8:30] = 1
    images_NHW[1, 6:25, 9:28] = 1
    blank = np.zeros_like(images_NHW, dtype=np.uint8)
    choice = Choice("binary", 1, 0, (), (), None, {"median": "P0"}, {})
    return Examples(choice, np.arange(2), images_NHW, blank, blank[None], None)


def test_examples_are_cropped_to_the_head() -> None:
    found = cropped(examples())
    margin = round(MARGIN * 40)
    assert found.images_NHW.shape == (2, 20 + 2 * margin, 22 + 2 * margin)
    assert found.labels_ANHW.shape[2:] == found.truth_NHW.shape[1:] == found.images_NHW.shape[1:]
    assert found.images_NHW.sum() == examples().images_NHW.sum()


def test_a_slice_without_anything_is_shown_whole() -> None:
    nothing = examples()
    nothing.images_NHW[:] = 0
    assert cropped(nothing).images_NHW.shape == (2, 40, 40)


def test_means_are_there_for_latex(page: str, finished: Plan) -> None:
    """0.155 and 0.355 at one scan: see `fake_runs`; a cell is one line."""
    latex = (finished.folder.report / "tables.tex").read_text()
    row = next(line for line in latex.split("\n") if line.startswith(" & 1 & "))
    assert re.match(r" & 1 & 0\.155 \(0\.\d+ to 0\.\d+\) & 0\.355 \(0\.\d+ to 0\.\d+\)", row)


def test_a_study_that_grows_keeps_its_earlier_report(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any], undrawn: None
) -> None:
    small = make_plan(tiny_study(finetune=tiny_document["finetune"] | ARMS | {"seeds": [0, 1]}))
    finish_all(small)
    for _ in range(2):  # the same grid: written over
        write_report(one_study(small))
    before = (small.folder.report / "report.html").read_text()
    large = make_plan(tiny_study(finetune=tiny_document["finetune"] | ARMS | {"seeds": [0, 1, 2]}))
    finish_all(large)
    write_report(one_study(large))
    (kept,) = small.folder.earlier_reports.glob("*")
    assert (kept / "report.html").read_text() == before
    assert (kept / "areas.csv").exists()
    page = (large.folder.report / "report.html").read_text()
    assert f'href="../reports/{kept.name}/report.html"' in page
    assert "Earlier reports" not in before
    write_report(one_study(large))
    assert len([*small.folder.earlier_reports.glob("*")]) == 1
