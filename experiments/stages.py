"""A run from its folder: read the spec, be its owner, go on from where it stands, leave the result.

The result is written last, so a folder with a result is a finished run.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from fewscan.experiments.denoise import pretrain
from fewscan.experiments.devices import Devices
from fewscan.experiments.evaluate import score_anomalies
from fewscan.experiments.segment import finetune
from fewscan.experiments.spec import Anomaly, Denoise, Segment, from_json
from fewscan.experiments.usage import sampled
from fewscan.storage.atomic import write_json
from fewscan.storage.runs import RunFolder

STAGES: dict[str, Callable[[Any, RunFolder, Devices], dict[str, Any]]] = {
    Denoise.kind: pretrain,
    Segment.kind: finetune,
    Anomaly.kind: score_anomalies,
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
        spec = from_json(folder.read_spec()["spec"])
        with sampled(folder, devices):
            result = STAGES[spec.kind](spec, folder, devices)
        if devices.is_first:
            _finish(folder, result, seconds=time.monotonic() - begun)


def _finish(folder: RunFolder, result: dict[str, Any], seconds: float) -> None:
    folder.append_event("finished", step=result.get("best_step", 0), seconds=round(seconds, 3))
    write_json(folder.result, result)
    folder.checkpoint.unlink(missing_ok=True)
