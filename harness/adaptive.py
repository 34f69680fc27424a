"""Adaptive sweeps: seeds are added where the answer is open, until it is known or they are used up.

What is swept, tracked and reported of such a study (`study.Adaptive`) is a plan that grows look by
look (`looks`). It is a function of the study file and of the finished runs alone and need not be
kept anywhere: whoever plans the study, at any time, on any machine, takes the same looks at the
same results. A look waits until all runs of its plan are finished.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fewscan.experiments.spec import Target
from fewscan.harness.arms import Arm
from fewscan.harness.looks import Look, planned_looks
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.comparison import Area
from fewscan.harness.report.evidence import gather
from fewscan.harness.report.findings import is_shown
from fewscan.harness.report.results import RunResults, read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.tables import interval, signed
from fewscan.harness.seed_allocation import grown
from fewscan.harness.study import Adaptive, Study


@dataclass(frozen=True)
class Versus:
    """Two arms that are compared for a target."""

    target: Target
    arm: Arm
    reference: Arm

    def __str__(self) -> str:
        return f"{self.target} · {self.arm.key}"


Seeds = dict[Versus, dict[int, int]]
"""Comparison → label count → how many of the study's seeds it has there."""


def so_far(plan: Plan) -> Plan:
    """What is to be run of an adaptive study by now, by its finished runs; any other as it is.

    When it is finished and grows no more, it is over.
    """
    wish = plan.study.adaptive
    if wish is None:
        return plan
    parts = _Parts(plan.study)
    looks = planned_looks(len(plan.study.finetune.seeds), wish.at_most)
    seeds, said = parts.begin, list[str]()
    for look in looks:
        part = replace(parts.plan(seeds), look=look, looked=tuple(said))
        if not all(part.folder_of(run).result.exists() for run in part.runs):
            break
        results = read_results(one_study(part))
        if sum(len(it.runs) for it in results) < len(part.scores):  # damaged: computed again
            break
        areas = _areas(part, results, seeds)
        still = [it for it in seeds if it not in areas or not _is_known(areas[it], wish)]
        said.append(_sentence(look, seeds, areas, still))
        part = replace(part, looked=tuple(said))
        if look.is_last or not still:
            break
        following = looks[look.number]
        seeds = seeds | {it: parts.grown(it, seeds, following) for it in still}
    return part


def _areas(
    part: Plan, results: Sequence[RunResults], comparisons: Iterable[Versus]
) -> dict[Versus, Area]:
    """Of those that something can be said of."""
    found = gather(one_study(part), results, leading=True)
    of_target = {evidence.quantity.target: evidence.areas for evidence in found}
    return {
        it: of_target[it.target][it.arm] for it in comparisons if it.arm in of_target[it.target]
    }


def _is_known(area: Area, wish: Adaptive) -> bool:
    """Whether one of what the study asks for is reached."""
    if wish.until == "decided" and is_shown(area.p_corrected):
        return True
    if wish.half_width is None or area.difference is None or area.difference.interval is None:
        return False
    low, high = area.difference.interval
    return (high - low) / 2 <= wish.half_width


def _sentence(
    look: Look, seeds: Seeds, areas: Mapping[Versus, Area], still: Collection[Versus]
) -> str:
    """What a look saw, comparison by comparison, without a full stop."""
    parts = []
    for versus, own in seeds.items():
        area = areas.get(versus)
        words = "nothing known"
        if area is not None and area.difference is not None and area.difference.value is not None:
            words = f"{signed(area.difference.value)}"
            if area.difference.interval is not None:
                words += f" ({interval(area.difference, '+')})"
        fewest, most = min(own.values()), max(own.values())
        many = f"{most}" if fewest == most else f"{fewest} to {most}"
        ends = "open" if versus in still else "known as asked for"
        parts.append(f"{versus}, {many} seeds: {words}, {ends}")
    return f"look {look.number} of at most {look.of}: {'; '.join(parts)}"


class _Parts:
    """The plan that a study begins with, the one with all seeds, and what lies between."""

    def __init__(self, study: Study) -> None:
        self._first = make_plan(study)
        self._all = make_plan(study.with_all_seeds())
        self._order = self._all.study.finetune.seeds
        self._flops = {run.run_id: run.flops for run in self._all.runs}
        self._needs: dict[str, frozenset[str]] = {}
        """Run → itself and all that it starts from, directly or not."""
        for run in self._all.runs:
            before = (self._needs.get(parent, frozenset()) for parent in run.parents)
            self._needs[run.run_id] = frozenset({run.run_id}).union(*before)
        self._cells: dict[tuple[Any, ...], frozenset[str]] = {}
        """Target, arm, labelled scans and seed → the runs of it, in all folds."""
        for run in self._all.grid:
            key = (run.place.target, run.place.arm, run.place.labels, run.place.seed)
            self._cells[key] = self._cells.get(key, frozenset()) | self._needs[run.run_id]
        first = len(study.finetune.seeds)
        self.begin: Seeds = {
            versus: dict.fromkeys(counts, first) for versus, counts in self._comparisons()
        }

    def _comparisons(self) -> Iterator[tuple[Versus, list[int]]]:
        """With the label counts that arm and reference share."""
        for target in self._first.study.finetune.targets:
            for arm, reference in one_study(self._first).references().items():
                counts = [
                    {place[2] for place in self._cells if place[:2] == (target, it)}
                    for it in (arm, reference)
                ]
                shared = sorted(n for n in set.intersection(*counts) if n is not None)
                if shared:
                    yield Versus(target, arm, reference), shared

    def _cell(self, versus: Versus, count: int, numbers: Iterable[int]) -> frozenset[str]:
        """The runs of arm and reference at a label count, of the seeds with these numbers."""
        return frozenset().union(
            *(
                self._cells[versus.target, arm, count, self._order[number]]
                for arm in (versus.arm, versus.reference)
                for number in numbers
            )
        )

    def _runs(self, seeds: Seeds) -> frozenset[str]:
        each = (
            self._cell(versus, count, range(number))
            for versus, own in seeds.items()
            for count, number in own.items()
        )
        return frozenset(run.run_id for run in self._first.runs).union(*each)

    def plan(self, seeds: Seeds) -> Plan:
        """Of the comparisons' runs with so many seeds, and all else that the study begins with.

        A pre-training that was added has its anomaly score, too.
        """
        wanted = set(self._runs(seeds))
        for run in self._all.scores:
            if not run.place.is_cell and wanted.issuperset(run.parents):
                wanted.add(run.run_id)
        runs = tuple(run for run in self._all.runs if run.run_id in wanted)
        return replace(self._first, runs=runs)

    def grown(self, versus: Versus, seeds: Seeds, look: Look) -> dict[int, int]:
        """The seeds of a comparison at the next look, which pays for whole curves.

        The last look has them all.
        """
        own, there = seeds[versus], self._runs(seeds)
        if look.is_last:
            return dict.fromkeys(own, look.seeds)
        whole = (self._cell(versus, count, range(look.seeds)) for count in own)
        budget = self._cost(frozenset().union(*whole) - there)

        def price(found: Mapping[int, int], count: int) -> float:
            added = (self._cell(versus, n, range(own[n], found[n])) for n in found)
            new = self._cell(versus, count, [found[count]])
            return self._cost(new - there.union(*added))

        return grown(own, budget, price, len(self._order))

    def _cost(self, run_ids: Iterable[str]) -> float:
        return sum(self._flops[run_id] for run_id in run_ids)
