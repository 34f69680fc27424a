"""Whether a network that learns is alive: gains, weights and steps of its levels, finite gradients.

With the published constants the pull of the weight decay is stronger than the gradient in the deep
levels of the auto-encoder: the gains of their norms go to 0, and fine-tuning starts from a network
half of which is dead. So every validation notes these numbers among the events.

A level is one resolution of the encoder ("down_1", the finest, to "down_4") or of the decoder
("up_3" to "up_1", the finest).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor, nn

DEAD_BELOW = 0.1
"""The mean gain of a level, 1 at the start, below which it is called dead: our choice. What a level
with a tenth of its gain passes on is a tenth of what its neighbours do."""

_FILTERS = nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d
_LEVEL = re.compile(r"(down|up)_path\.(\d+)\.")


def gains(model: nn.Module) -> dict[str, float]:
    """Level → mean absolute gain of its group norms."""
    found = {level: _weights(modules, nn.GroupNorm) for level, modules in levels(model)}
    return _numbers({level: _flat(tensors).abs().mean() for level, tensors in found.items()})


def dead_levels(gain_of: Mapping[str, float]) -> tuple[str, ...]:
    """The levels whose mean gain is below `DEAD_BELOW`."""
    return tuple(level for level, gain in gain_of.items() if gain < DEAD_BELOW)


def levels(model: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """The levels of a U-Net, or of one inside a module, with the modules of each."""
    named = [(place, module) for name, module in model.named_modules() if (place := _place(name))]
    ups = 1 + max((index for (path, index), _ in named if path == "up"), default=-1)
    for (path, index), group in groupby(named, key=itemgetter(0)):
        number = index + 1 if path == "down" else ups - index
        yield f"{path}_{number}", [module for _, module in group]


def _place(name: str) -> tuple[str, int] | None:
    found = _LEVEL.search(name)
    return (found[1], int(found[2])) if found else None


def _weights(modules: Sequence[nn.Module], *kinds: type[nn.Module]) -> list[Tensor]:
    return [it.get_parameter("weight").detach() for it in modules if isinstance(it, kinds)]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _numbers(of_levels: Mapping[str, Tensor]) -> dict[str, float]:
    """All of them in one transfer from the device."""
    if not of_levels:
        return {}
    return dict(zip(of_levels, torch.stack(list(of_levels.values())).tolist(), strict=True))


class Health:
    """What is noted of a network while it learns, on its device, so that no step waits for it."""

    _NEVER = torch.iinfo(torch.int64).max

    def __init__(self, model: nn.Module) -> None:
        """Nothing has been looked at."""
        self._model = model
        self._filters = {level: _weights(modules, *_FILTERS) for level, modules in levels(model)}
        self._before: dict[str, Tensor] = {}
        self._step_ratios: dict[str, Tensor] = {}
        device = next(model.parameters()).device
        self._first_bad = torch.full((), self._NEVER, dtype=torch.int64, device=device)

    def before_step(self) -> None:
        """Remember the weights."""
        self._before = {level: _flat(tensors) for level, tensors in self._filters.items()}

    def after_step(self) -> None:
        """How far a step has gone from the weights that `before_step` saw."""
        for level, before in self._before.items():
            after = _flat(self._filters[level])
            length = torch.linalg.vector_norm(after - before)
            self._step_ratios[level] = length / torch.linalg.vector_norm(before)
        self._before = {}

    def look_at_gradient(self, norm: Tensor, step: int) -> None:
        """Note the step if its gradient is not finite. All ranks have the same norm."""
        here = torch.full_like(self._first_bad, step)
        bad = torch.where(torch.isfinite(norm), self._first_bad, here)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def first_bad_step(self) -> int | None:
        """The first step, from 0, whose gradient was not finite; waits for the device."""
        first = int(self._first_bad.item())
        return None if first == self._NEVER else first

    def values(self) -> dict[str, float]:
        """For the events: mean gains, norms of the weights, and the length of the step that was
        looked at in parts of that norm, each by level."""
        norms = {k: torch.linalg.vector_norm(_flat(it)) for k, it in self._filters.items()}
        named = {
            "gain": gains(self._model),
            "weight_norm": _numbers(norms),
            "step_ratio": _numbers(self._step_ratios),
        }
        return {
            f"{name}/{level}": it for name, found in named.items() for level, it in found.items()
        }
