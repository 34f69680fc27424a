"""From a study file to what is to be run of it by now."""

from pathlib import Path

from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.study_file import load_study


def load_plan(path: Path, overrides: tuple[str, ...] = ()) -> Plan:
    """Read, validate and plan a study file; an adaptive one as far as it has grown."""
    plan = make_plan(load_study(path, overrides))
    if plan.study.adaptive is None:
        return plan
    from fewscan.harness.adaptive import so_far  # which reads results and computes statistics

    return so_far(plan)
