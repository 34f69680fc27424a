"""One sweep of a study on this machine, from the study file to the figure.

Rerunning is resuming: what is finished is skipped, what was interrupted goes on.
"""

import _thread
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fewscan.experiments.catalogue import panels
from fewscan.experiments.results import Result
from fewscan.harness.minutes import MinuteLines
from fewscan.harness.on_slurm import workers_wanted
from fewscan.harness.partner import finished_elsewhere, take_over
from fewscan.harness.plan import Plan
from fewscan.harness.ray_cluster import cluster_ray, local_ray
from fewscan.harness.repeated import repeated
from fewscan.harness.status import SYMBOLS, StudyStatus, read_status
from fewscan.harness.study_file import dump_study
from fewscan.slurm import processes
from fewscan.slurm.session import Session
from fewscan.storage.atomic import remove_leftovers, write_bytes
from fewscan.storage.errors import FewscanError, StudyError, TrackingError
from fewscan.storage.locks import exclusive
from fewscan.storage.runs import OVER

if TYPE_CHECKING:
    from fewscan.harness.tracking.tracker import Tracker
    from fewscan.harness.trial import Stage

LOOK_EVERY_S = 2.0
"""Seconds between two looks at the run folders, for MLflow and the progress bar."""
BEGUN_AGAIN = "FEWSCAN_BEGUN_AGAIN"
"""Variable: how often in a row this sweep has lost its Ray."""
BEGIN_AGAIN_AT_MOST = 5
"""In a row, each within `STABLE_S`."""
STABLE_S = 120.0
"""A sweep that went on for so long has not lost its Ray at once."""
_LOADED = time.monotonic()
"""When this program was begun, the last time."""
TRY_AGAIN_AFTER_S = 20.0
"""An MLflow that has failed is left alone for so long."""


def interrupt(process: str) -> None:
    """As Ctrl-C would: for programs that call `sweep`."""
    print(f"Ray's {process} has died", file=sys.stderr)
    _thread.interrupt_main()


def sweep(
    plan: Plan,
    console: Console,
    stage: "Stage | None" = None,
    on_ray_lost: Callable[[str], object] = interrupt,
) -> StudyStatus:
    """Run everything that is not finished, track it, and write the report.

    On this machine, with a Ray of its own; or, as the driver of a cluster that Slurm's jobs make,
    there. `stage` executes a run; None: `experiments.stages.run_stage`. `on_ray_lost` is called, in
    another thread, if that Ray dies. Raises `StudyError` if another sweep of this study is under
    way, or if a run asks for more than this machine has.
    """
    folder = plan.folder
    folder.prepare()
    busy = StudyError(
        f"the study {plan.study.name} is being swept by another process",
        where=folder.path,
        expected="one sweep a study",
        remedy="watch it with `fewscan status`, or end it first",
    )
    with exclusive(folder.lock, busy):
        remove_leftovers(folder.path)
        as_swept = dump_study(plan.study).encode()
        if not folder.study.exists() or folder.study.read_bytes() != as_swept:
            write_bytes(folder.study, as_swept)
        while True:
            status = _sweep(plan, console, stage, on_ray_lost)
            if plan.study.adaptive is None or plan.only or not status.is_finished:
                return status
            from fewscan.harness.adaptive import so_far

            grown = so_far(plan)
            console.print(escape(grown.looked[-1]), highlight=False, soft_wrap=True)
            if grown.runs == plan.runs:
                return status
            console.print(f"{len(grown.runs) - len(plan.runs)} runs are added", highlight=False)
            plan = grown


def _sweep(
    plan: Plan,
    console: Console,
    stage: "Stage | None",
    on_ray_lost: Callable[[str], object],
) -> StudyStatus:
    """All runs of a plan, of an adaptive study up to its next look."""
    view = MlflowUpdates(plan, console)
    try:
        if taken := finished_elsewhere(plan):
            take_over(plan, taken)
            console.print(f"{len(taken)} finished runs of the partner are taken over")
        status = without_failures(without_damage(read_status(plan), console))
        was_finished = status.is_finished
        if was_finished:
            console.print(f"all {len(status.states)} runs are finished", highlight=False)
        else:
            with watched(status, console, view) as on_offer:
                _run_on_ray(plan, on_offer, stage, console.print, on_ray_lost)
        from fewscan.harness.adaptive import so_far
        from fewscan.harness.report.studies import has_results, one_study
        from fewscan.harness.report.write import write_report

        if has_results(plan):
            if not (was_finished and report_is_current(plan)):
                write_report(one_study(replace(plan, looked=so_far(plan).looked)))
            view.log_report()
    finally:
        view.close(finished=read_status(plan).is_finished)
    return read_status(plan)


def report_is_current(plan: Plan) -> bool:
    """Of a finished study: whether it is younger than every result and than the study as swept."""
    page = plan.folder.report / "report.html"
    made_of = [plan.folder.study, *(plan.folder_of(run).result for run in plan.runs)]
    return page.exists() and page.stat().st_mtime > max(it.stat().st_mtime for it in made_of)


def without_damage(status: StudyStatus, console: Console) -> StudyStatus:
    """Set the damaged folders aside, so that their runs are computed again and stop no other.

    What a run is, is known from the study file: a damaged `spec.json` is written anew.
    """
    for run in status.plan.runs:
        folder = status.plan.folder_of(run)
        if folder.spec.exists():
            status.plan.record(run).write(folder)
    damaged = status.in_state("damaged")
    for run in damaged:
        folder = status.plan.folder_of(run)
        why = folder.damage()
        place = folder.set_aside(status.plan.folder.damaged)
        console.print(
            f"[yellow]damaged:[/] {run.name} is computed again ({why}); its files are "
            f"kept in {place}",
            highlight=False,
            soft_wrap=True,
        )
    return status.looked_at_again([run.run_id for run in damaged])


def without_failures(status: StudyStatus) -> StudyStatus:
    """Forget the errors of an earlier sweep: what had failed is tried again, and wants workers."""
    failed = [run.run_id for run in status.failed()]
    for run_id in failed:
        status.plan.folder.run(run_id).error.unlink(missing_ok=True)
    return status.looked_at_again(failed)


def _run_on_ray(
    plan: Plan,
    on_offer: Callable[[str], None],
    stage: "Stage | None",
    tell: Callable[[str], object],
    on_lost: Callable[[str], object],
) -> None:
    on_cluster = Session.here().is_on_cluster
    with cluster_ray() if on_cluster else local_ray(plan.folder, on_lost) as scratch:
        from fewscan.harness.schedule import run_all

        run_all(plan, scratch, on_offer, stage, tell)


def begin_again(process: str) -> None:
    """Take this process's place with the command that it was given: the sweep goes on.

    A Ray that dies at once, again and again, is left to the person at the terminal.
    """
    lived_s = time.monotonic() - _LOADED
    tries = 1 if lived_s > STABLE_S else int(os.environ.get(BEGUN_AGAIN, "0")) + 1
    processes.end_descendants()
    if tries > BEGIN_AGAIN_AT_MOST:
        print(
            f"\nRay's {process} has died {tries} times; all that is finished is kept. Look for "
            "lack of memory (`dmesg`), then give the same command",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
    print(
        f"\nRay's {process} has died; the sweep begins again where it was",
        file=sys.stderr,
        flush=True,
    )
    os.environ[BEGUN_AGAIN] = str(tries)
    os.execv(sys.executable, sys.orig_argv)


class MlflowUpdates:
    """MLflow as seen by a sweep: if it cannot be reached the sweep goes on, and it catches up."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._tracker: Tracker | None = None
        self._complaint = ""
        self._leave_alone_until = 0.0
        self._offered: SimpleQueue[str] = SimpleQueue()

    def on_offer(self, run_id: str) -> None:
        """A run is about to start: from now on its folder changes."""
        self._offered.put(run_id)

    def update(self) -> None:
        """Bring MLflow up to date with the folders of the runs that may have changed.

        Nothing before the first run is offered: until then the main thread loads Ray and torch, and
        torch cannot be loaded by two threads at once. And one that has just failed is left alone
        for a while.
        """
        if time.monotonic() < self._leave_alone_until:
            return
        begun = drain(self._offered)
        if begun or self._tracker is not None:
            self._try(lambda tracker: tracker.update(begun))

    def log_report(self) -> None:
        """Put the report on the study's run."""
        self._try(lambda tracker: tracker.log_report())

    def close(self, finished: bool) -> None:
        """The last update, with final statuses."""
        self._try(lambda tracker: tracker.close(finished=finished))

    def _try(self, action: Callable[["Tracker"], None]) -> None:
        # Seconds, in which the first runs start; the report is for the end.
        import fewscan.harness.report.write  # noqa: F401
        from fewscan.harness.tracking.tracker import Tracker

        try:
            if self._tracker is None:
                self._tracker = Tracker(self._plan)
            action(self._tracker)
            self._complaint = ""
        except TrackingError as error:
            self._leave_alone_until = time.monotonic() + TRY_AGAIN_AFTER_S
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._console.print(f"[yellow]MLflow lags behind:[/] {error}", highlight=False)


class Watch:
    """Where a study stands, without a look at all of its runs: most wait or are over."""

    def __init__(self, status: StudyStatus) -> None:
        self.status = status
        self._offered: SimpleQueue[str] = SimpleQueue()
        self._changing = {run_id for run_id, state in status.states.items() if state == "running"}
        self.has_begun = False

    def on_offer(self, run_id: str) -> None:
        """A run is about to start: from now on its folder changes, until it is over."""
        self.has_begun = True
        self._offered.put(run_id)

    def look(self) -> StudyStatus:
        """The status of now. Raises `RunError` if a file is damaged."""
        self._changing.update(drain(self._offered))
        self.status = self.status.looked_at_again(self._changing)
        over = {run_id for run_id in self._changing if self.status.states[run_id] in OVER}
        self._changing -= over
        return self.status


def drain(queue: SimpleQueue[str]) -> list[str]:
    """What other threads have put into the queue so far."""
    return [queue.get() for _ in range(queue.qsize())]


@contextmanager
def watched(
    status: StudyStatus, console: Console, view: MlflowUpdates
) -> Iterator[Callable[[str], None]]:
    """Follow the runs for the block: a line for each that ends, a bar for the whole, MLflow.

    Yields what has to be told the id of each run before it starts. MLflow has a thread of its own,
    the only one that touches it meanwhile: a slow server holds up neither the bar nor the cluster.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    task = bar.add_task("starting Ray", total=1.0)
    watch, lines = Watch(status), MinuteLines(console)

    def look() -> None:
        before = watch.status
        try:
            now = watch.look()
            announce(before, now, console)
        except FewscanError as error:
            console.print(f"[yellow]cannot look at the runs:[/] {error}", highlight=False)
            return
        Session.here().ask_for_workers(workers_wanted(now))
        words = describe(now) if watch.has_begun else "starting Ray"
        if watch.has_begun and (waits := now.plan.folder.read_waiting()):
            words += f"\nwaiting: {escape(waits)}"
        bar.update(task, completed=now.done_fraction, description=words)
        lines.say(f"{words}, {now.done_fraction:.0%}".replace("\n", "; "))

    def on_offer(run_id: str) -> None:
        watch.on_offer(run_id)
        view.on_offer(run_id)

    with bar:
        try:
            with repeated(look, LOOK_EVERY_S), repeated(view.update, LOOK_EVERY_S):
                yield on_offer
        finally:
            look()


def describe(status: StudyStatus) -> str:
    """One line on where the sweep stands."""
    count = status.count()
    failed = f", {count['failed']} failed" if count["failed"] else ""
    return f"{count['finished']}/{len(status.states)} runs done, {count['running']} running{failed}"


def announce(before: StudyStatus, now: StudyStatus, console: Console) -> None:
    """Print a line for each run that was finished or failed since the last look."""
    for run in now.plan.runs:
        state = now.states[run.run_id]
        if state == before.states[run.run_id] or state not in ("finished", "failed"):
            continue
        folder = now.plan.folder_of(run)
        if state == "failed":
            detail = folder.read_error()["message"].partition("\n")[0]
        else:
            detail = headline(Result.read(folder))
        console.print(f"{SYMBOLS[state]} {run.name}  {detail}", highlight=False)


def headline(result: Result) -> str:
    """The numbers of a result that fit on a line."""
    numbers = {metric.title: result.test.get(metric.result_key()) for _, metric in panels()}
    shown = [f"{title} {value:.3f}" for title, value in numbers.items() if value is not None]
    if shown or result.validation_loss is None:
        return ", ".join(shown)
    return f"validation loss {result.validation_loss:.5f}"
