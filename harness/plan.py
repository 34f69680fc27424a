"""From a study to its runs: which there are, what each starts from, what each costs.

The plan is a function of the study file and the store; it runs nothing. Runs are ordered so that
parents come before children.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.experiments.cost import run_flops
from fewscan.experiments.spec import Anomaly, Denoise, RunSpec, Segment, run_id, to_json
from fewscan.harness.arms import Arm, Place
from fewscan.harness.study import SCRATCH, Share, Study, load_study
from fewscan.storage.errors import StudyError
from fewscan.storage.geometry import orientation
from fewscan.storage.runs import RunFolder, StudyFolder
from fewscan.storage.slices import SliceStore

UNSUPERVISED = "unsupervised"
"""The arm that scores a pre-trained network as it is."""


@dataclass(frozen=True)
class PlannedRun:
    """One run, with the names that people know it by."""

    spec: RunSpec
    init: str
    """What it starts from: scratch, or the name of a pre-training or imported checkpoint."""
    name: str
    """For people: "segment binary · denoise · 4 scans · seed 0"."""
    flops: float
    """Floating-point operations, roughly: for the order of runs and the estimate of hours."""

    @cached_property
    def run_id(self) -> str:
        return run_id(self.spec)

    @property
    def place(self) -> Place:
        """Where it stands in the grid."""
        init = None if self.init == SCRATCH else self.init
        spec = self.spec
        if isinstance(spec, Segment):
            return Place(Arm("fine-tuning", init), spec.target, spec.label_count, spec.seed)
        if isinstance(spec, Anomaly):
            return Place(Arm("unsupervised", init), "binary", None, 0)
        return Place(Arm("pre-training", init), None, None, getattr(spec, "seed", 0))

    @property
    def parents(self) -> tuple[str, ...]:
        return () if self.spec.init is None else (self.spec.init,)

    @property
    def arm(self) -> str:
        """The line of the figure that it belongs to."""
        if isinstance(self.spec, Segment):
            return self.init
        return UNSUPERVISED if isinstance(self.spec, Anomaly) else "pre-training"


@dataclass(frozen=True)
class Plan:
    """A study with its store, folder and runs."""

    study: Study
    store: SliceStore
    runs: tuple[PlannedRun, ...]

    @property
    def folder(self) -> StudyFolder:
        return StudyFolder(self.study.folder)

    @property
    def scores(self) -> tuple[PlannedRun, ...]:
        """The runs that have test numbers."""
        return tuple(run for run in self.runs if isinstance(run.spec, Segment | Anomaly))

    def folder_of(self, run: PlannedRun) -> RunFolder:
        return self.folder.run(run.run_id)

    def share_of(self, run: PlannedRun) -> Share:
        resources = self.study.resources
        return resources.pretrain if isinstance(run.spec, Denoise) else resources.finetune

    def record(self, run: PlannedRun) -> dict[str, Any]:
        """What the run's `spec.json` says: its identity, and beside it place and names."""
        return {
            "id": run.run_id,
            "spec": to_json(run.spec),
            "store": str(self.store.path),
            "study": self.study.name,
            "name": run.name,
            "arm": run.arm,
            "init": run.init,
            "slices": self.slices,
        }

    @cached_property
    def slices(self) -> dict[str, Any]:
        """What a new scan must be made into, so that a run of this study can be used on it."""
        return slices_of(self.store)


def slices_of(store: SliceStore) -> dict[str, Any]:
    """Names, size and preprocessing of a store's slices, as plain values."""
    parameters = store.manifest.parameters
    found = Counter(orientation(np.array(s.affine)) for s in store.subjects.values())
    return {
        "channels": list(store.channels),
        "classes": list(store.classes),
        "slice_size": store.size,
        "axis": parameters.axis,
        "normalisation": parameters.normalisation,
        "orientations": [name for name, _ in found.most_common()],
    }


def make_plan(study: Study) -> Plan:
    """All runs of the study, parents first.

    Raises `StoreError` if the store cannot be used and `StudyError` if a name, a count or the order
    of the pre-trainings makes no sense for it.
    """
    store = SliceStore.open(study.store)
    unique: dict[str, PlannedRun] = {}
    for run in _Planner(study, store).runs():
        first = unique.setdefault(run.run_id, run)
        if first.name != run.name:
            raise StudyError(
                f"{first.name!r} and {run.name!r} are the same run",
                where="pretrain",
                expected="names for different things",
                remedy="give one another seed or setting, or leave it out",
            )
    return Plan(study, store, tuple(unique.values()))


class _Planner:
    def __init__(self, study: Study, store: SliceStore) -> None:
        self.study = study
        self.store = store
        self.folder = StudyFolder(study.folder)
        self.imports = self.folder.read_imports()
        self.pretrained: dict[str, str] = {}

    def runs(self) -> Iterator[PlannedRun]:
        for name in self._pretrainings_in_order():
            run = self._pretraining(name)
            self.pretrained[name] = run.run_id
            yield run
        if "unsupervised" in self.study.baselines:
            names = [*self.pretrained, *(n for n in self.imports if n in self.study.finetune.inits)]
            yield from (self._unsupervised(name) for name in names)
        yield from self._grid()

    def _pretrainings_in_order(self) -> list[str]:
        """Depth first, parents before children; a name that is met again on the way is a cycle."""
        order: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise StudyError(
                    f"pre-trainings start from each other: {' → '.join((*path, name))}",
                    where=f"pretrain.{name}.init",
                    expected="a chain that begins at scratch or at an imported checkpoint",
                    remedy="change one init of the circle",
                )
            if name in self.study.pretrain and name not in order:
                parent = self.study.pretrain[name].init
                self._check_known(parent, where=f"pretrain.{name}.init")
                visit(parent, (*path, name))
                order.append(name)

        for name in self.study.pretrain:
            if name == SCRATCH or name in self.imports:
                raise StudyError(
                    f"a pre-training is called {name!r}, which is taken",
                    where=f"pretrain.{name}",
                    expected="a name other than scratch and those of imported checkpoints",
                    remedy="rename it, here and in finetune.inits",
                )
            visit(name, ())
        return order

    def _check_known(self, init: str, where: str) -> None:
        known = [SCRATCH, *self.study.pretrain, *self.imports]
        if init not in known:
            raise StudyError(
                f"unknown parent {init!r}",
                where=where,
                expected=f"one of: {', '.join(known)}",
                remedy="name a pre-training of this study, or import a checkpoint under that name "
                "(`fewscan import-checkpoint`)",
            )

    def _init_id(self, init: str) -> str | None:
        return None if init == SCRATCH else self.pretrained.get(init) or self.imports[init]

    def _planned(self, spec: RunSpec, init: str, name: str) -> PlannedRun:
        return PlannedRun(spec, init, name, run_flops(spec, self.study.network, self.store))

    def _pretraining(self, name: str) -> PlannedRun:
        wish = self.study.pretrain[name]
        spec = Denoise(
            data=self.store.fingerprint,
            network=self.study.network,
            noise=wish.noise,
            training=wish.training,
            seed=wish.seed,
            init=self._init_id(wish.init),
        )
        return self._planned(spec, wish.init, f"pre-train {name}")

    def _unsupervised(self, init: str) -> PlannedRun:
        parent = self._init_id(init)
        assert parent is not None
        spec = Anomaly(self.store.fingerprint, self.study.evaluation, parent)
        return self._planned(spec, init, f"unsupervised · {init}")

    def _grid(self) -> Iterator[PlannedRun]:
        finetune = self.study.finetune
        for init in finetune.inits:
            self._check_known(init, where="finetune.inits")
        for target in finetune.targets:
            for init in finetune.inits:
                for count in self._label_counts():
                    yield from (self._segment(target, init, count, s) for s in finetune.seeds)
            if "supervised" in self.study.baselines:
                everything = len(self.store.split.train)
                yield from (
                    self._segment(target, SCRATCH, everything, seed) for seed in finetune.seeds
                )

    def _label_counts(self) -> list[int]:
        everything = len(self.store.split.train)
        counts = [everything if c == "all" else c for c in self.study.finetune.label_counts]
        if max(counts) > everything:
            raise StudyError(
                f"label count {max(counts)} is larger than the training split",
                where="finetune.label_counts",
                expected=f"at most {everything}, the training scans in {self.store.path}",
                remedy="leave it out, or write all for the whole training split",
            )
        return sorted(set(counts))

    def _segment(self, target: Any, init: str, label_count: int, seed: int) -> PlannedRun:
        finetune = self.study.finetune
        spec = Segment(
            data=self.store.fingerprint,
            network=self.study.network,
            target=target,
            label_count=label_count,
            training=finetune.training,
            augmentation=finetune.augmentation,
            evaluation=self.study.evaluation,
            seed=seed,
            init=self._init_id(init),
        )
        scans = "scan" if label_count == 1 else "scans"
        return self._planned(spec, init, f"{target} · {init} · {label_count} {scans} · seed {seed}")


def load_plan(path: Path, overrides: tuple[str, ...] = ()) -> Plan:
    """Read, validate and plan a study file."""
    return make_plan(load_study(path, overrides))
