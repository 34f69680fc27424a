"""The picture of MLflow in the README: `python tests/tracking/screenshot.py STUDY docs/mlflow.png`.

STUDY is the file of a study that has been swept.
"""

import shutil
import sys
from pathlib import Path

from fake_folders import ui_server
from PIL import Image
from playwright.sync_api import sync_playwright

from fewscan.harness.loading import load_plan
from fewscan.harness.tracking.mlflow_study import study_identity
from fewscan.harness.tracking.saved_views import saved_views
from fewscan.harness.tracking.stores import tracked_experiment, tracking_uri

SEEN_BEFORE = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""Else MLflow's assistant covers a third of the page, as it does on a first visit."""
COLOURS = 64
DRAWN = "() => document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length >= 3"


def take(study: Path, out: Path) -> None:
    """The chart of the study's first target."""
    plan = load_plan(study)
    uri = tracking_uri(plan)
    view = saved_views(plan, study_identity(plan)[0])[0]
    page_path = view.page(str(tracked_experiment(plan, uri).experiment_id))
    with (
        ui_server(uri, plan.folder.mlflow_artifacts) as (address, _),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1500, "height": 800})
        page.add_init_script(SEEN_BEFORE)
        page.goto(address + page_path)
        page.wait_for_function(DRAWN, timeout=120_000)
        page.wait_for_timeout(2000)  # the charts fade in
        page.screenshot(path=out)
        browser.close()
    Image.open(out).convert("RGB").quantize(COLOURS).save(out, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
