"""How a network is fine-tuned: which of its parts learn at which step, and how fast.

Rates are functions of the step alone, so that a run that was interrupted goes on as it would have.
The shapes are those of fine-tuning in nnU-Net and of its OpenMind fork (Wald et al. 2025), which
count 1,000 or 150 epochs; here they are shares of a run's iterations. Our choices: the first step
of a rise has a rate above 0 and its last one the full rate; decoder and head keep the optimiser's
moments when the encoder begins to learn, which has none until then; `frozen` and `probe` follow the
cosine of `plain`, so that they differ from it in what learns alone.
"""

from bisect import bisect
from collections.abc import Mapping
from functools import partial

from fewscan.experiments.settings import Schedule
from fewscan.experiments.spec import Finetune, Training
from fewscan.experiments.train import Part, learning_rate
from fewscan.experiments.unet import TRANSFERRED

ENDS: Mapping[Schedule, tuple[float, float, float]] = {
    "warmup": (0.0, 0.0, 0.05),
    "sawtooth": (0.025, 0.05, 0.10),
}
"""Of the iterations, where the rate of decoder and head, alone, has risen and has fallen again, and
where that of everything has risen: 50 of 1,000 epochs, and 25, 25 and 50. It falls to the end."""
POWER = 0.9
"""Of nnU-Net's polynomial fall, which is nearly straight."""

ENCODER, DECODER, HEAD = "down_path.", "up_path.", "last."
"""How the names of the network's parameters begin."""


def learns(spec: Finetune) -> tuple[str, ...]:
    """Which parts learn at some step; the others stay as they are."""
    if spec.schedule == "probe":
        return (HEAD,)
    return (DECODER, HEAD) if spec.schedule == "frozen" else (ENCODER, DECODER, HEAD)


def parts_of(spec: Finetune, training: Training) -> tuple[Part, ...]:
    """What learns, by its rate: encoder, decoder and head, those with one rate together.

    `training` has the rate that the run's trials have chosen, if it has trials.
    """
    transferred = TRANSFERRED[spec.transfer] if spec.init is not None else ()
    begin: dict[tuple[float, bool], tuple[str, ...]] = {}
    for name in learns(spec):
        scale = spec.lr_scale if name in transferred else 1.0
        waits = spec.schedule == "sawtooth" and name == ENCODER
        begin[scale, waits] = (*begin.get((scale, waits), ()), name)
    return tuple(
        Part(names, partial(_rate, spec, training, scale, waits))
        for (scale, waits), names in begin.items()
    )


def _rate(spec: Finetune, training: Training, scale: float, waits: bool, step: int) -> float | None:
    """The rate of a part at a step; None while it waits for the decoder."""
    if spec.schedule not in ENDS:
        return scale * learning_rate(training, step)
    step = step // training.lr_step_every * training.lr_step_every
    shares = (0.0, *ENDS[spec.schedule], 1.0)
    ends = [round(share * training.iterations) for share in shares]
    if waits and step < ends[2]:
        return None
    number = bisect(ends, step) - 1  # of the stretch: the first and the third rise
    into, steps = step - ends[number], ends[number + 1] - ends[number]
    share = (1 - into / steps) ** POWER if number % 2 else (into + 1) / steps
    return scale * training.lr * share
