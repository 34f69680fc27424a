"""What to run next: the cells that keep an answer from being known, and what a seed there costs.

The variance of an area's paired difference is a sum over label counts, of w² s² / n for each (w its
weight in the area, s² the variance between its n seeds, of differences averaged over patients), and
a part of the patients, which no seed takes away. One more seed at a count takes w² s² / (n (n + 1))
from it, if s² stays as it is seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.report.cells import Cell
from fewscan.harness.report.comparison import differences, log_weights
from fewscan.harness.report.evidence import Evidence
from fewscan.harness.report.findings import is_shown
from fewscan.harness.report.studies import Studies
from fewscan.harness.report.tables import ABREAST, number, percent, scans
from fewscan.storage.errors import StudyError


@dataclass(frozen=True)
class Variance:
    """Of the paired difference of two areas."""

    by_count: Mapping[int, float]
    """Label count → what its seeds add."""
    seeds: Mapping[int, int]
    patients: float
    """What test patients add."""

    @property
    def whole(self) -> float:
        return sum(self.by_count.values()) + self.patients

    @property
    def widest(self) -> int:
        """The label count from which one more seed takes most."""
        return max(self.by_count, key=lambda n: self.by_count[n] / (self.seeds[n] + 1))

    def with_one_more(self, count: int) -> float:
        """What is left with one more seed there."""
        return self.whole - self.by_count[count] / (self.seeds[count] + 1)


def variance(cells: Mapping[int, Cell]) -> Variance | None:
    """Of paired differences by label count; None unless all have two seeds and two patients."""
    cells = {n: it.defined() for n, it in cells.items()}
    if not cells or min(min(it.scores_SP.shape) for it in cells.values()) < 2:
        return None
    weights = dict(zip(cells, log_weights([*cells]).tolist(), strict=True))
    by_count = {}
    patients: dict[str, float] = {}
    for n, it in cells.items():
        means_S = np.nanmean(it.scores_SP, axis=1)
        by_count[n] = float(weights[n] ** 2 * means_S.var(ddof=1) / len(means_S))
        means_P = np.nanmean(it.scores_SP, axis=0) - means_S.mean()
        for patient, mean in zip(it.patients, means_P.tolist(), strict=True):
            patients[patient] = patients.get(patient, 0.0) + weights[n] * mean
    of_patients = float(np.var([*patients.values()], ddof=1)) / len(patients)
    seeds = {n: len(it.seeds) for n, it in cells.items()}
    return Variance(by_count, seeds, of_patients)


def next_steps(studies: Studies, evidence: Sequence[Evidence]) -> list[str]:
    """A sentence for each comparison that is open; of many arms for the one that is most nearly
    decided. None for two studies, whose plans are grown one by one."""
    if studies.are_compared:
        return []
    found: list[str] = []
    for it in evidence:
        known = [(area.p, arm) for arm, area in it.areas.items() if area.p is not None]
        still = [(p, arm) for p, arm in known if not is_shown(it.areas[arm].p_corrected)]
        wanted = [arm for _, arm in sorted(still, key=lambda pair: pair[0])]
        for arm in wanted if len(known) <= ABREAST else wanted[:1]:
            found += _sentence(studies.first, it, arm)
    return found


def _sentence(plan: Plan, evidence: Evidence, arm: Arm) -> Iterator[str]:
    reference, area = evidence.references[arm], evidence.areas[arm]
    first, second = (
        {n: it.cell for n, it in evidence.of_arm(which).items() if it.cell is not None}
        for which in (arm, reference)
    )
    try:
        spread = variance(
            {n: it for n, it in differences(first, second).items() if n in area.counts}
        )
    except StudyError:  # cannot be paired, which is said elsewhere
        return
    if spread is None or area.difference is None or area.difference.interval is None:
        return
    low, high = area.difference.interval
    half, target = (high - low) / 2, evidence.quantity.target
    begins = f"To know more about {arm.key} ({target}), whose interval is ±{number(half)}: "
    if spread.whole == 0 or spread.patients > spread.whole / 2:
        share = spread.patients / spread.whole if spread.whole else 1.0
        yield (
            f"{begins}test patients make {percent(share)} of its variance, so more of them would "
            "narrow it more than seeds"
        )
        return
    count = spread.widest
    share = spread.by_count[count] / spread.whole
    new = half * (spread.with_one_more(count) / spread.whole) ** 0.5
    cost = _cost(plan, target, (arm, reference), count)
    yield (
        f"{begins}{percent(share)} of its variance is from seeds at {scans(count)}; one more "
        f"there, of {arm.key} and {reference.key}, takes {cost} and narrows it to about "
        f"±{number(new)}"
    )


def _cost(plan: Plan, target: Target, arms: Sequence[Arm], count: int) -> str:
    """Device-hours of one more seed, as long as the finished runs there took."""
    seconds = 0.0
    for arm in arms:
        each: dict[int, float] = {}
        starts = {}
        for run in plan.runs:
            place, folder = run.place, plan.folder_of(run)
            here = (place.target, place.arm, place.labels) == (target, arm, count)
            if here and folder.result.exists():
                each[place.seed] = each.get(place.seed, 0.0) + _device_s(plan, run)
                starts[place.seed] = place.pretraining
        seconds += fmean(each.values()) if each else 0.0
        own = plan.study.pretrain.get(arm.init or "")
        if own is not None and len({*starts.values()}) > 1:  # a new seed has a new pre-training
            name = f"pre-train {arm.init}"
            runs = [it for it in plan.runs if it.name.partition(" · seed ")[0] == name]
            each_fold = fmean(_device_s(plan, it) for it in runs) if runs else 0.0
            seconds += each_fold * max(1, len(plan.folds))
    return f"about {seconds / 3600:.2g} device-hours"


def _device_s(plan: Plan, run: PlannedRun) -> float:
    """Seconds of a device that a finished run took; 0 of another."""
    share = plan.share_of(run)
    return plan.folder_of(run).last_attempt_s() * share.devices * share.gpu_share
