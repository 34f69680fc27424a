"""The views of a study that MLflow's UI opens with: what is compared, how it is drawn.

MLflow keeps views under tags of the experiment, lists them under "Views", and opens one by its name
in the address. No MLflow in here: plain values, in the form that MLflow 3.17's pages read (found in
their sources, as it is documented nowhere). A UI that does not know them shows its own default.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fewscan.experiments.catalogue import leading, panels
from fewscan.experiments.spec import Target
from fewscan.harness.plan import Plan
from fewscan.harness.tracking.points import LABEL_COUNT

PREFIX = "mlflow.sharedViewState."
STUDY = "study"
"""Tag of every run: the beginning of the study's id, short enough to stand in a filter."""
CREATED_MS = 0
"""A view is made from the study alone; a date would make it new every time."""

TRAINING = {"workflowType": "machine_learning"}
"""Asks for the pages of model training; MLflow shows those for language models by itself."""
REPORT = "report.html"


def charts(target: Target) -> tuple[str, ...]:
    """The final numbers that are drawn against the label count: of the published figure, and what
    the target's verdict is about."""
    metrics = [metric for it, metric in panels() if it == target]
    others = [metric for it, metric in panels() if it != target and target in metric.targets]
    shown = dict.fromkeys([*metrics, leading(target), *others])
    return tuple(f"test/{metric.result_key()}" for metric in shown)


SECTION = {
    "uuid": "fewscan-curve",
    "name": "Test scores; the step is the number of labelled scans",
    "display": True,
    "isReordered": True,
    "deleted": False,
    "isGenerated": False,
}
ALL_RUNS_METRICS = (
    *(f"test/{metric.result_key()}" for _, metric in panels()),
    "validation/loss",
)


@dataclass(frozen=True)
class SavedView:
    """One view, as the UI lists it."""

    key: str
    """Its name in addresses."""
    name: str
    """Its name for people."""
    mode: str
    """CHART or TABLE."""
    state: dict[str, Any]

    @property
    def tag(self) -> tuple[str, str]:
        """The experiment's tag that holds it: key, value."""
        state = json.dumps(self.state)
        value = {"name": self.name, "createdAt": CREATED_MS, "state": state}
        return PREFIX + self.key, json.dumps(value)

    def page(self, experiment_id: str) -> str:
        """The page that shows it, below a server's address."""
        wishes = {"viewStateShareKey": self.key, "compareRunsMode": self.mode, **TRAINING}
        return f"/#/experiments/{experiment_id}/runs?{urlencode(wishes)}"


def report_page(experiment_id: str, parent: str) -> str:
    """The page that shows the report of the study whose run has this id."""
    run = f"/#/experiments/{experiment_id}/runs/{parent}"
    return f"{run}/artifacts/report/{REPORT}?{urlencode(TRAINING)}"


def saved_views(plan: Plan, study_id: str) -> tuple[SavedView, ...]:
    """For each target the label-efficiency curve; then the table of all runs."""
    study = study_id[:8]
    curves = [
        SavedView(
            key=f"{target}-{study}",
            name=f"{plan.study.name}: {target}, by number of labelled scans",
            mode="CHART",
            state=_curve(target, study),
        )
        for target in plan.study.finetune.targets
    ]
    table = SavedView(
        key=f"runs-{study}",
        name=f"{plan.study.name}: all runs",
        mode="TABLE",
        state=_search(f"tags.{STUDY} = '{study}'")
        | _table(("arm", "target", "label_count", "seed"), ALL_RUNS_METRICS),
    )
    return (*curves, table)


def _curve(target: Target, study: str) -> dict[str, Any]:
    """Charts of the arms, each the mean over seeds with their range, over the label count."""
    return {
        **_search(
            f"params.stage = 'score' and params.target = '{target}' and tags.{STUDY} = '{study}'"
        ),
        **_table(("arm", "label_count", "seed"), charts(target)),
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "param", "groupByData": "arm"}],
        },
        "useGroupedValuesInCharts": True,
        "compareRunCharts": [_line(metric) for metric in charts(target)],
        "compareRunSections": [SECTION],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _search(filter_text: str) -> dict[str, Any]:
    return {
        "searchFilter": filter_text,
        "orderByKey": f"metrics.`{LABEL_COUNT}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "runsHiddenMode": "SHOWALL",  # its own default draws the first ten alone
    }


def _table(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    columns = [f"params.`{name}`" for name in params] + [f"metrics.`{name}`" for name in metrics]
    columns.append("attributes.`Models`")
    return {"selectedColumns": columns, "columnOrder": columns}


def _line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"fewscan-{metric}",
        "metricSectionId": SECTION["uuid"],
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": metric,
        "xAxisKey": "step",
        "xAxisScaleType": "log",
        "scaleType": "linear",
        "range": {},
        "displayPoints": True,
        "lineSmoothness": 0,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "selectedXAxisMetricKey": "",
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
