"""A Tune program that stands for a sweep: short trials, none of which may fail even once.

    python tune_driver.py OUT HOLD

Leaves a line in OUT for each trial that began: its number, its Slurm job, when. A trial ends once
the file HOLD is gone.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from fewscan.slurm.session import Session

TRIALS = 4


def trial(config: dict[str, Any]) -> dict[str, float]:
    """Say that it begins, and end when that is allowed."""
    line = {"trial": config["trial"], "job": Session.here().job, "at": time.time()}
    with Path(config["out"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
    while Path(config["hold"]).exists():
        time.sleep(0.1)
    return {"done": 1.0}


def main(out: Path, hold: Path) -> int:
    """Run all trials; how many have failed."""
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    Session.here().ask_for_workers(1)
    results = tune.Tuner(
        trial,
        param_space={
            "trial": tune.grid_search(list(range(TRIALS))),
            "out": str(out),
            "hold": str(hold),
        },
        tune_config=tune.TuneConfig(reuse_actors=False),
        run_config=tune.RunConfig(
            storage_path=str(out.parent / "tune"), failure_config=tune.FailureConfig(max_failures=0)
        ),
    ).fit()
    return results.num_errors


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
