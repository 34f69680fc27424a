"""What a study is: a person's wishes as frozen values, each checked by itself.

How they stand in a file is `harness.study_file`; whether a store allows them, `harness.plan`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
)

from fewscan.experiments.catalogue import leading, panels
from fewscan.experiments.image_scores import ImageScore
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.registry import in_words, kinds, scheme_class
from fewscan.experiments.schemes.scheme import Scheme
from fewscan.experiments.settings import OWN_RATES, Schedule, Selection, Transfer
from fewscan.experiments.spec import (
    Augmentation,
    Dims,
    Evaluation,
    Network,
    Patch,
    Residency,
    Target,
    Training,
    patch_units,
)
from fewscan.harness.arms import SCRATCH
from fewscan.slurm import Settings
from fewscan.storage.labels import PretrainSlices

TRAINED_BASELINES = ("unsupervised", "supervised", "supervised long", "random features")


def _baseline(name: str) -> str:
    if name in TRAINED_BASELINES or ImageScore.named(name):
        return name
    raise ValueError(f"a baseline is {', '.join(TRAINED_BASELINES)}, smoothed, or channel NAME")


Baseline = Annotated[str, AfterValidator(_baseline)]


def _validated(cls: Any, value: Any) -> Any:
    """A value of a dataclass. Raises ValidationError, also for a key that it does not have."""
    # A dataclass alone would have to forbid unknown keys itself; so would those within it.
    found: Any = TypeAdapter(cls | None, config=ConfigDict(extra="forbid")).validate_python(value)
    return found


def _scheme(value: Any) -> Scheme:
    """The scheme of the kind that the mapping names.

    Raises ValueError, ValidationError, and `RunError` for a package's scheme that is none.
    """
    if isinstance(value, Scheme):
        return value
    if not isinstance(value, dict) or str(value.get("kind")) not in kinds():
        raise ValueError(f"a scheme says its kind, one of: {in_words()}")
    settings = {name: inner for name, inner in value.items() if name != "kind"}
    scheme: Scheme = _validated(scheme_class(value["kind"]), settings)
    return scheme


def _plain_scheme(scheme: Scheme) -> dict[str, Any]:
    settings: dict[str, Any] = TypeAdapter(type(scheme)).dump_python(scheme, mode="json")
    return {"kind": scheme.kind, **settings}


def _require_each_once(name: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name} needs at least one value, and none twice")


@dataclass(frozen=True)
class Architecture:
    """The U-Net that all arms share. In 3D what is not named follows the spacing of the store."""

    width: int = 64
    """Channels of the first level; each level below doubles them."""
    depth: int = 4
    """Levels, one more than there are poolings."""
    dims: Dims = 2
    """2: it sees slices. 3: it sees patches of volumes."""
    patch: Patch | None = None
    """In 3D, slices, rows and columns of a patch."""
    patch_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """The same in millimetres: as many voxels of the store's median spacing as can be halved."""
    flat_levels: int | None = None
    """In 3D, so many of the finest levels look at each slice by itself. None: those in which slices
    are at least twice as far apart as pixels."""

    def __post_init__(self) -> None:
        Network(self.width, self.depth)  # says what is wrong with them
        said = [it for it in (self.patch, self.patch_mm) if it is not None]
        if len(said) != (1 if self.dims == 3 else 0):
            raise ValueError("dims 3 goes with either patch or patch_mm, dims 2 with neither")
        if self.flat_levels is not None and self.dims == 2:
            raise ValueError("flat_levels are for dims 3")

    def on(self, spacing_mm_ZHW: tuple[float, float, float], size: int) -> Network:
        """On slices of size² pixels of this spacing. Raises ValueError for a patch that does not
        fit them."""
        if self.dims == 2:
            return Network(self.width, self.depth)
        flat = flat_levels(spacing_mm_ZHW, self.depth)
        flat = flat if self.flat_levels is None else self.flat_levels
        patch = self.patch
        if patch is None:
            assert self.patch_mm is not None
            units, least = patch_units(self.depth, flat)
            most = (None, size, size)
            depth, rows, columns = map(_voxels, self.patch_mm, spacing_mm_ZHW, units, least, most)
            patch = depth, rows, columns
        if max(patch[1:]) > size:
            raise ValueError(f"a patch of {patch[1]} × {patch[2]} pixels is larger than a slice")
        return Network(self.width, self.depth, 3, patch, flat)


def _voxels(length_mm: float, mm: float, unit: int, least: int, most: int | None) -> int:
    """Of a length, the nearest number that can be halved."""
    found = max(round(length_mm / mm / unit) * unit, least)
    return found if most is None else min(found, most // unit * unit)


def flat_levels(spacing_mm_ZHW: tuple[float, float, float], depth: int) -> int:
    """So many of the finest levels have slices at least twice as far apart as pixels.

    nnU-Net's rule (Isensee et al. 2021): an axis is pooled, and convolved, only where its spacing
    is within a factor of 2 of the finest. It knows nothing of slices that are much finer.
    """
    through, *plane = spacing_mm_ZHW
    return sum(through / (min(plane) * 2**level) >= 2 for level in range(depth))


@dataclass(frozen=True)
class PretrainTuning:
    """Learning rates that are tried before a pre-training, the best by its validation loss."""

    lr: tuple[PositiveFloat, ...]
    """Rates to try."""
    seed: int = 100
    """Of the trials: none that the study uses."""

    def __post_init__(self) -> None:
        _require_each_once("lr", self.lr)


@dataclass(frozen=True)
class TuningCell:
    """Where the learning rates of fine-tunings are tried."""

    labels: PositiveInt
    """Labelled scans."""
    seed: int = 100
    """One that the grid has not: what is chosen there is not scored there."""


@dataclass(frozen=True)
class Tuning:
    """Learning rates that every arm tries, scratch included; each takes its best by validation."""

    lr: tuple[PositiveFloat, ...]
    """Rates to try."""
    on: TuningCell

    def __post_init__(self) -> None:
        _require_each_once("lr", self.lr)


@dataclass(frozen=True)
class Epochs:
    """Iterations by a law: as many epochs of the labelled slices, within two bounds."""

    epochs: PositiveFloat
    """So often each labelled slice is seen."""
    at_least: PositiveInt = 1
    """Iterations."""
    at_most: PositiveInt | None = None
    """Iterations. None: no bound."""

    def __post_init__(self) -> None:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most {self.at_most} is less than at_least {self.at_least}")

    def iterations(self, slices: float, batch_size: int) -> int:
        """For so many labelled slices."""
        wanted = max(self.at_least, round(self.epochs * slices / batch_size))
        return wanted if self.at_most is None else min(wanted, self.at_most)


def _iterations(value: Any) -> dict[int, int] | Epochs | None:
    """A table by label count, or a law. Raises ValueError, also as ValidationError."""
    if value is None or isinstance(value, Epochs):
        return value
    if isinstance(value, dict) and "epochs" in value:
        law: Epochs = _validated(Epochs, value)
        return law
    table = TypeAdapter(dict[PositiveInt, PositiveInt]).validate_python(value)
    if not table:
        raise ValueError("at least one label count, or {epochs: …}")
    return table


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Epochs) else value


def _between(table: dict[int, int], labels: int) -> int:
    """On straight lines through the points of a table, both axes logarithmic; level outside."""
    counts = sorted(table)
    iterations = [math.log(table[count]) for count in counts]
    return round(math.exp(np.interp(math.log(labels), list(map(math.log, counts)), iterations)))


@dataclass(frozen=True)
class Probing:
    """Probes: a new 1×1 head on frozen features of each init and, as control, of random weights."""

    levels: tuple[int, ...] = (0,)
    """Whose features: of the last map (0), of the encoder's at a level from 1 to the depth."""
    label_counts: tuple[int | Literal["all"], ...] | None = None
    """None: those of the grid."""
    training: Training | None = None
    """None: that of the grid."""

    def __post_init__(self) -> None:
        _require_each_once("levels", self.levels)
        if min(self.levels) < 0:
            raise ValueError("a level is 0, the last map, or one of the encoder's from 1")


@dataclass(frozen=True)
class Pretraining:
    """One pre-training, to start fine-tunings from."""

    training: Training
    scheme: Annotated[Scheme, PlainValidator(_scheme), PlainSerializer(_plain_scheme)] = Denoise()
    """How it learns: `{kind: denoise, …}` and the settings of that kind. The key `noise` instead is
    short for the noise of the published kind."""
    seeds: tuple[int, ...] = (0,)
    """A pre-training each: fine-tuning seed s starts from that of seed s, so that the luck of a
    pre-training is in the intervals. The published study has one. `seed: 3` is short for one."""
    init: str = SCRATCH
    """scratch, another pre-training's name, or the name of an imported checkpoint."""
    slices: PretrainSlices = "healthy"
    """healthy: slices without a lesion, as the masks of the labelled scans tell (published). all:
    every slice of training and unlabelled scans; no mask is looked at."""
    store: Path | None = None
    """Another slice store to learn from, of as many channels and slices as large."""
    tune: PretrainTuning | None = None
    """None: its rate is `training.lr`."""
    dims: Dims | None = None
    """2 in a study of 3D networks: its like for slices, of which fine-tunings take over what
    `transfer: inflate` makes of it. None: as `network`."""

    def __post_init__(self) -> None:
        _require_each_once("seeds", self.seeds)
        if self.tune is not None and self.tune.seed in self.seeds:
            raise ValueError(f"tune.seed {self.tune.seed} is one of seeds; trials have their own")

    def seed_for(self, seed: int) -> int:
        """The one of `seeds` that a run of this seed starts from: the same, where it is there.

        Of fewer pre-trainings than fine-tunings each is started from in turn.
        """
        return seed if seed in self.seeds else self.seeds[seed % len(self.seeds)]


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def _members(value: Any) -> Any:
    """Raises ValueError that explains for what is no number."""
    if isinstance(value, int):
        return value
    raise ValueError(
        "members is how many networks of a cell are averaged, all trained on its labelled scans; "
        "to average the networks of several seeds would use the labels of all of them, up to as "
        "many times the cell's label count, and is not offered"
    )


MOST_MEMBERS = 100
"""Of an ensemble; a score keeps all their networks at once."""
Members = Annotated[int, BeforeValidator(_members), Field(ge=1, le=MOST_MEMBERS)]
LrScale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Portion = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Arms:
    """Arms as a grid: each init with each way to fine-tune it. What is not named is as `finetune`
    says. Each is a value or a list of them."""

    init: Annotated[tuple[str, ...], BeforeValidator(_several)]
    """scratch, names of pre-trainings, names of imported checkpoints."""
    transfer: Annotated[tuple[Transfer, ...], BeforeValidator(_several)] = ()
    """What of a pre-training is taken over; of scratch nothing is."""
    schedule: Annotated[tuple[Schedule, ...], BeforeValidator(_several)] = ()
    """What of the network learns, and when."""
    lr_scale: Annotated[tuple[LrScale, ...], BeforeValidator(_several)] = ()
    """The rate of what is transferred, in parts of that of what is new."""
    oversample_foreground: Annotated[tuple[Portion, ...], BeforeValidator(_several)] = ()
    """The share of each batch that is drawn from slices with a lesion."""

    def __post_init__(self) -> None:
        _require_each_once("init", self.init)

    @property
    def is_one(self) -> bool:
        """Whether it names a single arm, which is refused rather than left out if it cannot be."""
        return all(len(getattr(self, it.name)) < 2 for it in fields(self))


def _arms(value: Any) -> str | Arms:
    """A name, or a mapping. Raises ValueError, also as ValidationError."""
    if isinstance(value, str | Arms):
        return value
    arms: Arms = _validated(Arms, value)
    return arms


def _plain_arms(value: str | Arms) -> Any:
    if isinstance(value, str):
        return value
    return {name: list(found) for name, found in vars(value).items() if found}


@dataclass(frozen=True)
class Finetuning:
    """The grid: label counts × seeds × inits × targets."""

    label_counts: tuple[int | Literal["all"], ...]
    """Numbers of labelled scans; "all" is the whole training split."""
    training: Training
    """The same for every cell: arms share their update budget."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each chooses the labelled scans and draws all random numbers, the same for all arms."""
    inits: tuple[
        Annotated[str | Arms, PlainValidator(_arms), PlainSerializer(_plain_arms)], ...
    ] = (SCRATCH,)
    """The arms: scratch, names of pre-trainings, names of imported checkpoints; and grids of them
    and ways to fine-tune: {init: [scratch, denoise], schedule: [plain, sawtooth], …}."""
    targets: tuple[Target, ...] = ("binary", "multiclass")
    """binary: lesion or not. multiclass: each class of the store."""
    augmentation: Augmentation = Augmentation()
    transfer: Transfer | None = None
    """What fine-tunings take over from a pre-training: all of it but the head, or the encoder.
    None: what its scheme hands on."""
    schedule: Schedule = "plain"
    """What of the network learns, and when. plain: all of it, on one cosine (published). warmup:
    all; the rate rises before it falls. sawtooth: decoder and head first, then all. frozen: decoder
    and head alone. probe: a new head alone."""
    lr_scale: LrScale = 1.0
    """The rate of what is transferred is so many times that of what is new."""
    oversample_foreground: Portion = 0.0
    """The share of each batch that is drawn from slices with a lesion; nnU-Net's is a third."""
    selection: Selection = "validation"
    """Which labels choose the model that is kept and the threshold of its mask. validation: those
    of the validation split (published). within: a fifth of the labelled scans, held out; of fewer
    than 4, none. last: none; the last model is kept, and the threshold of a probability is 0.5."""
    iterations: Annotated[
        dict[int, int] | Epochs | None, PlainValidator(_iterations), PlainSerializer(_plain)
    ] = None
    """Iterations by label count, for all arms: a table {1: 2000, 938: 60000}, in between on the
    straight line in logarithms; or a law {epochs: 20, at_least: 2000}. None: `training.iterations`
    for all. The number of validations stays that of `training`."""
    tune: Tuning | None = None
    """None: the rate of every arm is `training.lr`."""
    probes: Probing | None = None
    """What the features of a training are worth to a linear classifier. None: not asked."""
    long: PositiveFloat = 2.0
    """Times the iterations of the grid, for the baseline "supervised long"."""
    members: Members = 1
    """An ensemble beside each arm: so many fine-tunings of each cell, on the same labelled scans
    and from the same pre-training, with orders, augmentations and initial heads of their own, whose
    probabilities are averaged. The arm itself is the first of them. 1: none."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Another one, by cross-validation within the labelled scans, as nnU-Net's five folds: each of
    so many fine-tunings learns from the scans without one part, whole patients, which chooses its
    model; the threshold is chosen from what each says of its own part. Cells with fewer labelled
    patients have none. 0: none."""
    partner: Path | None = None
    """Another study file, of the same store: beside each arm that both have, the average of this
    study's network and that one's, cell by cell, which learn from the same labelled scans. So 2D
    and 3D make an ensemble. What is finished there is taken over. None: none."""

    def __post_init__(self) -> None:
        for name in ("label_counts", "seeds", "inits", "targets"):
            _require_each_once(name, getattr(self, name))
        if any(count != "all" and count < 1 for count in self.label_counts):
            raise ValueError("a label count is a whole number from 1, or all")
        if self.tune is not None and self.tune.on.seed in self.seeds:
            raise ValueError(f"tune.on.seed {self.tune.on.seed} is one of seeds, which are scored")
        if self.folds == 1:
            raise ValueError("folds is 1, expected 0, none, or at least 2")
        if self.folds and self.selection == "last":
            raise ValueError(
                f"folds: {self.folds} holds out labelled scans to choose models, and selection: "
                f"last chooses none; write selection: within, or members: {self.folds}"
            )
        grids = [it for it in self.inits if isinstance(it, Arms)]
        schedules = {self.schedule, *(name for grid in grids for name in grid.schedule)}
        own = [name for name in OWN_RATES if name in schedules]
        if own and self.training.lr_half_period is not None:
            raise ValueError(
                f"training.lr_half_period is {self.training.lr_half_period}, and schedule "
                f"{' and '.join(own)} follows a curve of its own; leave lr_half_period out"
            )

    @property
    def grids(self) -> tuple[Arms, ...]:
        """The arms, each name as a grid of one."""
        return tuple(Arms((it,)) if isinstance(it, str) else it for it in self.inits)

    @property
    def init_names(self) -> tuple[str, ...]:
        """What arms start from, each once."""
        return tuple(dict.fromkeys(name for grid in self.grids for name in grid.init))

    def training_for(self, labels: int, slices: float) -> Training:
        """How cells of so many labelled scans, and about so many labelled slices, are trained."""
        match self.iterations:
            case None:
                return self.training
            case Epochs() as law:
                wanted = law.iterations(slices, self.training.batch_size)
            case dict() as table:
                wanted = _between(table, labels)
        return self.training.stretched(wanted / self.training.iterations)


@dataclass(frozen=True)
class Scoring:
    """How networks are asked when they are scored. No training depends on it."""

    mirror: bool = False
    """Each is asked about every slice and its three mirror images, of volumes seven, as nnU-Net
    predicts: four or eight times the work of a score, the choice of its threshold too."""


@dataclass(frozen=True)
class Share:
    """What one run of a stage gets. Nothing of it changes what is computed."""

    devices: PositiveInt = 1
    """Ranks; more than one trains by DDP, each on a whole device."""
    gpu_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of a GPU, for a run on one device; several runs share a GPU if it is below 1."""
    cpus: PositiveInt = 1
    """CPU cores a rank: the threads of a CPU rank, the helpers of a GPU rank."""

    def __post_init__(self) -> None:
        if self.devices > 1 and self.gpu_share != 1:
            raise ValueError("several devices a run go with gpu_share 1: DDP needs whole GPUs")


@dataclass(frozen=True)
class Resources:
    """Where runs run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where Ray sees a GPU, else the CPU."""
    pretrain: Share = Share()
    finetune: Share = Share()
    score: Share | None = None
    """None: what a fine-tuning gets, on one device."""
    residency: Residency = "auto"
    """Where the slices are while a run trains: device (the GPU's memory), shared (memory of the
    node, or its disk, one copy for all runs), stream (the store). auto: the first that has room."""
    checkpoint_every_s: float = 60.0
    """Seconds of work that a kill may cost."""
    system_metrics_every_s: PositiveFloat | None = None
    """Seconds between two samples of cores, memory and GPU, for MLflow. None: none are taken."""
    memory_gb: PositiveFloat | None = None
    """Of a device, in 10⁹ bytes; trainings that need more are refused before anything runs. None:
    with device cpu and without Slurm what this machine has, else nobody knows."""
    niceness: Annotated[int, Field(ge=0, le=19)] = 0
    """How far runs stand back where other programs want the same cores: 0 not at all, 19 wholly."""

    def __post_init__(self) -> None:
        if self.score is not None and self.score.devices > 1:
            raise ValueError("a score runs on one device")

    def share_of(self, kind: str) -> Share:
        """What a run of this kind of spec gets."""
        score = self.score or replace(self.finetune, devices=1)
        return {"pretrain": self.pretrain, "finetune": self.finetune}.get(kind, score)


@dataclass(frozen=True)
class Published:
    """Figures from a publication, drawn beside the study's own; never used in a computation."""

    label: str
    """In the legend."""
    citation: str
    """On the page, word for word: authors, title, where, year, and table or figure."""
    metric: str
    """The panel that they belong to: pooled_ap, pooled_best_dice or class_dice_mean."""
    value: float | None = None
    """A horizontal line: it does not depend on labels, or the number of labels is not stated."""
    points: tuple[tuple[int, float], ...] = ()
    """(labelled scans, value), …"""

    def __post_init__(self) -> None:
        shown = {metric.overall_key(target): metric for target, metric in panels()}
        if self.metric not in shown:
            raise ValueError(f"metric is {self.metric!r}, expected one of: {', '.join(shown)}")
        if (self.value is None) != bool(self.points):
            raise ValueError("give either a value or points, not both")
        if not self.label.strip() or not self.citation.strip():
            raise ValueError("label and citation must say something")
        values = [value for _, value in self.points] if self.value is None else [self.value]
        least, most = shown[self.metric].least, shown[self.metric].most
        if not all(least <= value <= most for value in values):
            hint = "; write 0.76 for 76 %" if most == 1 else ""
            raise ValueError(f"{self.metric} lies between {least:g} and {most:g}{hint}")
        counts = [count for count, _ in self.points]
        if any(count < 1 for count in counts) or len(set(counts)) < len(counts):
            raise ValueError("a point is [labelled scans, value], each number of scans once")


@dataclass(frozen=True)
class Reporting:
    """What is asked of the results; no run depends on it."""

    reach: dict[Target, float] = field(default_factory=dict)
    """Target → the score, of its leading metric, for which the labelled scans that each arm needs
    are said. Not named: 0.9 times what the reference reaches with its most labels."""
    axis: Literal["learnt", "all"] = "learnt"
    """Of the curves: labelled scans that were learnt from (published), or all scans whose labels a
    number depends on, those that choose a model or tell what is healthy too."""

    def __post_init__(self) -> None:
        for target, score in self.reach.items():
            metric = leading(target)
            if not metric.least < score < metric.most:
                raise ValueError(
                    f"reach.{target} is {score:g}, expected a {metric.title} between "
                    f"{metric.least:g} and {metric.most:g}; write 0.7 for 70 %"
                )


Deviation = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Power:
    """What is expected of paired differences from the reference, for the power that `plan` says.

    Standard deviations, in the units of the leading metric, at one label count. What is not stated
    is estimated from a pilot, or from the study's own finished runs.
    """

    gain: float | None = None
    """The difference in the area under the label-efficiency curve whose power is asked for."""
    seeds: Deviation | None = None
    """Between seeds of one label count, each a mean over many patients."""
    patients: Deviation | None = None
    """Between patients, each a mean over many seeds; taken to be the same at all label counts."""
    residual: Deviation | None = None
    """Of a patient and a seed, beyond both."""
    pretrainings: Deviation | None = None
    """Between pre-trainings, at all label counts alike."""


@dataclass(frozen=True)
class Adaptive:
    """Seeds beyond `finetune.seeds`, for the comparisons whose answer is still open.

    Whenever all runs are finished the results are looked at. For each comparison of an arm with its
    reference that is open, cells of further seeds are added, those first that narrow the interval
    of the area most for their arithmetic. Intervals and p-values hold whenever it stops
    (`harness.looks`).
    """

    at_most: Annotated[int, Field(ge=3)]
    """Seeds of a cell, those of `finetune.seeds` among them. The further ones are the next whole
    numbers; a pre-training that has the seeds of `finetune.seeds` has them, too."""
    until: Literal["decided"] | None = None
    """decided: a comparison is over once the area's difference is shown."""
    half_width: PositiveFloat | None = None
    """Or once its interval is known to ± so much, in the units of the leading metric."""

    def __post_init__(self) -> None:
        if self.until is None and self.half_width is None:
            raise ValueError("say when it ends: until: decided, or half_width: 0.02, or both")


@dataclass(frozen=True)
class Splitting:
    """Who is tested; by default those whom the store says."""

    folds: Annotated[int, Field(ge=0)] = 0
    """Cross-validation: so many outer folds, in each of which other patients are tested, until all
    have been, once. The whole study, pre-trainings too, is run once a fold, and costs as many times
    as much; all is the smallest training part of a fold. 0: none."""

    def __post_init__(self) -> None:
        if self.folds == 1:
            raise ValueError("folds is 1, expected 0, none, or at least 2")


@dataclass(frozen=True)
class Study:
    """One study: a store of slices, a grid of runs, a folder that holds all that comes of it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    """In tables, in figures and in MLflow."""
    store: Path
    """The slice store that `fewscan prepare` made; relative to the study file."""
    folder: Path
    """Where runs, MLflow's data and reports go; relative to the study file."""
    finetune: Finetuning
    split: Splitting = Splitting()
    network: Architecture = Architecture()
    pretrain: dict[str, Pretraining] = field(default_factory=dict)
    """The pre-trainings, each by a name of yours, under which `finetune.inits` knows it."""
    evaluation: Evaluation = Evaluation()
    score: Scoring = Scoring()
    baselines: tuple[Baseline, ...] = ("unsupervised", "supervised")
    """unsupervised: a pre-trained network's anomaly score. supervised: scratch on all labels, our
    stand-in for the published one, which is another group's. supervised long: the same, trained
    `finetune.long` times as long. random features: a head on frozen random weights. And without a
    network: smoothed, the difference to the smoothed image; channel NAME, how bright it is."""
    resources: Resources = Resources()
    slurm: Settings | None = None
    """The jobs that `fewscan sweep --on slurm` submits."""
    published: tuple[Published, ...] = ()
    """Reference lines and points for the report."""
    report: Reporting = Reporting()
    power: Power = Power()
    adaptive: Adaptive | None = None
    """None: the seeds of `finetune.seeds`, no more."""

    def __post_init__(self) -> None:
        if self.adaptive is None:
            return
        first, most = len(self.finetune.seeds), self.adaptive.at_most
        if not 2 <= first < most:
            raise ValueError(
                f"adaptive begins with the {first} of finetune.seeds and has at_most {most}; it "
                "takes two to begin with, and more at most"
            )

    def with_all_seeds(self) -> "Study":
        """The same as a plain study of all seeds that `adaptive` may come to."""
        if self.adaptive is None:
            return self
        first, tune = self.finetune.seeds, self.finetune.tune
        taken = {*first, *([tune.on.seed] if tune else [])}
        taken |= {wish.tune.seed for wish in self.pretrain.values() if wish.tune}
        more = (seed for seed in count(max(first) + 1) if seed not in taken)
        every = (*first, *islice(more, self.adaptive.at_most - len(first)))
        pretrain = {
            name: replace(wish, seeds=every) if wish.seeds == first else wish
            for name, wish in self.pretrain.items()
        }
        grid = replace(self.finetune, seeds=every)
        return replace(self, finetune=grid, pretrain=pretrain, adaptive=None)

    @property
    def image_scores(self) -> tuple[ImageScore, ...]:
        """The baselines without a network."""
        return tuple(filter(None, map(ImageScore.named, self.baselines)))
