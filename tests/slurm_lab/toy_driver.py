"""A resumable Ray program that stands for a study: units of many steps, checkpoints, results.

    python toy_driver.py OUT --units 6 --steps 20 --step-s 0.2

A unit's result depends on every one of its steps, so a step lost or done twice shows in it. Every
step leaves a line in a trace file, so a test can see what was done where, and what was done again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import ray

from fewscan.slurm.session import Session

CHECKPOINT_EVERY = 5


def run_unit(out: Path, unit: int, steps: int, step_s: float, hold: Path | None = None) -> str:
    """Go on with `unit` from its checkpoint; "done", or "interrupted" if the node is leaving."""
    tempfile.mkdtemp(prefix="toy-")  # left behind on purpose
    result, checkpoint = out / f"result_{unit}.json", out / f"checkpoint_{unit}.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "value": 1}
    while state["step"] < steps:
        if Session.here().stop_requested():
            replace(checkpoint, state)
            return "interrupted"
        time.sleep(step_s)
        if hold is not None and hold.exists() and state["step"] == steps - 1:
            continue
        state = {"step": state["step"] + 1, "value": next_value(state["value"], unit)}
        trace(out, unit, state["step"])
        if state["step"] % CHECKPOINT_EVERY == 0:
            replace(checkpoint, state)
    replace(result, {"unit": unit, "value": state["value"]})
    return "done"


def next_value(value: int, unit: int) -> int:
    """One step of work."""
    return (value * 6364136223846793005 + 2 * unit + 1) % 2**64


def expected(unit: int, steps: int) -> int:
    """The result of an undisturbed unit."""
    value = 1
    for _ in range(steps):
        value = next_value(value, unit)
    return value


def trace(out: Path, unit: int, step: int) -> None:
    """Append who did which step, and when."""
    line = {"unit": unit, "step": step, "node": Session.here().job, "at": time.time()}
    with (out / "trace.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def replace(path: Path, value: object) -> None:
    """Write `value` to `path`, whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def main() -> int:
    """Run every unit that has no result yet; 3 if it had to stop before the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--units", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--step-s", type=float, default=0.2)
    parser.add_argument("--hold", type=Path, help="while it is there, no unit does its last step")
    options = parser.parse_args()
    tempfile.mkdtemp(prefix="toy-")
    options.out.mkdir(parents=True, exist_ok=True)
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    work = ray.remote(num_cpus=1, max_retries=0)(run_unit)
    running: dict[ray.ObjectRef, int] = {}
    while True:
        left = [u for u in range(options.units) if not (options.out / f"result_{u}.json").exists()]
        Session.here().ask_for_workers(len(left))
        if not left:
            return 0
        if Session.here().stop_requested():
            return 3
        for unit in left:
            if unit not in running.values():
                ref = work.remote(options.out, unit, options.steps, options.step_s, options.hold)
                running[ref] = unit
        done, _ = ray.wait(list(running), timeout=0.5)
        for ref in done:
            unit = running.pop(ref)
            try:
                print(f"unit {unit}: {ray.get(ref)}", flush=True)
            except ray.exceptions.RayError as error:
                print(f"unit {unit}: {type(error).__name__}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
