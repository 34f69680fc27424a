"""A study with damaged runs: looked at without a traceback, computed again by the next sweep."""

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import run_in_process, tiny_values

from fewscan.harness import sweep as sweeping
from fewscan.harness.listing import render_plan, render_status, run_lines
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.examples import read_examples
from fewscan.harness.report.results import read_results
from fewscan.harness.report.studies import one_study, two_studies
from fewscan.harness.report.write import write_report
from fewscan.harness.status import read_status
from fewscan.harness.study_file import parse_study
from fewscan.harness.sweep import sweep
from fewscan.storage.runs import RunFolder

SPOILT = [b"", b"\x00\xff{]", b"[1, 2]", b'{"kind": "sc']


@pytest.fixture(scope="module")
def plan(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Finished, with a scored run for each way of being damaged."""
    values = tiny_values(store_path, tmp_path_factory.mktemp("damaged") / "study")
    grid = {"label_counts": [1, 4], "seeds": [0, 1, 2, 3, 4], "targets": ["binary"]}
    values["finetune"] |= grid
    plan = make_plan(parse_study(values, "test"))
    plan.folder.prepare()
    run_in_process(plan, plan.runs)
    return plan


def shown(*parts: Any) -> str:
    out = io.StringIO()
    for part in parts:
        Console(file=out, width=200).print(part)
    return out.getvalue()


def damage(folder: RunFolder, file: str, content: bytes) -> None:
    (folder.path / file).write_bytes(content)
    if file in ("error.json", "progress.json", "events.jsonl"):
        folder.result.unlink()  # of a finished run these are not asked


def test_damaged_examples_are_drawn_anew(plan: Plan) -> None:
    results = read_results(one_study(plan))
    examples = read_examples(plan, results)
    assert examples is not None
    whole = bytearray(plan.folder.examples.read_bytes())
    rng = random.Random(0)
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        plan.folder.examples.write_bytes(flipped)
        again = read_examples(plan, results)
        assert again is not None
        assert (again.labels_ANHW == examples.labels_ANHW).all()


def test_everything_looks_at_it_and_the_next_sweep_computes_it_again(
    plan: Plan, undrawn: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = {run.name: plan.folder_of(run).result.read_bytes() for run in plan.runs}
    files = ("spec.json", "result.json", "events.jsonl", "cases.csv", "error.json", "progress.json")
    ways = [(file, content) for file in files for content in SPOILT]
    for run, (file, content) in zip(plan.scores, ways, strict=False):
        damage(plan.folder_of(run), file, content)
    for content, run in zip((b"", b"PK garbage"), plan.runs, strict=False):
        plan.folder_of(run).model.write_bytes(content)
    assert len(plan.scores) >= len(ways), "each way has a run"
    status = read_status(plan)
    said = shown(render_plan(plan), render_status(status), "\n".join(run_lines(status)))
    assert "not a file of weights" in said
    write_report(one_study(plan))
    two_studies(plan, replace(plan, study=replace(plan.study, folder=tmp_path)))
    page = (plan.folder.report / "report.html").read_text()
    assert page.count("the next sweep computes it again") >= 8

    def run_on_ray(plan: Plan, *_: object) -> None:
        left = [run for run in plan.runs if not plan.folder_of(run).result.exists()]
        run_in_process(plan, left)

    monkeypatch.setattr(sweeping, "_run_on_ray", run_on_ray)
    monkeypatch.setattr(sweeping.MlflowUpdates, "_try", lambda *_: None)
    console = Console(file=io.StringIO(), width=300)
    assert sweep(plan, console).is_finished
    assert {run.name: plan.folder_of(run).result.read_bytes() for run in plan.runs} == whole
    assert all(plan.folder_of(run).read_spec()["id"] == run.run_id for run in plan.runs)
    kept = list(plan.folder.damaged.iterdir())
    assert len(kept) >= 10, "nothing is thrown away"
    page = plan.folder.report / "report.html"
    drawn, said = page.stat().st_mtime_ns, io.StringIO()
    sweep(plan, Console(file=said))
    assert f"all {len(plan.runs)} runs are finished" in said.getvalue()
    assert page.stat().st_mtime_ns == drawn, "nothing is newer"
    plan.folder_of(plan.runs[-1]).result.touch()
    sweep(plan, Console(file=said))
    assert page.stat().st_mtime_ns > drawn
