"""A study with its runs: values, which `harness.planner` makes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from fewscan.experiments.results import RunRecord
from fewscan.experiments.spec import (
    Finetune,
    Network,
    Pretrain,
    RunSpec,
    Score,
    run_id,
)
from fewscan.harness.arms import Place
from fewscan.harness.looks import Look
from fewscan.harness.networks import network_of
from fewscan.harness.study import Share, Study
from fewscan.storage.runs import RunFolder, StudyFolder
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import Fold, Split

VERBS = {Finetune.kind: "fine-tune", Score.kind: "score"}
"""How the names of runs of a cell begin."""


@dataclass(frozen=True)
class PlannedRun:
    """One run, with its place in the grid and the name that people know it by."""

    spec: RunSpec
    place: Place
    name: str
    """For people: "fine-tune binary · denoise · 4 scans · seed 0"."""
    flops: float
    """Floating-point operations, roughly: for the order of runs and the estimate of hours."""
    store: SliceStore | None = field(default=None, repr=False, compare=False)
    """Whose slices it sees; None: the study's."""
    made_in: Path | None = None
    """The folder of another study, whose run it is: what is finished there is taken over."""

    @cached_property
    def run_id(self) -> str:
        return run_id(self.spec)

    @property
    def name_in_all_folds(self) -> str:
        """The same for the runs of a cross-validation that differ in who is tested."""
        return self.name.removesuffix(fold_words(self.place.fold))

    @property
    def kind(self) -> str:
        """pretrain, finetune, score or imported."""
        return self.spec.kind

    @property
    def slices_a_step(self) -> int:
        """That it trains on; 0 if it does not train."""
        match self.spec:
            case Pretrain(training=training) | Finetune(training=training):
                return training.batch_size
        return 0

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the runs that it needs."""
        return self.spec.parents


@dataclass(frozen=True)
class Plan:
    """A study with its stores, folder and runs."""

    study: Study
    store: SliceStore
    """That it is fine-tuned and scored on; of a cross-validation as its first fold sees it."""
    runs: tuple[PlannedRun, ...]
    stores: Mapping[str, SliceStore] = field(default_factory=dict)
    """Pre-training's name → the store that it learns from; by default the study's."""
    look: Look | None = None
    """Of an adaptive study: the next one that is taken, or the last."""
    looked: tuple[str, ...] = ()
    """And what the looks so far saw: sentences without a full stop."""
    only: tuple[str, ...] = ()
    """The part of the study that these are, as `--only` says it (`harness.only`); empty: all."""
    left_out: tuple[str, ...] = ()
    """What of `finetune.inits`, probes and folds there is no arm for, and why: sentences without a
    full stop."""
    folds: tuple[SliceStore, ...] = ()
    """Of a cross-validation, the store as each fold sees it."""

    @property
    def folder(self) -> StudyFolder:
        return StudyFolder(self.study.folder)

    @cached_property
    def network(self) -> Network:
        """Of the fine-tunings."""
        return network_of(self.study, self.store)

    @property
    def scores(self) -> tuple[PlannedRun, ...]:
        """The runs that have test numbers."""
        return tuple(run for run in self.runs if run.kind == Score.kind)

    @property
    def grid(self) -> tuple[PlannedRun, ...]:
        """The scores of fine-tunings: a run for each cell of the grid and seed."""
        return tuple(run for run in self.scores if run.place.is_cell)

    def folder_of(self, run: PlannedRun) -> RunFolder:
        return self.folder.run(run.run_id)

    def share_of(self, run: PlannedRun) -> Share:
        return self.study.resources.share_of(run.kind)

    def record(self, run: PlannedRun) -> RunRecord:
        """What the run's `spec.json` says: its identity, and beside it place and names."""
        store = run.store or self.store
        return RunRecord(run.spec, self.study.name, run.name, slice_format(store), store.path)

    @property
    def all_stores(self) -> tuple[SliceStore, ...]:
        """The study's, and those that pre-trainings learn from."""
        return tuple(dict.fromkeys((self.store, *self.stores.values())))

    @property
    def split(self) -> Split:
        """Who is labelled, validates and is tested; of a cross-validation in its first fold."""
        return self.store.split

    @property
    def tested(self) -> tuple[str, ...]:
        """The scans that are tested, in some fold."""
        return tuple(id_ for store in self.folds or [self.store] for id_ in store.split.test)

    @property
    def everything(self) -> int:
        """What `all` labelled scans are."""
        return everything_of(self.folds or [self.store])

    def store_of(self, pretraining: str) -> SliceStore:
        """The store that a pre-training learns from."""
        return self.stores.get(pretraining, self.store)


@lru_cache(maxsize=16)  # the same for each of the runs of a study
def slice_format(store: SliceStore) -> SliceFormat:
    """What a new scan must be made into, so that a run on this store can be used on it."""
    return SliceFormat.of_store(store)


def fold_words(fold: Fold | None) -> str:
    """At the end of a run's name."""
    return "" if fold is None else f" · {fold}"


def everything_of(folds: Iterable[SliceStore]) -> int:
    """The training scans that there are in every fold."""
    return min(len(store.split.train) for store in folds)


@lru_cache(maxsize=16)
def slices_a_scan(store: SliceStore) -> float:
    """Kept slices of a training scan, in the mean."""
    train = store.split.train
    return sum(len(store.subjects[i].positions) for i in train) / len(train)
