"""Disturbs studies on the lab at random, and counts what it costs.

    python -m tests.slurm_lab.monkey --disturbances 100 --seed 1

Studies run one after the other until there have been so many disturbances (`disturbances.KINDS`, or
those of `--kinds`). After each its results are compared with an undisturbed one's to the last byte,
MLflow's runs are counted, and so is what is left on the nodes. Exits with 1 unless nothing was
different, lost, failed, double or left behind, and nobody had to do anything.

Ctrl-C ends it after the study under way. Runs that share an `--evidence` folder share their table.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.extend([str(Path(__file__).parent), str(Path(__file__).parents[1])])  # as pytest does

import lab
from disturbances import KINDS, MARKS, Kind, NotNow, processes
from fake_scans import write_subjects
from lab_study import LabStudy, design, results, run_alone
from tiny import tiny_values

from fewscan.slurm.folder import Folder
from fewscan.slurm.scheduler import ENDING
from fewscan.storage.errors import RunError
from fewscan.storage.prepare import prepare
from fewscan.storage.runs import HEARTBEAT_EVERY_S, RunFolder

PACE_S = 0.4
"""Of a step while a study is disturbed: its 200 make a run of 80 s, and a study of minutes."""
LOOK_EVERY_S = 0.5
FRESH_S = 10.0
"""A run that was heard of so lately is under way."""
UNSEEN_STEPS = 2 * HEARTBEAT_EVERY_S / PACE_S
"""What runs have done since their last heartbeat, at most; and a heartbeat is late at times."""
SETTLE_S = 5.0
"""A killed process is missed after so long: before that nothing can be back."""
STUCK_S = 300.0
"""After so long without going on, a person is called."""
RARE_S = 60.0
"""Kinds that could not happen for so long are left for later."""
LOST_S = 60.0
"""A study that has no head for so long, or no job at all, is lost."""
ENDS_WITHIN_S = 600.0
LEAVES_WITHIN_S = 60.0
"""From a study's end to that of its last process."""
SLURM_ENDS_WITHIN_S = 180.0
"""A job ends for so long if its node has to be asked again, the controller being started anew."""
SLURMSTEPD = "kill slurmstepd"
LARGEST_LOSS_S = 60.0
OVERLAP = 0.25
"""The share of disturbances that meet a study which has not recovered from the one before."""
HALF = (".partial", ".tmp")
"""How the names of half-written files end."""
RECORDS, FAULTS = "disturbances.jsonl", "faults.txt"
SETTINGS = {"early_deaths": 20}
"""Three heads lost within minutes are taken for a broken set-up; here they are not."""


@dataclass
class Record:
    """One disturbance and what came of it; times in seconds."""

    kind: str
    target: str
    study: str
    state: str
    """Of the study just before."""
    at_unix: float
    back_s: float | None = None
    """From its end until the driver lives and every run that was under way trains, and has a
    checkpoint beyond where it stood; at least `SETTLE_S`."""
    lost_s: float = 0.0
    """Work of all runs that was done again."""
    faults: list[str] = field(default_factory=list)
    """What was not as it should be."""


@dataclass
class Seen:
    """What is known of one run."""

    beat: dict[str, Any] = field(default_factory=dict)
    """The last heartbeat."""
    changed: float = -FRESH_S
    """When that was another one than before, on our own clock."""
    peak: int = 0
    """The largest step of this attempt."""
    events_bytes: int = 0
    committed: int = -1
    """The step of the last event that counts."""
    starts: int = 0
    finished: bool = False
    error: str = ""

    def is_under_way(self, within_s: float = FRESH_S) -> bool:
        return not self.finished and time.monotonic() - self.changed < within_s


@dataclass
class Recovery:
    """A disturbance that the study has not recovered from."""

    record: Record
    under_way: dict[RunFolder, float]
    """For each run that was under way when it began, a step that it cannot have come to before."""
    ended: float | None = None
    """When it was undone, on our own clock."""


class Watch:
    """Looks at a study's run folders, in a thread, whatever happens to the cluster."""

    def __init__(self, study: LabStudy) -> None:
        self._names = {study.plan.folder_of(run): run.name for run in study.plan.runs}
        self._seen = {folder: Seen() for folder in self._names}
        self._recoveries: list[Recovery] = []
        self._last: Record | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def begun(self, record: Record) -> Recovery:
        """From now on what happens is the doing of this one."""
        under_way = {
            run: seen.peak + UNSEEN_STEPS for run, seen in self._seen.items() if seen.is_under_way()
        }
        self._last = record
        self._recoveries.append(Recovery(record, under_way))
        return self._recoveries[-1]

    def all_finished(self) -> bool:
        return all(seen.finished for seen in self._seen.values())

    def words(self) -> str:
        """Where the study stands."""
        done = sum(seen.finished for seen in self._seen.values())
        live = sum(seen.is_under_way() for seen in self._seen.values())
        return f"{done}/{len(self._seen)} done, {live} under way"

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            for run, seen in self._seen.items():
                if not seen.finished:
                    self._look(run, seen)
            for recovery in list(self._recoveries):
                if recovery.ended is not None and self._is_back(recovery):
                    recovery.record.back_s = round(time.monotonic() - recovery.ended, 1)
                    self._recoveries.remove(recovery)

    def _look(self, run: RunFolder, seen: Seen) -> None:
        error = ""
        with suppress(OSError, ValueError):  # files come and go meanwhile
            try:
                if run.error.exists():
                    error = json.loads(run.error.read_text())["message"]
                self._read_progress(run, seen)
            except RunError as damaged:
                error = str(damaged)
        if error != seen.error and error:
            self._blame(f"{self._names[run]}: {' '.join(error.split())}")
        seen.error = error
        seen.finished = run.result.exists()

    def _read_progress(self, run: RunFolder, seen: Seen) -> None:
        beat = run.read_progress()
        if beat and beat != seen.beat:
            seen.beat, seen.changed = beat, time.monotonic()
            seen.peak = max(seen.peak, beat["step"])
        events_bytes = run.events.stat().st_size
        if events_bytes != seen.events_bytes:
            seen.events_bytes = events_bytes
            self._read_events(run, seen)

    def _read_events(self, run: RunFolder, seen: Seen) -> None:
        events = run.committed_events()
        starts = [event.step for event in events if event.kind == "started"]
        if len(starts) > seen.starts and self._last is not None:
            self._last.lost_s += max(0, seen.peak - starts[-1]) * PACE_S
        if len(starts) > seen.starts:
            seen.starts, seen.peak = len(starts), starts[-1]
        if events:
            seen.committed = events[-1].step

    def _is_back(self, recovery: Recovery) -> bool:
        """If no run was under way, one has to be now."""
        if self.all_finished():
            return True
        if recovery.ended is None or time.monotonic() - recovery.ended < SETTLE_S:
            return False
        if recovery.under_way:
            on = all(self._has_gone_on(self._seen[r], at) for r, at in recovery.under_way.items())
        else:
            on = any(seen.is_under_way(SETTLE_S) for seen in self._seen.values())
        return on and bool(processes(MARKS["driver"]))

    def _has_gone_on(self, seen: Seen, beyond: float) -> bool:
        return seen.finished or (seen.is_under_way(SETTLE_S) and seen.committed > beyond)

    def _blame(self, fault: str) -> None:
        if self._last is not None:
            self._last.faults.append(fault)


class Monkey:
    """Makes studies, disturbs them, and keeps the records.

    `make_study` makes the next one, in a new folder on the small disk. What could help to find a
    fault is kept in `evidence`.
    """

    def __init__(
        self,
        make_study: Callable[[], LabStudy],
        kinds: Sequence[Kind],
        seed: int,
        evidence: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        self._make_study = make_study
        self.kinds = kinds
        self._draw = random.Random(seed)
        self._evidence = evidence
        self._evidence.mkdir(parents=True, exist_ok=True)
        self._say = say
        self._count = 0
        self._deck: list[Kind] = []
        self.records: list[Record] = []
        self.faults: list[str] = []
        """Of whole studies: each names it, and what had happened to it."""
        self.notes: list[str] = []
        """What is worth telling and is no fault of ours."""
        self.studies = 0

    def run(self, count: int) -> None:
        """Disturb `count` times, or until `stop`; the last study is finished in any case."""
        self._count = count
        while len(self.records) < self._count:
            study = self._make_study()
            self.studies += 1
            records, faults = len(self.records), set(self.all_faults())
            try:
                with Watch(study) as watch:
                    self._disturb_all(study, watch)
                    self._see_to_the_end(study, watch)
                self._compare(study)
            except Exception:
                self._fault(study, f"the monkey gave up: {traceback.format_exc()}")
            left = self._count_leftovers(study)
            new = [fault for fault in self.all_faults() if fault not in faults]
            if new:
                self._keep_evidence(study)
            append(self._evidence / FAULTS, new)
            append(self._evidence / RECORDS, map(json.dumps, map(asdict, self.records[records:])))
            shutil.rmtree(study.cluster.parent, ignore_errors=True)
            self._clean_lab(left)

    def stop(self, *_: object) -> None:
        """No more disturbances; a signal handler."""
        self._count = 0

    def _disturb_all(self, study: LabStudy, watch: Watch) -> None:
        study.pace(PACE_S)
        study.launch()
        self._pause(30)
        while len(self.records) < self._count and not watch.all_finished():
            record = self._disturb(study, watch)
            if record is None:
                return
            if self._draw.random() >= OVERLAP:
                self._await_recovery(study, record)
            self._pause(5)

    def _pause(self, at_most_s: float) -> None:
        time.sleep(self._draw.uniform(0, at_most_s))
        lab.resume_nodes()

    def _disturb(self, study: LabStudy, watch: Watch) -> Record | None:
        """The next kind that can happen; None if the study is over before any could."""
        waits = 0
        while not watch.all_finished():
            if not self._deck or waits * LOOK_EVERY_S > RARE_S:  # what is left cannot happen
                self._deck += self._draw.sample(self.kinds, len(self.kinds))
                waits = 0
            kind = self._deck.pop()
            record = Record(kind.name, "", study.cluster.parent.name, "", time.time())
            try:
                record.state = self._state(study, watch)
                with kind.harm(study.cluster, self._draw) as record.target:
                    recovery = watch.begun(record)
                    self._say(f"{len(self.records) + 1}: {kind.name}: {record.target}")
                    time.sleep(kind.lasts_s)
            except NotNow:
                self._deck.insert(0, kind)
                waits += 1
                time.sleep(LOOK_EVERY_S)
                continue
            recovery.ended = time.monotonic()
            self.records.append(record)
            return record
        return None

    def _state(self, study: LabStudy, watch: Watch) -> str:
        try:
            state = study.status().state
        except Exception as error:
            state = f"status fails with {type(error).__name__}"
        return f"{state}, {watch.words()}"

    def _await_recovery(self, study: LabStudy, record: Record) -> None:
        """Wait until the study goes on; help it if it does not do so by itself."""
        trouble = self._await(study, lambda: record.back_s is not None)
        self._say(f"  back after {record.back_s} s, {record.lost_s:.0f} s of work lost")
        if trouble:
            self._help(study, record, trouble)
            if self._await(study, lambda: record.back_s is not None):
                raise AssertionError(f"help was in vain: {trouble}")

    def _await(self, study: LabStudy, ready: Callable[[], bool]) -> str:
        """Wait; what keeps the study from it, or an empty text."""
        began = time.monotonic()
        lost_since = None
        while not ready():
            outcome = outcome_of(study)
            if outcome and outcome != "done":
                return f"the study is {outcome}"
            waited_s = time.monotonic() - began
            if waited_s > STUCK_S:
                return f"no progress for {STUCK_S:.0f} s; {self._explain(study)}"
            if waited_s > 20:
                lost_since = (lost_since or time.monotonic()) if is_lost(study) else None
                if lost_since and time.monotonic() - lost_since > LOST_S:
                    return f"no head for {LOST_S:.0f} s; {self._explain(study)}"
            time.sleep(LOOK_EVERY_S)
        return ""

    def _help(self, study: LabStudy, record: Record, trouble: str) -> None:
        """What a person would do."""
        record.faults.append(trouble)
        self._say(f"  FAULT {trouble}")
        self._keep_evidence(study)
        if outcome_of(study) is None:
            with suppress(Exception):
                study.cancel()
            lab.cancel_everything()
        study.until(lambda s: not lab.states(), LOST_S)
        study.launch()

    def _explain(self, study: LabStudy) -> str:
        try:
            return " ".join(study.explain().split())[-1500:]
        except Exception as error:
            return f"and its status fails with {error!r}"

    def _see_to_the_end(self, study: LabStudy, watch: Watch) -> None:
        """Full speed, until the study has ended by itself."""
        study.pace(0)
        for _ in range(3):
            trouble = self._await(study, lambda: outcome_of(study) == "done")
            if not trouble:
                return
            mine = [r for r in self.records if r.study == study.cluster.parent.name]
            self._help(study, mine[-1], f"at the end: {trouble}")
        raise AssertionError("the study does not end")

    def _compare(self, study: LabStudy) -> None:
        found = results(study.plan)
        for name, wanted in study.undisturbed.items():
            if name not in found:
                self._fault(study, f"lost: {name}")
            elif found[name] != wanted:
                self._fault(study, f"different: {name}")
        for problem in wrong_in_mlflow(study):
            self._fault(study, problem)

    def _count_leftovers(self, study: LabStudy) -> bool:
        """What is there a minute after the end is left behind. Returns whether anything is.

        Slurm has longer to end what it is ending, and what stands in its books alone. A job whose
        slurmstepd was killed may stand there until its node registers anew: that is noted.
        """
        name, ended = study.cluster.parent.name, time.monotonic()
        while found := left_by(study):
            jobs = [each for each in found if each.startswith("job ")]
            by_slurm = len(jobs) == len(found) or all(each.endswith(ENDING) for each in found)
            if time.monotonic() > ended + (SLURM_ENDS_WITHIN_S if by_slurm else LEAVES_WITHIN_S):
                break
            time.sleep(1)
        blind = any(it.study == name and it.kind == SLURMSTEPD for it in self.records)
        for each in found:
            if blind and by_slurm:
                self.notes.append(f"{name}: Slurm did not notice its killed slurmstepd: {each}")
            else:
                self._fault(study, f"left behind: {each}")
        return bool(found)

    def _clean_lab(self, anything_left: bool) -> None:
        """For the next study."""
        lab.cancel_everything()
        for node in lab.NODES if anything_left else ():
            lab.kill_node(node)
        for node in lab.NODES:
            lab.start_node(node)
        lab.await_idle()

    def _fault(self, study: LabStudy, text: str) -> None:
        name = study.cluster.parent.name
        kinds = [f"{r.kind} ({r.target})" for r in self.records if r.study == name]
        self.faults.append(f"{name}: {text}; it had: {', '.join(kinds)}")
        self._say(f"  FAULT {text}")

    def _keep_evidence(self, study: LabStudy) -> None:
        folder = study.cluster.parent
        kept = self._evidence / f"{folder.name}-{int(time.time())}"
        leave_out = shutil.ignore_patterns("*.pt", "mlartifacts", "*.db*", "report")
        with suppress(OSError, shutil.Error):
            shutil.copytree(folder, kept, ignore=leave_out)
            shutil.copy(lab.ROOT / "log" / "slurmctld.log", kept)
        self._say(f"  evidence: {kept}")

    def all_faults(self) -> list[str]:
        """A line a fault: what misses the bar."""
        lines = list(self.faults)
        for number, record in enumerate(self.records, start=1):
            about = f"{number}: {record.study}: {record.kind} ({record.target}) at [{record.state}]"
            lines += [f"{about}: {fault}" for fault in record.faults]
            if record.back_s is None or record.back_s > STUCK_S:  # where others overlapped it
                lines.append(f"{about}: back after {record.back_s} s")
            if record.lost_s > LARGEST_LOSS_S:
                lines.append(f"{about}: {record.lost_s:.0f} s of work lost")
        return lines


def outcome_of(study: LabStudy) -> str | None:
    """done, failed, incomplete or cancelled; None as long as it is not over."""
    try:
        return str(json.loads(Folder(study.cluster).outcome_file.read_text())["state"])
    except (OSError, ValueError):
        return None


def is_lost(study: LabStudy) -> bool:
    """Whether there is no head; what cannot be known now is not so."""
    try:
        return study.status().state == "lost"
    except Exception:
        return False


def wrong_in_mlflow(study: LabStudy) -> Iterator[str]:
    """Runs that are not there once, or not finished, read from MLflow's own database."""
    query = """
        select coalesce(value, ''), status from runs
        left join tags on tags.run_uuid = runs.run_uuid and tags.key = 'fewscan.run_id'
        where lifecycle_stage = 'active'
    """
    database = study.plan.folder.mlflow_database
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(query).fetchall()
    wanted = [run.run_id for run in study.plan.runs]
    for run_id in ["", *wanted]:  # the study's own run, and one for each spec
        found = [status for other, status in rows if other == run_id]
        if found != ["FINISHED"]:
            yield f"MLflow has {found} for run {run_id or 'of the study'}"
    if len(rows) != len(wanted) + 1:
        yield f"MLflow has {len(rows)} runs, not {len(wanted) + 1}"


def left_by(study: LabStudy) -> list[str]:
    """On the nodes, in the queue, and in the study's folder."""
    half = [str(path) for path in study.cluster.parent.rglob("*.*") if path.suffix in HALF]
    queue = lab.slurm("squeue", "--noheader", "--format=%i %j %T").splitlines()
    jobs = [f"job {line}" for line in queue if lab.TAKER not in line]
    return [*lab.leftovers(), *jobs, *half]


def append(file: Path, lines: Iterable[str]) -> None:
    with file.open("a") as opened:
        opened.writelines(f"{line}\n" for line in lines)


def table(records: Sequence[Record]) -> str:
    """In Markdown: a row a kind."""
    lines = [
        "| disturbance | n | went on by itself | back after, median (s) | longest (s) "
        "| work lost, most (s) | faults |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in sorted({record.kind for record in records}):
        lines.append(_row(name, [record for record in records if record.kind == name]))
    return "\n".join([*lines, _row("all", records)])


def _row(name: str, records: Sequence[Record]) -> str:
    back = [record.back_s for record in records if record.back_s is not None]
    alone = sum(record.back_s is not None and not record.faults for record in records)
    numbers = [f"{statistics.median(back):.0f}", f"{max(back):.0f}"] if back else ["–", "–"]
    lost_s = max((record.lost_s for record in records), default=0.0)
    faults = sum(len(record.faults) for record in records)
    cells = [name, str(len(records)), str(alone), *numbers, f"{lost_s:.0f}", str(faults)]
    return f"| {' | '.join(cells)} |"


def chosen(names: Sequence[str]) -> list[Kind]:
    """These kinds, or all that this machine can do. Raises KeyError for an unknown name."""
    kinds = [KINDS[name] for name in names or sorted(KINDS)]
    return [kind for kind in kinds if kind.possible()]


def studies_on_small_disk(
    document: dict[str, Any], undisturbed: dict[str, bytes], name: str
) -> Callable[[], LabStudy]:
    """Makes one after the other."""
    numbers = iter(range(1, 1000))

    def make() -> LabStudy:
        folder = lab.SMALL / f"{name}{next(numbers)}"
        shutil.rmtree(folder, ignore_errors=True)
        return LabStudy(document, folder, undisturbed, SETTINGS)

    return make


@contextmanager
def prepared() -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """The lab is up; a study as plain values, and what it comes to if nobody disturbs it."""
    lab.up()
    os.environ["PATH"] = f"{lab.BIN}:{os.environ['PATH']}"
    store = lab.SHARED / "monkey.zarr"
    shutil.rmtree(store, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_subjects(Path(scratch) / "scans", 24)
        prepare(Path(scratch) / "scans", store, size=16, workers=1, validation=1)
        document = design(tiny_values(store, Path(scratch)), store)
        # In a process of its own, for jobs inherit our environment, and torch writes into it.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            alone = pool.submit(run_alone, document, Path(scratch) / "alone").result()
    try:
        yield document, alone
    finally:
        lab.down()


def main() -> int:
    about, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=about, epilog=rest)
    parser.add_argument("--disturbances", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help=f"of: {', '.join(sorted(KINDS))}")
    parser.add_argument("--evidence", type=Path, default=Path("/var/tmp/fewscan_monkey"))
    options = parser.parse_args()
    reason = lab.why_impossible()
    if reason:
        parser.error(reason)
    names = [name.strip() for name in options.kinds.split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        parser.error(f"no kinds of that name: {', '.join(unknown)}; there are {sorted(KINDS)}")
    with prepared() as (document, alone):
        make = studies_on_small_disk(document, alone, f"seed{options.seed}-")
        monkey = Monkey(make, chosen(names), options.seed, options.evidence)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, monkey.stop)
        monkey.run(options.disturbances)
    faults = monkey.all_faults()
    lines = (options.evidence / RECORDS).read_text().splitlines()
    print(table([Record(**json.loads(line)) for line in lines]), *faults, sep="\n")
    print(*(f"note: {note}" for note in monkey.notes), sep="\n")
    untried = {kind.name for kind in monkey.kinds} - {record.kind for record in monkey.records}
    print("not tried:", ", ".join(sorted(untried)) or "none")
    print(f"{len(monkey.records)} disturbances of {monkey.studies} studies, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
