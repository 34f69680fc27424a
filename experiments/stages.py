"""A run from its folder: read the spec, be its owner, go on from where it stands, leave the result.

The result is written last, so a folder with a result is a finished run.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from fewscan.experiments.devices import Devices, tiny_numbers_as_zero
from fewscan.experiments.finetune import finetune
from fewscan.experiments.pretrain import pretrain
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.score import score
from fewscan.experiments.spec import Finetune, Pretrain, Score
from fewscan.experiments.system_metrics import sampled
from fewscan.storage.runs import RunFolder

STAGES: dict[str, Callable[[Any, RunFolder, Devices], Result]] = {
    Pretrain.kind: pretrain,
    Finetune.kind: finetune,
    Score.kind: score,
}


def run_stage(folder: RunFolder, devices: Devices) -> None:
    """Run what the folder's `spec.json` says, or go on with it; nothing if it is finished.

    On several devices call it in every rank; only the first writes. An error is recorded in the
    folder and raised; `Preempted` and `PeerLost` are no errors of the run, and are raised alone.
    """
    with folder.owned() if devices.is_first else nullcontext(), devices.among_peers():
        if folder.result.exists():
            return
        begun = time.monotonic()
        devices.set_up()
        devices.wait_for_all()  # nobody reads a checkpoint before the first rank owns the folder
        spec = RunRecord.read(folder).spec
        trains = isinstance(spec, Pretrain | Finetune)
        with sampled(folder, devices), tiny_numbers_as_zero() if trains else nullcontext():
            result = STAGES[spec.kind](spec, folder, devices)
        if devices.is_first:
            precision = spec.training.precision if isinstance(spec, Pretrain | Finetune) else "fp32"
            result = replace(result, computed=devices.environment(precision))
            _finish(folder, result, seconds=time.monotonic() - begun)


def _finish(folder: RunFolder, result: Result, seconds: float) -> None:
    folder.append_event("finished", result.best_step or 0, seconds=round(seconds, 3))
    result.write(folder)
    folder.checkpoint.unlink(missing_ok=True)
