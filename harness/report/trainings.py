"""How trainings went: epochs, rates and their trials, whether they had ended, dead levels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean

from fewscan.experiments.health import DEAD_BELOW, dead_levels
from fewscan.experiments.labelled import labelled_scans
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune, Pretrain, Target
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.report.studies import Studies
from fewscan.harness.report.tables import Column, Table, at, number
from fewscan.storage.errors import RunError
from fewscan.storage.slices import SliceStore


@dataclass(frozen=True)
class TrainingRun:
    """A planned training, and what is known of it once it is finished."""

    run: PlannedRun
    spec: Pretrain | Finetune
    slices: int
    """That it learns from."""
    result: Result | None

    @property
    def epochs(self) -> float:
        """How often it sees each slice, in the mean."""
        return self.spec.training.iterations * self.spec.training.batch_size / self.slices

    @property
    def lr(self) -> float | None:
        """The rate that it has, or that its trials chose; None: not chosen yet."""
        if not self.spec.rate_from:
            return self.spec.training.lr
        return None if self.result is None else self.result.lr

    @property
    def ends_at_its_best(self) -> bool:
        """Whether its last model has the lowest validation loss: trained for longer it might have
        found a better one."""
        return self.result is not None and self.result.best_step == self.spec.training.iterations


@dataclass(frozen=True)
class TrainingCell:
    """Those that differ in seed alone, or in their number in an ensemble."""

    name: str
    target: Target | None
    labels: int | None
    each: Sequence[TrainingRun]

    @property
    def iterations(self) -> int:
        return self.each[0].spec.training.iterations

    @property
    def epochs(self) -> float:
        return fmean(it.epochs for it in self.each)

    @property
    def rates(self) -> str:
        """Different ones, each once; empty as long as none is chosen."""
        rates = dict.fromkeys(it.lr for it in self.each if it.lr is not None)
        return ", ".join(f"{rate:g}" for rate in rates)

    @property
    def finished(self) -> list[TrainingRun]:
        return [it for it in self.each if it.result is not None]

    @property
    def chosen_last(self) -> int | None:
        """Finished runs whose last model was the best; None where nothing chooses among models."""
        if not all(map(_chooses, self.each)):
            return None
        return sum(it.ends_at_its_best for it in self.finished)

    @property
    def gains(self) -> Mapping[str, float]:
        """Level → the lowest mean gain of all runs."""
        found: dict[str, float] = {}
        for it in self.finished:
            assert it.result is not None
            for level, gain in it.result.gains.items():
                found[level] = min(gain, found.get(level, gain))
        return found

    @property
    def lowest_gain(self) -> float | None:
        return min(self.gains.values(), default=None)

    @property
    def lowest_level(self) -> str | None:
        """The level that has it."""
        return min(self.gains, key=lambda level: self.gains[level], default=None)

    @property
    def in_words(self) -> str:
        """ "scratch, binary, 4 scans"."""
        scans = "" if self.labels is None else f", {self.labels} scan{'s' * (self.labels != 1)}"
        return f"{self.name}{', ' if self.target else ''}{self.target or ''}{scans}"


def _chooses(trained: TrainingRun) -> bool:
    match trained.spec:
        case Pretrain(scheme=scheme):
            keeps: bool = scheme.keeps == "best"
            return keeps
        case Finetune(selection="within"):
            return trained.result is None or bool(trained.result.held_out)
        case Finetune(selection=selection):
            return selection == "validation"


def read_trainings(studies: Studies) -> tuple[list[TrainingCell], list[TrainingCell]]:
    """The trainings of the studies, and the trials of their rates, in the order of the plan."""
    found: dict[tuple[bool, str, Target | None, int | None], list[TrainingRun]] = {}
    for plan in studies.plans:
        for run in plan.runs:
            if isinstance(run.spec, Pretrain | Finetune):
                key = (run.spec.is_trial, _name(run), run.place.target, run.place.labels)
                found.setdefault(key, []).append(_trained(plan, run, run.spec))
    groups = {key: TrainingCell(*key[1:], each) for key, each in found.items()}
    return (
        [it for (is_trial, *_), it in groups.items() if not is_trial],
        [it for (is_trial, *_), it in groups.items() if is_trial],
    )


def _name(run: PlannedRun) -> str:
    """A pre-training's arm says what it starts from, so it goes by its name."""
    place = run.place
    if place.arm.kind != "pre-training":
        return place.arm.key
    return run.name.removesuffix(f" · seed {place.seed}")


def _trained(plan: Plan, run: PlannedRun, spec: Pretrain | Finetune) -> TrainingRun:
    result = None
    folder = plan.folder_of(run)
    if folder.result.exists():
        with suppress(RunError):  # damaged, which the run's log says
            result = Result.read(folder)
    return TrainingRun(run, spec, _slices(run.store or plan.store, spec), result)


def _slices(store: SliceStore, spec: Pretrain | Finetune) -> int:
    if isinstance(spec, Pretrain):
        learnt, _ = store.pretraining(spec.slices)
        which = spec.slices
    else:
        learnt, _ = labelled_scans(spec, store)
        which = "all"
    return sum(len(store.positions(store.subjects[i], which)) for i in learnt)


def warnings_of(trainings: Sequence[TrainingCell]) -> Iterator[str]:
    """What a person should see of how trainings went, without a full stop."""
    for it in trainings:
        dead = dead_levels(it.gains)
        if dead:
            gains = ", ".join(f"{level} ({it.gains[level]:.2g})" for level in dead)
            yield (
                f"dead levels in {it.in_words}: the mean gain of {gains} is below {DEAD_BELOW:g}: "
                "next to nothing passes through; `training.decay_norms: false` keeps gains alive"
            )
        if 2 * (it.chosen_last or 0) > len(it.finished):
            yield (
                f"{it.in_words}: in {it.chosen_last} of {len(it.finished)} runs the last model was "
                f"the best, after {it.epochs:.3g} epochs; trained for longer it might be better"
            )


def trainings_table(trainings: Sequence[TrainingCell]) -> Table:
    """A row for each cell: how long, how fast, and whether it had ended."""
    return Table(
        (
            Column("training", "training", at("name")),
            Column("target", "target", at("target"), _or_dash),
            Column("label_count", "labelled scans", at("labels"), _or_dash, "right"),
            Column("iterations", "iterations", at("iterations"), "{:,}".format, "right"),
            Column("epochs", "epochs", at("epochs"), "{:.3g}".format, "right"),
            Column("learning_rate", "learning rate", at("rates"), write=str, align="right"),
            Column("finished", "finished", lambda it: len(it.finished), align="right"),
            Column("last_is_best", "last model is the best", at("chosen_last"), _or_dash, "right"),
            Column("lowest_gain", "lowest gain", at("lowest_gain"), number, "right"),
            Column("lowest_level", "of level", at("lowest_level"), _or_dash),
        ),
        trainings,
    )


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


@dataclass(frozen=True)
class Trial:
    """A rate that was tried, and whether it was chosen."""

    trained: TrainingRun
    chosen: bool

    @property
    def arm(self) -> Arm:
        return self.trained.run.place.arm

    @property
    def loss(self) -> float | None:
        """None: not finished, or not finite."""
        result = self.trained.result
        return None if result is None else result.validation_loss


def trials_of(trainings: Sequence[TrainingCell]) -> list[Trial]:
    """All trials; where those of an arm are finished, the one of the lowest loss is marked."""
    found = []
    for group in trainings:
        trials = [Trial(it, chosen=False) for it in group.each]
        known = [it for it in trials if it.loss is not None]
        if known and len(group.finished) == len(group.each):
            best = min(known, key=lambda it: it.loss or 0.0)
            trials = [replace(it, chosen=it is best) for it in trials]
        found += trials
    return found


def trials_table(trials: Sequence[Trial]) -> Table:
    """Every rate that was tried, with its validation loss."""
    place = "trained.run.place"
    return Table(
        (
            Column("arm", "arm", at("arm"), lambda arm: arm.title),
            Column("target", "target", at(f"{place}.target"), _or_dash),
            Column("label_count", "labelled scans", at(f"{place}.labels"), _or_dash, "right"),
            Column("seed", "seed", at(f"{place}.seed"), align="right"),
            Column("lr", "learning rate", at("trained.spec.training.lr"), "{:g}".format, "right"),
            Column("validation_loss", "validation loss", at("loss"), number, "right"),
            Column("chosen", "chosen", at("chosen"), lambda it: "yes" if it else ""),
        ),
        trials,
    )
