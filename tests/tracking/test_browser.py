"""MLflow's UI as a person sees it: the pages of `fewscan ui`, in a real Chromium."""

import os
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import debian
import pytest
from fake_folders import ui_server
from mlflow import MlflowClient
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from fewscan.experiments.results import Result
from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan
from fewscan.harness.tracking.mlflow_study import study_identity
from fewscan.harness.tracking.saved_views import report_page, saved_views
from fewscan.harness.tracking.tracker import sync

SWITCHES = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
UNSUPERVISED = "unsupervised: denoise"
WITHIN_MS = 120_000
"""Long enough for a busy machine; what is there sooner is not waited for."""
FOUR = [f"4 scans · seed 0 · {arm} · binary" for arm in ("denoise", "scratch")]
"""Of scores; the rows of their fine-tunings are called so as well, and \"· training\"."""
CHART = """metric => {
    const card = [...document.querySelectorAll('[data-testid="experiment-view-compare-runs-card"]')]
        .find(card => card.innerText.includes(metric));
    const plot = card && card.querySelector('.js-plotly-plot');
    return plot && plot.data && plot.data.filter(line => line.mode == 'lines+markers')
        .map(line => [line.uuid, [...line.x], [...line.y]]);
}"""
"""Arm, label counts and means of each line of one chart, as it is drawn."""


@pytest.fixture(scope="module")
def plan(finished_study: Path) -> Plan:
    return load_plan(finished_study)


@pytest.fixture(scope="module")
def address(
    plan: Plan, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    database = tmp_path_factory.mktemp("browser") / "mlflow.db"
    shutil.copy(empty_database, database)
    sync(plan, f"sqlite:///{database}")
    artifacts = database.with_name(plan.folder.mlflow_artifacts.name)
    with ui_server(f"sqlite:///{database}", artifacts) as (address, _):
        yield address


@pytest.fixture(scope="module")
def experiment(plan: Plan, address: str) -> str:
    found = MlflowClient(address).get_experiment_by_name(plan.study.name)
    return str(found.experiment_id)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that has never been anywhere, and gets nowhere but here."""
    reason = debian.missing(["chromium"], ["chromium"])
    if reason:
        debian.give_up("Chromium", reason)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*SWITCHES, *root]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1500, "height": 950})
    context.set_default_timeout(WITHIN_MS)
    expect.set_options(timeout=WITHIN_MS)
    return context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    yield page
    page.close()


def views(plan: Plan) -> dict[str, Any]:
    """The views that `fewscan ui` prints, by the first word of their name in addresses."""
    return {view.key.partition("-")[0]: view for view in saved_views(plan, study_identity(plan)[0])}


def means(plan: Plan, metric: str) -> dict[str, list[float]]:
    """Arm → the mean over seeds for each label count, from the run folders."""
    values: dict[str, dict[int, list[float]]] = {}
    for run in plan.grid:
        value = Result.read(plan.folder_of(run)).test[metric]
        assert value is not None
        assert run.place.labels is not None
        by_count = values.setdefault(run.place.arm.key, {})
        by_count.setdefault(run.place.labels, []).append(value)
    return {
        arm: [statistics.fmean(by_count[count]) for count in sorted(by_count)]
        for arm, by_count in values.items()
    }


def test_the_chart_is_the_label_efficiency_curve(
    page: Page, plan: Plan, address: str, experiment: str
) -> None:
    page.goto(address + views(plan)["binary"].page(experiment))
    page.wait_for_function(f"() => (({CHART})('pooled_ap') || []).length == 3")
    lines = page.evaluate(f"() => ({CHART})('pooled_ap')")
    expected = means(plan, "pooled_ap")
    drawn = {uuid.rpartition(".")[2]: (x, y) for uuid, x, y in lines}
    assert set(drawn) == {"scratch", "denoise", UNSUPERVISED}
    counts = sorted({run.place.labels for run in plan.grid})
    for arm, values in expected.items():
        assert drawn[arm][0] == counts
        assert drawn[arm][1] == pytest.approx(values)
    assert len(set(drawn[UNSUPERVISED][1])) == 1


def test_the_study_is_found_and_its_runs_are_compared(
    page: Page, plan: Plan, address: str, experiment: str
) -> None:
    page.goto(f"{address}/#/experiments?workflowType=machine_learning")
    expect(page.get_by_role("link", name="tiny", exact=True).first).to_be_visible()
    page.goto(address + views(plan)["runs"].page(experiment))
    for column in ("arm", "label_count", "seed", "test/pooled_ap"):
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
    for name in FOUR:
        row = page.locator(".ag-row", has=page.get_by_role("link", name=name, exact=True)).first
        row_id = row.get_attribute("row-id")
        page.locator(f".ag-row[row-id='{row_id}'] input[type=checkbox]").first.check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    for name in FOUR:
        expect(page.get_by_text(name).first).to_be_visible()


def test_a_run_s_model_and_system_metrics_are_shown(
    page: Page, plan: Plan, address: str, experiment: str
) -> None:
    client = MlflowClient(address)
    run = client.search_runs([experiment], "params.stage = 'pretrain'")[0]
    (output,) = run.outputs.model_outputs
    page.goto(f"{address}/#/experiments/{experiment}/models/{output.model_id}")
    expect(page.get_by_text("Ready")).to_be_visible()
    expect(page.get_by_text("validation/loss")).to_be_visible()
    expect(page.get_by_text("pre-train denoise").first).to_be_visible()
    page.goto(f"{address}/#/experiments/{experiment}/runs/{run.info.run_id}/system-metrics")
    expect(page.get_by_text("cpu_cores_busy").first).to_be_visible()


def test_the_report_renders_as_an_artifact(
    page: Page, plan: Plan, address: str, experiment: str
) -> None:
    (run,) = MlflowClient(address).search_runs([experiment], "tags.`fewscan.report` LIKE '%'")
    page.goto(address + report_page(experiment, run.info.run_id))
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name="tiny")).to_be_visible()
    drawn = report.locator("img").first
    expect(drawn).to_be_visible()
    assert drawn.evaluate("image => image.naturalWidth") > 100
