"""The shared disk between two nodes: is a replaced file ever missing, torn, or late?

All that the jobs tell each other are files that are replaced by renaming. One side replaces a file
as often as the other has answered by replacing one of its own; both read without a pause, so a disk
that shows half a file, or none, is caught in the act.
"""

import hashlib
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan.slurm.folder import read_object
from fewscan.storage.atomic import write_json

ROUNDS = 30
FILL = "x" * 65536
"""Larger than one block of any disk, so that a torn file would show."""
FAULTS_MOST = 20
"""More would say no more."""
PATIENCE_S = 30.0
"""For one answer; caches of NFS keep the old file for up to a minute by default, mostly 3 s."""


@dataclass(frozen=True)
class SharedDiskReport:
    """What the two sides have seen."""

    rounds: int
    """Replaced files that came through."""
    there_and_back_s: float
    """Median time from writing a file to reading the answer; nan without any."""
    faults: tuple[str, ...]
    """Whatever was seen that may not be."""


def ask(folder: Path, rounds: int = ROUNDS) -> SharedDiskReport:
    """Call from one node while `answer` runs on another."""
    times: list[float] = []
    reader = _Reader(folder / "doctor_pong.json")
    for number in range(rounds):
        began = time.monotonic()
        write_json(folder / "doctor_ping.json", _content(number))
        if not reader.await_number(number):
            reader.faults.append(f"file {number} did not arrive within {PATIENCE_S:.0f} s")
            break
        times.append(time.monotonic() - began)
    answered = read_object(reader.path)
    faults = (*reader.faults, *answered.get("faults", ()))
    return SharedDiskReport(len(times), statistics.median(times or [math.nan]), faults)


def answer(folder: Path, rounds: int = ROUNDS) -> None:
    """Answer what `ask` writes on another node, and report what was seen here."""
    reader = _Reader(folder / "doctor_ping.json")
    for number in range(rounds):
        if not reader.await_number(number):
            break
        reply = _content(number) | {"faults": reader.faults}
        write_json(folder / "doctor_pong.json", reply)


def _content(number: int) -> dict[str, Any]:
    fill = f"{number}{FILL}"
    digest = hashlib.sha256(fill.encode()).hexdigest()
    return {"number": number, "fill": fill, "sha256": digest}


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = -1
        self.faults: list[str] = []

    def await_number(self, number: int) -> bool:
        """Read without a pause until the file holds `number`."""
        deadline = time.monotonic() + PATIENCE_S
        while self.number < number and time.monotonic() < deadline:
            self._look()
        return self.number >= number

    def _note(self, fault: str) -> None:
        if len(self.faults) < FAULTS_MOST:
            self.faults.append(fault)

    def _look(self) -> None:
        try:
            value = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            if self.number >= 0:
                self._note(f"after file {self.number} no file")
            return
        except (ValueError, OSError) as error:
            self._note(f"after file {self.number} half a file: {error}")
            return
        if hashlib.sha256(value["fill"].encode()).hexdigest() != value["sha256"]:
            self._note(f"file {value['number']} with another content")
        if value["number"] < self.number:
            self._note(f"after file {self.number} file {value['number']}, which is older")
        self.number = max(self.number, value["number"])
