"""How fast this machine's device is, before any run of a study has told."""

from typing import NamedTuple

from fewscan.experiments.spec import Finetune
from fewscan.harness.plan import Plan


class FirstPace(NamedTuple):
    """What a few timed steps say."""

    flops_per_s: float
    """The plan's arithmetic."""
    device: str
    """In words."""


def first_pace(plan: Plan) -> FirstPace | None:
    """Of the study's own network and batch in its precision, about two seconds long.

    None if the study is for another machine, has no fine-tuning, or finds no room on the device.
    """
    resources = plan.study.resources
    trained = next((run.spec for run in plan.runs if isinstance(run.spec, Finetune)), None)
    if plan.study.slurm is not None or trained is None:
        return None

    import torch

    from fewscan.experiments.devices import Devices
    from fewscan.experiments.pace import flops_per_s

    has_gpu = torch.cuda.is_available()
    if resources.device == "cuda" and not has_gpu:
        return None
    on_gpu = has_gpu and resources.device != "cpu"
    threads = resources.share_of(trained.kind).cpus
    devices = Devices("cuda:0" if on_gpu else "cpu", threads)
    words = f"cpu, {threads} thread{'' if threads == 1 else 's'}"
    if on_gpu:
        words = torch.cuda.get_device_name(0)
    store = plan.store
    try:
        pace = flops_per_s(
            trained.network, trained.training, len(store.channels), store.size, devices
        )
    except torch.OutOfMemoryError:
        return None
    return FirstPace(pace, words)
