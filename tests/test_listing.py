"""What `plan` and `status` print of a few runs, and of many."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fewscan.harness.listing import render_plan, render_states, render_status, run_lines, spans
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.status import read_status
from fewscan.harness.study import Study
from fewscan.storage.atomic import write_json


@pytest.fixture
def large(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    """Two targets, two inits, three label counts, ten seeds: 120 fine-tunings and two others."""
    grid = {"label_counts": [1, 2, 18], "seeds": list(range(10))}
    return make_plan(tiny_study(finetune=tiny_document["finetune"] | grid))


def printed(renderable: RenderableType) -> str:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(renderable, highlight=False)
    return shown.get()


def finish(plan: Plan, indices: Iterator[int] | range) -> None:
    for index in indices:
        folder = plan.folder_of(plan.runs[index])
        plan.record(plan.runs[index]).write(folder)
        write_json(folder.result, {})


def row(text: str, start: str) -> list[str]:
    """The cells of the first line that starts so."""
    lines = [line.strip("│ ") for line in text.splitlines()]
    found = next(line for line in lines if line.startswith(start))
    return [cell.strip() for cell in found.split("│")]


def test_many_runs_are_grouped_and_add_up(large: Plan) -> None:
    finish(large, range(2, 6))
    large.record(large.runs[6]).write(large.folder_of(large.runs[6]))
    large.folder_of(large.runs[6]).fail(ValueError("no"))
    text = printed(render_plan(large))
    assert "--runs lists them one by one" in text
    cells = row(text, "fine-tune binary · scratch")
    assert cells[1:4] == ["1, 2, 18", "0–9", "30"]
    assert cells[5] == "2✓ 1✗ 27·"
    assert row(text, "score binary · scratch")[5] == "2✓ 28·"
    counts = [
        int(row(text, f"{kind} {t} · {i}")[3])
        for kind in ("fine-tune", "score")
        for t in ("binary", "multiclass")
        for i in ("scratch", "denoise")
    ]
    assert sum(counts) + 2 == len(large.runs) == 242
    assert len(text.splitlines()) < 30


def test_each_run_has_a_line_when_asked(large: Plan) -> None:
    finish(large, range(1))
    large.record(large.runs[2]).write(large.folder_of(large.runs[2]))
    large.folder_of(large.runs[2]).fail(ValueError("out of luck\nand of memory"))
    head, *lines = run_lines(read_status(large))
    assert [line.split()[0] for line in lines] == [run.run_id for run in large.runs]
    assert lines[0].split()[1:3] == ["finished", lines[0].split()[2]]
    assert lines[0].endswith("pre-train denoise")
    assert lines[1].split()[3] == large.runs[0].run_id, "its parent"
    assert lines[2].endswith(f"{large.runs[2].name}: out of luck")
    assert all(line[14:26].strip() in ("finished", "failed", "missing") for line in lines)
    assert head.index("what") == lines[0].index("pre-train")


def test_cells_of_many_seeds_are_counts(large: Plan) -> None:
    finish(large, range(2, 21))
    lines = [line.split() for line in printed(render_status(read_status(large))).splitlines()]
    first = lines.index(["scans", "scratch", "denoise"])
    assert lines[first + 1 : first + 4] == [
        ["1", "9✓", "1·", "10·"],  # one is not scored
        ["2", "10·", "10·"],
        ["18", "10·", "10·"],
    ]


def test_runs_that_differ_in_seed_alone_share_a_line(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    wish = tiny_document["pretrain"]["denoise"] | {"seeds": [0, 1, 2]}
    plan = make_plan(tiny_study(pretrain={"denoise": wish}))
    finish(plan, range(2))
    text = printed(render_status(read_status(plan)))
    assert ["✓✓·", "pre-train", "denoise", "67%", "3", "seeds"] in map(str.split, text.splitlines())


def test_few_states_are_symbols_and_many_are_counts() -> None:
    few, many = ["finished"] * 5 + ["failed"], ["finished"] * 480 + ["running"] * 3 + ["failed"]
    assert printed(render_states(few)).strip() == "✓✓✓✓✓✗"
    assert printed(render_states(many)).strip() == "480✓ 3▶ 1✗"


def test_many_errors_do_not_push_the_rest_off_the_screen(large: Plan) -> None:
    for run in large.runs[2:42]:
        large.record(run).write(large.folder_of(run))
        large.folder_of(run).fail(ValueError("the loss [is] not finite"))
    text = printed(render_status(read_status(large)))
    assert text.count("the loss [is] not finite") == 5
    assert "35 more: `fewscan status STUDY --runs` lists them" in text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([1, 2], "1, 2"), ([4, 8, 1, 2, 9, 10], "1, 2, 4, 8–10")],
)
def test_neighbours_are_joined(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


def test_a_mixture_of_threads_is_said_and_one_of_kinds_is_none(large: Plan) -> None:
    """Other numbers of threads give other last bits under the same run id."""
    finish(large, range(6))
    kinds: dict[str, int] = {}
    for run in large.runs[:6]:
        kinds[run.kind] = kinds.get(run.kind, 0) + 1
        threads = 2 if run.kind == "score" else 1
        write_json(
            large.folder_of(run).result, {"kind": run.kind, "computed": {"threads": threads}}
        )
    assert "mixed" not in printed(render_status(read_status(large)))
    last = large.runs[5]
    write_json(large.folder_of(last).result, {"kind": last.kind, "computed": {"threads": 4}})
    said = " ".join(printed(render_status(read_status(large))).split())
    assert f"mixed: runs of {last.kind} were computed with different threads: " in said
    assert "4 (1 run); the last bits of their numbers may depend on it" in said
    write_json(large.folder_of(last).result, {"kind": last.kind, "computed": {"threads": 1}})
    trained = [run for run in large.runs[:6] if run.kind == "finetune"]
    for run, precision in zip(trained, ("bf16", "fp32"), strict=False):
        write_json(
            large.folder_of(run).result, {"kind": run.kind, "computed": {"precision": precision}}
        )
    said = " ".join(printed(render_status(read_status(large))).split())
    assert "different precision: bf16 (1 run), fp32 (1 run); arms are not compared at one" in said


def test_what_is_waited_for_is_said_while_runs_are_under_way(large: Plan) -> None:
    waits = "fine-tune binary · scratch · 1 scan · seed 0 wants 2 CPUs, 1 is free"
    large.folder.prepare()
    large.folder.say_waiting(waits)
    assert "waiting" not in printed(render_status(read_status(large))), "a killed sweep has left it"
    folder = large.folder_of(large.runs[0])
    large.record(large.runs[0]).write(folder)
    folder.beat(1, 4)
    assert f"waiting: {waits}" in printed(render_status(read_status(large)))
    large.folder.say_waiting("")
    assert "waiting" not in printed(render_status(read_status(large)))
