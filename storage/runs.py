"""Study folders and run folders: the truth about what was run, on disk.

These two classes own every path in a study's folder; nobody else joins one. They know files and
JSON, not what a run computes.

    STUDY/
      study.yaml           the resolved study, as last swept
      runs/ID/             one folder a run, see `RunFolder`
      damaged/ID-N/        run folders that a sweep set aside; nobody reads them
      waiting.txt          what the sweep's next run waits for, while it has to
      study.id             by which MLflow knows the study
      mlflow.db, mlartifacts/    the MLflow view, rebuilt from the run folders at will
      report/              figures and tables
      examples.npz         the predictions that the report shows

The events of a run are JSON lines. A line of metrics counts only once a later line ("checkpoint",
"started" or "finished") says that a checkpoint covers it: a run that is killed goes back to its
last checkpoint and says the rest again. `RunFolder.committed_events` returns the lines that count.
"""

import contextlib
import csv
import json
import os
import re
import socket
import time
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewscan.storage.atomic import remove_leftovers, write_json
from fewscan.storage.errors import RunError, disk_full_explained, not_writable_explained
from fewscan.storage.locks import exclusive

State = Literal["missing", "interrupted", "running", "failed", "finished", "damaged"]

OVER: tuple[State, ...] = ("finished", "failed")
"""States that a run leaves only by being started again."""
HEARTBEAT_EVERY_S = 2.0
RUNNING_IF_SEEN_WITHIN_S = 60.0
OWNER_WAIT_S = 60.0
LONGEST_LINE_BYTES = 4096
"""Of the line that closes the events of a run, which has a few numbers."""
EventKind = Literal["started", "metrics", "checkpoint", "finished"]
COMMITTING: tuple[EventKind, ...] = ("checkpoint", "started", "finished")


@dataclass(frozen=True)
class Event:
    """A line of a run's events."""

    kind: EventKind
    time: float
    """Seconds since 1970."""
    step: int
    """Of the optimiser."""
    values: Mapping[str, float | None] = field(default_factory=dict)
    """Of metrics: name → value."""
    seconds: float | None = None
    """Of the end: how long this attempt took."""
    attempt: Mapping[str, Any] = field(default_factory=dict)
    """Of a start: where it runs (host, device, ranks, threads, versions), what it starts from."""

    def to_line(self) -> bytes:
        """JSON without what is empty, and a line feed."""
        given = {name: value for name, value in vars(self).items() if value not in ({}, None)}
        return json.dumps(given, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Event":
        """Undo `to_line`. Raises ValueError or TypeError for a line that is none of ours."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class RunFolder:
    """Every file of one run.

    `spec.json` is written first, `result.json` last: a run is finished if and only if that exists.
    """

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        """What is run: the spec, its names and the store's path."""
        return self.path / "spec.json"

    @property
    def events(self) -> Path:
        """JSON lines: attempts, metrics by step, checkpoints."""
        return self.path / "events.jsonl"

    @property
    def usage(self) -> Path:
        """JSON lines: what the run took of its machine, if that was asked for."""
        return self.path / "usage.jsonl"

    @property
    def progress(self) -> Path:
        """The heartbeat: step, steps in all, host, process, time."""
        return self.path / "progress.json"

    @property
    def checkpoint(self) -> Path:
        """All that is needed to go on; deleted once the run is finished."""
        return self.path / "checkpoint.pt"

    @property
    def model(self) -> Path:
        """The weights that validation chose."""
        return self.path / "model.pt"

    @property
    def cases(self) -> Path:
        """One row a patient of the test split."""
        return self.path / "cases.csv"

    @property
    def result(self) -> Path:
        """The numbers. Nothing in it depends on time or place, so equal runs have equal bytes."""
        return self.path / "result.json"

    @property
    def error(self) -> Path:
        """Why the last attempt failed; gone when an attempt succeeds."""
        return self.path / "error.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def sibling(self, run_id: str) -> "RunFolder":
        """The folder of another run of the same study."""
        return RunFolder(self.path.parent / run_id)

    def create(self, record: dict[str, Any]) -> None:
        """Write `spec.json` if it is missing, differs (a store that has moved) or is damaged."""
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(RunError):
            if self.read_spec() == record:
                return
        write_json(self.spec, record)

    def read_spec(self) -> dict[str, Any]:
        return _read_json(self.spec)

    def read_result(self) -> dict[str, Any]:
        return _read_json(self.result)

    def read_error(self) -> dict[str, Any]:
        """Kind, message, traceback, host and time. Raises `RunError` if it is missing."""
        value = {"kind": "unknown", "message": "its error.json is damaged", "time": 0.0}
        if self.error.exists():
            with contextlib.suppress(RunError):
                value |= _read_json(self.error)
            return value
        return _read_json(self.error)

    def read_progress(self) -> dict[str, Any]:
        """Step, steps, time and host of the last heartbeat; empty if none can be read."""
        try:
            beat = json.loads(self.progress.read_text())
            numbers = {name: float(beat[name]) for name in ("step", "steps", "time")}
            return {**numbers, "host": str(beat["host"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def state(self) -> State:
        """What the files say, from any machine that sees them."""
        if self.result.exists():
            return "finished"
        if not self.spec.exists():
            return "missing"
        if self.error.exists():
            return "failed"
        if time.time() - self.read_progress().get("time", 0.0) < RUNNING_IF_SEEN_WITHIN_S:
            return "running"
        return "interrupted" if self.events.exists() else "missing"

    def damage(self) -> str | None:
        """What is wrong with the files that the run's state and numbers stand in; None if nothing.

        Costs the reading of them. A damaged `spec.json` is none: whoever goes on writes it anew.
        """
        try:
            if self.result.exists():
                self.read_result()
                if self.model.exists() and not zipfile.is_zipfile(self.model):
                    return f"not a file of weights: {self.model}"
                if self.cases.exists() and not _is_table(self.cases):
                    return f"not a table: {self.cases}"
            else:
                self.committed_events()
        except RunError as error:
            return f"{error.found}: {error.where}"
        return None

    def set_aside(self, into: Path) -> Path:
        """Make room for the run to be begun anew; nothing is deleted. Where the old files are."""
        into.mkdir(exist_ok=True)
        number = 1
        while (place := into / f"{self.run_id}-{number}").exists():
            number += 1
        return self.path.rename(place)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the only writer of this folder for the block.

        An error in the block is recorded in `error.json` and passes on. Raises `RunError` if
        another process still holds the folder after a minute: a kill takes a while to arrive.
        """
        busy = RunError(
            f"run {self.run_id} is being run by another process",
            where=self.path,
            expected="one process a run",
            remedy="wait for the other sweep, or end it; then run the same command again",
        )
        with exclusive(self.lock, busy, wait_s=OWNER_WAIT_S):
            remove_leftovers(self.path)
            self.error.unlink(missing_ok=True)
            try:
                yield
            except Exception as error:
                self.fail(error)
                raise
            finally:
                self.progress.unlink(missing_ok=True)

    def fail(self, error: BaseException) -> None:
        """Record why this run failed; a full disk must not hide the error it caused."""
        record = {
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
            "host": socket.gethostname(),
            "time": time.time(),
        }
        try:
            write_json(self.error, record)
        except Exception as second:
            error.add_note(f"and error.json could not be written: {second}")

    def beat(self, step: int, steps: int) -> None:
        """Leave a heartbeat: readable at any moment, not worth an fsync, nor a run if it fails."""
        beat = {"step": step, "steps": steps, "host": socket.gethostname(), "time": time.time()}
        _replace_if_possible(self.progress, json.dumps(beat))

    def append_event(
        self, kind: EventKind, step: int, at_unix: float | None = None, **fields: Any
    ) -> int:
        """Add one line, of now or `at_unix`; returns the size of the file after it, in bytes."""
        at = time.time() if at_unix is None else at_unix
        line = Event(kind, round(at, 3), step, **fields).to_line()
        with disk_full_explained(self.events), self.events.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def truncate_events(self, size_bytes: int) -> None:
        """Forget the lines after the last checkpoint, and half a line that a kill left."""
        if self.events.exists():
            os.truncate(self.events, size_bytes)

    def committed_events(self) -> list[Event]:
        """The events up to the last one that a checkpoint covers, oldest first.

        Raises `RunError` for a line that is none of ours.
        """
        if not self.events.exists():
            return []
        whole_lines = self.events.read_bytes().split(b"\n")[:-1]
        try:
            events = [Event.from_line(line) for line in whole_lines]
        except (ValueError, TypeError) as error:
            raise RunError(
                f"a line is not what it should be ({error})",
                where=self.events,
                expected="one JSON object a line, as fewscan writes them",
                remedy=f"disk or hand has changed it: delete {self.path} and sweep again",
            ) from error
        while events and events[-1].kind not in COMMITTING:
            events.pop()
        return events

    def append_usage(self, sample: dict[str, float]) -> None:
        """Add one sample with the current time; not worth an fsync, nor a run if it fails."""
        line = json.dumps({"time": round(time.time(), 3), **sample}, allow_nan=False)
        with contextlib.suppress(OSError), self.usage.open("a") as file:
            file.write(line + "\n")

    def usage_samples(self) -> list[dict[str, float]]:
        """All samples, oldest first. Half a line that a kill left is no sample."""
        if not self.usage.exists():
            return []
        samples = []
        for line in self.usage.read_bytes().split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):  # an attempt wrote on after half a line
                samples.append(json.loads(line))
        return samples

    def last_attempt_s(self) -> float:
        """How long the attempt that finished the run took; 0 if none has.

        Reads the end of the events alone: their last line is the one that says it.
        """
        try:
            with self.events.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_LINE_BYTES))
                *_, last, rest = b"", *file.read().split(b"\n")
        except FileNotFoundError:
            return 0.0
        try:
            event = Event.from_line(last) if last and not rest else None
        except (ValueError, TypeError):
            return 0.0
        return event.seconds or 0.0 if event and event.kind == "finished" else 0.0


@dataclass(frozen=True)
class StudyFolder:
    """Every file of one study."""

    path: Path

    def prepare(self) -> None:
        """Make the folder. Raises `NotWritableError`, `DiskFullError`."""
        with not_writable_explained(self.path), disk_full_explained(self.path):
            self.runs.mkdir(parents=True, exist_ok=True)

    @property
    def study(self) -> Path:
        return self.path / "study.yaml"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def damaged(self) -> Path:
        return self.path / "damaged"

    @property
    def mlflow_database(self) -> Path:
        return self.path / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.path / "mlartifacts"

    @property
    def cluster(self) -> Path:
        """What the Slurm jobs of a sweep share: see `slurm.folder`."""
        return self.path / "slurm"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def earlier_reports(self) -> Path:
        """Of smaller grids, a folder each."""
        return self.path / "reports"

    def report_against(self, other: str) -> Path:
        """The report that compares this study with another one."""
        return self.path / ("report-against-" + re.sub(r"[^\w.-]", "_", other))

    @property
    def examples(self) -> Path:
        """The predictions that the report shows, to be computed once."""
        return self.path / "examples.npz"

    @property
    def imports(self) -> Path:
        """Names given to imported checkpoints: a JSON object, name → run id."""
        return self.path / "imports.json"

    @property
    def ray_token(self) -> Path:
        return self.path / "ray.token"

    @property
    def identity(self) -> Path:
        """A random name, by which MLflow knows the study wherever its folder is moved."""
        return self.path / "study.id"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def waiting(self) -> Path:
        return self.path / "waiting.txt"

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.runs / run_id)

    def read_imports(self) -> dict[str, str]:
        return _read_json(self.imports) if self.imports.exists() else {}

    def say_waiting(self, words: str) -> None:
        """Leave word of what the next run waits for, "" for nothing; not worth a sweep."""
        if words:
            _replace_if_possible(self.waiting, words)
        else:
            with contextlib.suppress(OSError):
                self.waiting.unlink()

    def read_waiting(self) -> str:
        """What the next run waits for; "" if it waits for nothing. Of a sweep under way alone."""
        try:
            return self.waiting.read_text()
        except (OSError, ValueError):
            return ""


def _replace_if_possible(path: Path, text: str) -> None:
    """For what is written again soon: without an fsync, and a full disk is for others to say."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _is_table(path: Path) -> bool:
    try:
        head, *rows = csv.reader(path.read_text().splitlines(), strict=True)
    except (ValueError, csv.Error):
        return False
    return bool(rows) and all(len(row) == len(head) for row in rows)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(
            "a file of a run is missing",
            where=path,
            expected="a run folder written by fewscan",
            remedy="run `fewscan sweep` again; it rebuilds what is missing",
        ) from error
    except ValueError as error:
        raise RunError(
            f"the file is not JSON ({error})",
            where=path,
            expected="a file written by fewscan, which writes it whole or not at all",
            remedy=f"disk or hand has changed it: delete the folder {path.parent} and sweep again",
        ) from error
    if not isinstance(value, dict):
        raise RunError(
            f"the file holds {type(value).__name__}, not an object",
            where=path,
            expected="a file written by fewscan",
            remedy=f"disk or hand has changed it: delete the folder {path.parent} and sweep again",
        )
    return value
