"""The arms of a study's fine-tunings, each with its label counts."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

from fewscan.experiments.settings import FROM_SCRATCH
from fewscan.harness.arms import SCRATCH, Arm
from fewscan.harness.ensembles import dividable, ensembles_of, not_divided
from fewscan.harness.partner import Partner
from fewscan.harness.plan import everything_of
from fewscan.harness.study import Arms, Study
from fewscan.harness.weights import Weights
from fewscan.storage.errors import StudyError
from fewscan.storage.slices import SliceStore


class ArmGrid:
    """Of a study; the same in each fold of its cross-validation.

    What the folds have in common is looked for in all of them. Raises `StudyError` for an init, a
    label count or a level that there is not, and for a single combination that cannot be.
    """

    def __init__(
        self,
        study: Study,
        weights: Weights,
        folds: Collection[SliceStore],
        partner: Partner | None,
    ) -> None:
        self._study = study
        self._finetune = study.finetune
        self._weights = weights
        self._folds = folds
        self._partner = partner
        self.left_out: list[str] = []
        """A sentence on each thing that was asked for and cannot be, without a full stop."""
        for init in self._finetune.init_names:
            weights.require_known(init, where="finetune.inits")
        self._whole = without_what_is_shared(self._combinations())
        self.arms = self._arms()
        """Arm → its label counts, the same for each target: what `finetune.inits` asks for with its
        ensembles, baselines, probes."""
        if (tune := self._finetune.tune) is not None:
            self._label_counts([tune.on.labels], "finetune.tune.on.labels")

    def whole(self, arm: Arm) -> Arm:
        """The arm of a single network with what all arms of the study share, which its name does
        not say."""
        if arm in self._whole:
            return self._whole[arm]
        finetune = self._finetune
        own = finetune.schedule if arm.schedule == "long" else arm.schedule
        if own == "plain" or (arm.schedule == "long" and own not in FROM_SCRATCH):
            own = finetune.schedule if finetune.schedule in FROM_SCRATCH else "plain"
        share = arm.oversample_foreground or finetune.oversample_foreground
        return replace(arm, schedule=own, oversample_foreground=share)

    def _arms(self) -> dict[Arm, list[int]]:
        counts = self._label_counts(self._finetune.label_counts, "finetune.label_counts")
        divided = dividable(counts, self._finetune, self._folds)
        self.left_out += not_divided(counts, divided, self._finetune)
        found = dict.fromkeys(self._whole, counts)
        ensembles = {arm: ensembles_of(arm, self._finetune, counts, divided) for arm in found}
        self._add_baselines(found, counts)
        self._add_probes(found)
        together: dict[Arm, list[int]] = {}
        for arm, own in found.items():
            together |= {arm: own} | ensembles.get(arm, {})
            if self._partner is not None and arm in ensembles and arm.is_ranked:
                together |= self._with_partner(self._partner, arm, counts)
        return together

    def _add_baselines(self, found: dict[Arm, list[int]], counts: list[int]) -> None:
        baselines, everything = self._study.baselines, everything_of(self._folds)
        scratch = next(filter(lambda arm: arm.is_scratch, found), self._plain(SCRATCH))
        if "supervised" in baselines:
            found[scratch] = sorted({*found.get(scratch, ()), everything})
        if "supervised long" in baselines:
            found[replace(scratch, schedule="long")] = [everything]
        if "random features" in baselines:
            found[self._probe(SCRATCH, 0)] = counts

    def _add_probes(self, found: dict[Arm, list[int]]) -> None:
        probes, depth = self._finetune.probes, self._study.network.depth
        if probes is None:
            return
        if max(probes.levels) > depth:
            raise StudyError(
                f"level {max(probes.levels)} of a network of depth {depth}",
                where="finetune.probes.levels",
                expected=f"levels from 0, the last map, to {depth}",
                remedy="leave it out",
            )
        wanted = probes.label_counts or self._finetune.label_counts
        counts = self._label_counts(wanted, "finetune.probes.label_counts")
        for level in probes.levels:
            for init in dict.fromkeys((SCRATCH, *self._finetune.init_names)):
                arm = self._probe(init, level)
                if reason := self._weights.why_not(arm):
                    self.left_out.append(f"finetune.probes: no {arm.key}: {reason}")
                else:
                    found[arm] = sorted({*found.get(arm, ()), *counts})

    def _with_partner(
        self, partner: Partner, arm: Arm, counts: Sequence[int]
    ) -> dict[Arm, list[int]]:
        """The average with another study's same arm, at the label counts of both."""
        places = [*product(self._finetune.targets, self._finetune.seeds)]
        shared = [n for n in counts if all((t, arm, n, s) in partner.cells for t, s in places)]
        if not shared:
            self.left_out.append(
                f"finetune.partner: no {arm.key} with {partner.name}, which lacks the arm, or its "
                "label counts, seeds or targets"
            )
            return {}
        return {replace(arm, partner=partner.name): shared}

    def _plain(self, init: str) -> Arm:
        """Plain fine-tuning from this init."""
        return Arm(
            "fine-tuning", None if init == SCRATCH else init, self._weights.transfer_of(init)
        )

    def _probe(self, init: str, level: int) -> Arm:
        """A new head on features of this init."""
        return replace(self._plain(init), schedule="probe", level=level)

    def _combinations(self) -> list[Arm]:
        """The arms that `finetune.inits` asks for, each once, with all that is said of them.

        A single one that cannot be is refused; in a grid it is left out, and that is said. What
        means nothing to an arm is as by default: scratch comes once, whatever is transferred.
        """
        found: dict[Arm, None] = {}
        for grid in self._finetune.grids:
            for asked in self._asked(grid):
                arm = meaningful(asked)
                reason = self._weights.why_not(arm)
                if reason and grid.is_one:
                    raise StudyError(
                        f"{arm.key} cannot be: {reason}",
                        where="finetune.inits",
                        expected="an init, and a way to fine-tune it that its weights allow",
                        remedy="change transfer or schedule there, or leave it out",
                    )
                if reason:
                    self.left_out.append(f"finetune.inits: no {arm.key}: {reason}")
                    continue
                if arm != asked and grid.is_one and (grid.lr_scale or grid.transfer):
                    self.left_out.append(
                        f"finetune.inits: {asked.key} is {arm.key}: what it names besides has "
                        "nothing to act on"
                    )
                found[arm] = None
        return list(found)

    def _asked(self, grid: Arms) -> Iterator[Arm]:
        finetune = self._finetune
        ways = product(
            grid.init,
            grid.transfer or (None,),
            grid.schedule or (finetune.schedule,),
            grid.lr_scale or (finetune.lr_scale,),
            grid.oversample_foreground or (finetune.oversample_foreground,),
        )
        for init, transfer, schedule, lr_scale, share in ways:
            yield Arm(
                "fine-tuning",
                None if init == SCRATCH else init,
                transfer or self._weights.transfer_of(init),
                schedule,
                lr_scale=lr_scale,
                oversample_foreground=share,
            )

    def _label_counts(self, wanted: Collection[int | Literal["all"]], where: str) -> list[int]:
        everything = everything_of(self._folds)
        counts = [everything if c == "all" else c for c in wanted]
        if max(counts) > everything:
            raise StudyError(
                f"label count {max(counts)} is larger than the training split",
                where=where,
                expected=f"at most {everything}, the training scans in {self._study.store}",
                remedy="leave it out, or write all for the whole training split",
            )
        return sorted(set(counts))


def meaningful(arm: Arm) -> Arm:
    """The same fine-tuning without what has nothing to act on: random weights are not transferred,
    and what is transferred and does not learn has no rate."""
    if arm.init is None:
        arm = replace(arm, transfer="all", lr_scale=1.0)
    if arm.schedule == "probe" or (arm.schedule, arm.transfer) == ("frozen", "encoder"):
        arm = replace(arm, lr_scale=1.0)
    return arm


def without_what_is_shared(arms: Sequence[Arm]) -> dict[Arm, Arm]:
    """Each arm by what it does not share with all others → the arm; what is not learnt is always
    said."""
    shared: dict[str, Any] = {}
    for name in ("schedule", "lr_scale", "oversample_foreground"):
        values = {getattr(arm, name) for arm in arms}
        if len(values) == 1 and not values & {"frozen", "probe"}:
            shared[name] = getattr(Arm("fine-tuning"), name)
    if len({arm.lr_scale for arm in arms if arm.init is not None}) == 1:
        shared["lr_scale"] = 1.0  # scratch has none
    return {replace(arm, **shared): arm for arm in arms}
