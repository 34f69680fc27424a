"""A toy study on the lab: launch it, disturb it, wait for it, compare it."""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toy_driver import expected

from slurm import Settings, Status, cancel, launch, status

DRIVER = Path(__file__).with_name("toy_driver.py")
ENDED = ("done", "failed", "cancelled", "lost")


class Study:
    """`units` units of `steps` steps each, run by an elastic cluster in `folder`."""

    def __init__(
        self, folder: Path, units: int, steps: int, step_s: float, settings: Settings
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.out = folder / "out"
        self.units, self.steps, self.step_s = units, steps, step_s
        self.settings = settings

    def launch(self) -> str:
        numbers = {"--units": self.units, "--steps": self.steps, "--step-s": self.step_s}
        options = [str(word) for pair in numbers.items() for word in pair]
        return launch(
            [sys.executable, str(DRIVER), str(self.out), *options], self.folder, self.settings
        )

    def status(self) -> Status:
        return status(self.folder)

    def cancel(self) -> list[str]:
        return cancel(self.folder)

    def until(self, what: Callable[["Study"], Any], wait_s: float = 90) -> Any:
        """Wait until `what` is true; its value."""
        try:
            return until(lambda: what(self), wait_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.status()}") from None

    def finish(self, wait_s: float = 180) -> None:
        """Wait for the end, and compare every result with that of an undisturbed run."""
        self.until(lambda s: s.status().state in ENDED, wait_s)
        now = self.status()
        assert now.state == "done", (now, self.driver_log())
        values = [self.result(unit) for unit in range(self.units)]
        assert values == [expected(unit, self.steps) for unit in range(self.units)]

    def result(self, unit: int) -> int:
        return int(json.loads((self.out / f"result_{unit}.json").read_text())["value"])

    def trace(self) -> list[dict[str, Any]]:
        """Every step that was done, in order of time."""
        try:
            lines = (self.out / "trace.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def lost_steps(self) -> int:
        """Steps that had to be done again."""
        counts = Counter((line["unit"], line["step"]) for line in self.trace())
        return sum(count - 1 for count in counts.values())

    def joined(self) -> dict[str, str]:
        """Nodes of the workers that are in the cluster, by job."""
        return {w.job: w.node for w in self.status().workers if w.phase == "joined" and w.node}

    def driver_log(self) -> str:
        path = self.folder / "logs" / "driver.log"
        return path.read_text() if path.exists() else ""

    def end(self) -> None:
        if self.status().state not in ("none", "done", "cancelled"):
            self.cancel()


def until(what: Callable[[], Any], wait_s: float = 90) -> Any:
    """Wait until `what` is true; its value. Raises `TimeoutError`."""
    deadline = time.monotonic() + wait_s
    while not (value := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {wait_s} s")
        time.sleep(0.3)
    return value
