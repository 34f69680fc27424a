"""The learning rate of a run that has trials: that of the trial with the lowest validation loss.

Every arm has the same list of rates, tried at a label count and a seed that are not scored, so that
none is compared at a rate that suits another one better.
"""

import math
from dataclasses import replace

from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import Finetune, Pretrain, Training
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder


def with_rate(spec: Pretrain | Finetune, folder: RunFolder) -> tuple[Training, float | None]:
    """The settings to train with, and the rate that was chosen; None: the spec has one itself.

    Raises `RunError` if the loss of every trial was not finite.
    """
    if not spec.rate_from:
        return spec.training, None
    losses = {run_id: _loss(folder.sibling(run_id)) for run_id in spec.rate_from}
    best = min(losses, key=lambda run_id: losses[run_id])  # of equal losses the first
    if math.isinf(losses[best]):
        raise RunError(
            "no trial of a learning rate has a finite loss",
            where=", ".join(str(folder.sibling(run_id).path) for run_id in losses),
            expected="a rate at which the network learns",
            remedy="try lower rates (tune.lr), or set precision to fp32",
        )
    lr = rate_of(folder.sibling(best))
    return replace(spec.training, lr=lr), lr


def rate_of(trial: RunFolder) -> float:
    """That a trial tried. Raises `RunError` if its folder is damaged."""
    spec = RunRecord.read(trial).spec
    assert isinstance(spec, Pretrain | Finetune)
    return spec.training.lr


def _loss(trial: RunFolder) -> float:
    loss = Result.read(trial).validation_loss
    return math.inf if loss is None else loss
