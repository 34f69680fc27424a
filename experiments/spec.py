"""What a run is: frozen values whose canonical JSON hashes to the run's id.

Everything that may change a run's numbers stands in its spec; nothing else does (paths, devices and
names are elsewhere). Same spec, same id, same folder. Random numbers come from a cell's seed and a
purpose, never from the id: arms of a cell share them, and so do runs that differ in a setting which
does not touch them.

Values that equal their default are not hashed, so a new setting with a default leaves the ids of
finished runs alone. A default may therefore never be changed, unless `PROTOCOL` is raised.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, get_type_hints

from fewscan.experiments.image_scores import ImageScore
from fewscan.experiments.schemes import Denoise, Scheme
from fewscan.experiments.schemes.registry import RESERVED, Package, package_of, scheme_class
from fewscan.experiments.settings import (
    OWN_RATES,
    Schedule,
    Selection,
    Transfer,
    require_at_least,
)
from fewscan.storage.errors import RunError
from fewscan.storage.labels import PretrainSlices, Region

PROTOCOL = 3
"""Results of different protocol versions may not be compared; raised when the numbers change. From
2 on, run folders of every version are read."""
OLDEST_PROTOCOL = 2

Target = Literal["binary", "multiclass"]
Precision = Literal["auto", "bf16", "fp32", "fp64"]
ScoredSplit = Literal["validation", "test"]
Residency = Literal["auto", "device", "shared", "stream"]
"""Where slices are kept while a run needs them: in no spec, but named where no torch is loaded."""


Patch = tuple[int, int, int]
"""Slices, rows and columns."""
Dims = Literal[2, 3]

MOST_LEVELS, MOST_CHANNELS = 10, 8192
"""Of a network that some machine has room for; the published one has 4 and 512."""


@dataclass(frozen=True)
class Network:
    """The U-Net that all arms share."""

    width: int = 64
    """Channels of the first level; each level below doubles them."""
    depth: int = 4
    """Levels, one more than there are poolings."""
    dims: Dims = 2
    """2: it sees slices. 3: it sees patches of volumes."""
    patch: Patch | None = None
    """In 3D, slices, rows and columns of a patch; it lies around a kept slice."""
    flat_levels: int = 0
    """In 3D, so many of the finest levels have kernels and poolings of depth 1: those in which
    slices are at least twice as far apart as pixels (nnU-Net's rule)."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "width")
        require_at_least(self, 2, "depth")
        if self.depth > MOST_LEVELS or self.width << (self.depth - 1) > MOST_CHANNELS:
            raise ValueError(
                f"width {self.width} and depth {self.depth} make more than {MOST_LEVELS} levels or "
                f"{MOST_CHANNELS} channels in the last"
            )
        if self.dims not in (2, 3) or (self.patch is None) != (self.dims == 2):
            raise ValueError(
                f"dims {self.dims} with patch {self.patch}, expected dims 2 without a patch, or 3 "
                "with slices, rows and columns of one"
            )
        if not 0 <= self.flat_levels <= (self.depth if self.dims == 3 else 0):
            raise ValueError(
                f"flat_levels is {self.flat_levels}, expected 0 in 2D, and at most depth in 3D"
            )
        if self.patch is not None:
            require_patch(self.patch, self.depth, self.flat_levels)

    @property
    def slices_a_patch(self) -> int:
        """That an item has: 1 in 2D."""
        return 1 if self.patch is None else self.patch[0]


def patch_units(depth: int, flat_levels: int) -> tuple[Patch, Patch]:
    """Along each axis of a patch, what its length must be a multiple of, and the least length."""
    plane = 2 ** (depth - 1)
    through = 2 ** max(0, depth - 1 - flat_levels)
    return (through, plane, plane), (
        through if flat_levels == depth else 2 * through,
        2 * plane,
        2 * plane,
    )


def require_patch(patch: Patch, depth: int, flat_levels: int) -> None:
    """Raise ValueError that names the first axis along which a patch cannot be halved."""
    units, least = patch_units(depth, flat_levels)
    parts = zip(("slices", "rows", "columns"), patch, units, least, strict=True)
    for name, length, unit, at_least in parts:
        if length % unit or length < at_least:
            raise ValueError(
                f"a patch of {length} {name} in a network of depth {depth} with {flat_levels} flat "
                f"levels, expected a multiple of {unit}, at least {at_least}: reflected borders "
                "need two pixels, also in the coarsest level"
            )


@dataclass(frozen=True)
class Training:
    """How long and how fast a network learns, with a cosine learning rate."""

    iterations: int
    """Steps of the optimiser."""
    validate_every: int
    """Steps between two validations; each may choose the model that is kept."""
    batch_size: int = 16
    """Slices a step, over all devices together; in 3D patches."""
    lr: float = 1e-4
    """The learning rate at its highest."""
    lr_half_period: int | None = None
    """Steps from the highest rate to 0 (and, going on, back up). None: one descent, to the end."""
    lr_step_every: int = 1
    """Steps between two changes of the rate."""
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    """adam: with amsgrad, as published. adamw: the same with decoupled decay. sgd: with Nesterov
    momentum 0.99, as nnU-Net."""
    weight_decay: float = 1e-5
    """L2 penalty; adam and sgd add it to the gradient."""
    decay_norms: bool = True
    """Whether it also pulls at gains, shifts and biases, as published: the gains of deep levels,
    whose gradients are smaller than the pull, then go to 0."""
    clip_norm: float = 0.5
    """The gradient's norm is cut to this."""
    validation_slices: int | None = None
    """Validate on this many slices, evenly spaced. None: on all. In 3D on this many patches; None:
    on as many as lie behind each other in the scans."""
    precision: Precision = "auto"
    """auto: bf16 autocast where the device computes it natively, else fp32."""

    def __post_init__(self) -> None:
        counts = ("iterations", "validate_every", "batch_size", "lr_step_every")
        require_at_least(self, 1, *counts, "lr_half_period", "validation_slices")
        require_at_least(self, 0, "lr", "weight_decay", "clip_norm")

    def stretched(self, factor: float) -> "Training":
        """The same with so many times the iterations, and as many validations and swings."""
        half = self.lr_half_period
        return replace(
            self,
            iterations=max(1, round(self.iterations * factor)),
            validate_every=max(1, round(self.validate_every * factor)),
            lr_half_period=None if half is None else max(1, round(half * factor)),
        )


@dataclass(frozen=True)
class Postprocess:
    """Which rules may change a mask after it was predicted; by default none. Each is kept only
    where it raises Dice on the scans that choose the threshold: docs/lesions.md."""

    largest_component: bool = False
    """Whether to try the largest connected component alone: of all classes together, of each."""
    min_lesion_mm3: tuple[float, ...] = ()
    """Candidates for the volume of the smallest lesion that is kept; the others are removed."""
    fill_holes: bool = False
    """Whether to try filling the holes of each class."""

    def __post_init__(self) -> None:
        sizes = self.min_lesion_mm3
        if not all(0 < mm3 < math.inf for mm3 in sizes) or len(set(sizes)) < len(sizes):
            raise ValueError(
                f"min_lesion_mm3 is {list(sizes)}, expected volumes above 0, each once"
            )

    @property
    def is_asked_for(self) -> bool:
        """Whether there is any rule to try."""
        return self != Postprocess()


@dataclass(frozen=True)
class Evaluation:
    """How the test split is scored."""

    min_component_mm3: float = 0.0
    """3D components of at most this filled size are removed from the anomaly mask (0: keep all).
    Published are 20 voxels of 1 mm × 1.875² mm: 70.3125 mm³."""
    nsd_tolerance_mm: float | None = 2.0
    """NSD: surfaces at most this far apart agree. 2 mm is a pixel of the published slices (1.9 mm);
    what is finer is the grid's doing. None: neither NSD nor HD95, and no need for MONAI."""
    lesion_wise: bool = False
    """Whether single lesions are scored, too: docs/lesions.md."""
    lesion_reach_mm: float = 3.0
    """True lesions whose surroundings of this width touch are one lesion, and what is predicted in
    there belongs to it. BraTS 2023: 3 mm for gliomas, 1 mm for metastases and meningiomas."""
    smallest_lesion_mm3: float = 50.0
    """True lesions of at most this size are not counted, found or not. BraTS 2023: 50 mm³, for
    metastases 2 mm³."""
    lesion_iou: float = 0.1
    """A lesion is found where its intersection over union with what is predicted of it is at least
    this; 0.1 is nnDetection's (Baumgartner et al., MICCAI 2021)."""
    postprocess: Postprocess = Postprocess()
    """What may change a mask after it was predicted; true is all rules, false none."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "min_component_mm3", "nsd_tolerance_mm")
        require_at_least(self, 0, "lesion_reach_mm", "smallest_lesion_mm3", "lesion_iou")
        if not 0 < self.lesion_iou <= 1:
            raise ValueError(f"lesion_iou is {self.lesion_iou}, expected more than 0, at most 1")

    @property
    def removes_specks(self) -> bool:
        """Whether small components are removed."""
        return self.min_component_mm3 > 0

    @property
    def measures_surfaces(self) -> bool:
        """Whether NSD and HD95 are computed; 0 mm is a tolerance like another."""
        return self.nsd_tolerance_mm is not None

    @property
    def measures_lesion_surfaces(self) -> bool:
        """Whether the surfaces of single lesions are compared."""
        return self.lesion_wise and self.measures_surfaces

    @property
    def postprocesses(self) -> bool:
        """Whether there is a mask before and after post-processing."""
        return self.postprocess.is_asked_for


@dataclass(frozen=True)
class Augmentation:
    """Which augmentation the fine-tuning sees."""

    policy: Literal["nnunet", "none"] = "nnunet"
    """nnunet: the nine transforms of nnU-Net's training; none: the slices as they are."""


@dataclass(frozen=True)
class Pretrain:
    """Learn from slices of training and unlabelled scans, not what is to be segmented."""

    kind: ClassVar[str] = "pretrain"
    data: str
    """Fingerprint of the slice store; of a cross-validation with the fold that is tested."""
    network: Network
    training: Training
    scheme: Scheme = Denoise()
    """What is done to a slice, and what is asked of the network."""
    seed: int = 0
    """Of all its random numbers."""
    init: str | None = None
    """Id of the run whose weights it starts from; None: random ones."""
    slices: PretrainSlices = "healthy"
    """Which slices it learns from."""
    rate_from: tuple[str, ...] = ()
    """Ids of its trials: its learning rate is that of the one with the lowest validation loss."""
    is_trial: bool = False
    """Whether a loss that is not finite is its result, and no failure: it is not to be chosen."""

    @property
    def stream(self) -> tuple[str | int, ...]:
        """What all its random numbers are for."""
        return (self.kind, self.seed)

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the runs that it needs."""
        return _parents(self)


@dataclass(frozen=True)
class Finetune:
    """Learn to segment from a few labelled scans."""

    kind: ClassVar[str] = "finetune"
    data: str
    """Fingerprint of the slice store; of a cross-validation with the fold that is tested."""
    network: Network
    target: Target
    """binary: lesion or not. multiclass: each class of the store."""
    label_count: int
    """Labelled scans: the first of the seed's permutation of the training split."""
    training: Training
    seed: int
    """Chooses the labelled scans, and all random numbers: the same for all arms of the cell."""
    augmentation: Augmentation = Augmentation()
    init: str | None = None
    """Id of the run whose weights it starts from; None: random ones."""
    transfer: Transfer = "all"
    """Which of them it takes over."""
    selection: Selection = "validation"
    """Which labels choose the model that is kept, and the threshold of its mask."""
    rate_from: tuple[str, ...] = ()
    """Ids of its trials: its learning rate is that of the one with the lowest validation loss."""
    is_trial: bool = False
    """Whether a loss that is not finite is its result, and no failure: it is not to be chosen."""
    schedule: Schedule = "plain"
    """What of the network learns, and when."""
    probe_level: int = 0
    """Of a probe, which features its head sees: those of the last map (0), or of the encoder's map
    at this level, from 1, the finest, to the depth of the network."""
    lr_scale: float = 1.0
    """The rate of what is transferred is so many times that of what is new."""
    oversample_foreground: float = 0.0
    """The share of each batch that is drawn from slices with a lesion; the rest is from all."""
    member: int = 0
    """Which network of an ensemble: each learns from the same labelled scans, with another order,
    augmentation and initial head. 0 is the network that a cell has without an ensemble."""
    folds: int = 0
    """Parts of the labelled scans, of which it learns from all but the one of its number, `member`,
    and that one chooses its model. 0: they are not divided so."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "lr_scale", "oversample_foreground", "member", "folds")
        if self.lr_scale == 0:
            raise ValueError("lr_scale is 0, expected more; what is never to learn is frozen")
        if self.oversample_foreground > 1:
            raise ValueError(f"oversample_foreground is {self.oversample_foreground}, at most 1")
        if self.init is None and self.lr_scale != 1:
            raise ValueError(
                f"lr_scale is {self.lr_scale} of random weights: nothing is transferred"
            )
        if self.schedule in OWN_RATES and self.training.lr_half_period is not None:
            raise ValueError(
                f"lr_half_period is {self.training.lr_half_period} with schedule {self.schedule}, "
                "whose rate follows a curve of its own"
            )
        if self.folds and not (self.member < self.folds > 1 and self.selection == "within"):
            raise ValueError(
                f"member {self.member} of {self.folds} folds with selection {self.selection}, "
                "expected at least 2 folds, a member below their number, and within"
            )

    @property
    def stream(self) -> tuple[str | int, ...]:
        """What its random numbers are for, all but those that choose the labelled scans: arms of a
        cell have them in common, member by member."""
        own = (self.kind, self.seed)
        return (*own, "member", self.member) if self.member else own

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the runs that it needs."""
        return _parents(self)


def _parents(spec: Pretrain | Finetune) -> tuple[str, ...]:
    return (*(() if spec.init is None else (spec.init,)), *spec.rate_from)


@dataclass(frozen=True)
class Score:
    """What trained networks are worth on a split: of fine-tunings the mean of their probabilities,
    of a pre-training its own anomaly score ("step 0"), which no label has touched. Or what the
    images are worth without any network."""

    kind: ClassVar[str] = "score"
    data: str
    """Fingerprint of the slice store; of a cross-validation with the fold that is tested."""
    evaluation: Evaluation
    parents: tuple[str, ...]
    """Ids of the runs whose networks are scored together."""
    split: ScoredSplit = "test"
    """What is scored. The threshold is chosen as its parents were: see `Selection`."""
    metrics: tuple[str, ...] = ()
    """Keys of the catalogue that were there when it was planned: with one more it is another
    score, so that a new metric repeats scores, and no training."""
    regions: tuple[Region, ...] = ()
    """What is scored beside the classes."""
    image: ImageScore = ImageScore()
    """What of the images is scored, without any parent; empty where networks are."""
    mirror: bool = False
    """Whether each network is asked about the slice and its three mirror images, and its maps are
    averaged."""


@dataclass(frozen=True)
class Imported:
    """Weights that were trained elsewhere."""

    kind: ClassVar[str] = "imported"
    sha256: str
    """Of the tensors, so that the same weights in another file are the same run."""
    scheme: Scheme | None = Denoise()
    """How they were pre-trained: the public code denoises. None: they segment."""
    parents: ClassVar[tuple[str, ...]] = ()


RunSpec = Pretrain | Finetune | Score | Imported
_KINDS: dict[str, type[RunSpec]] = {c.kind: c for c in (Pretrain, Finetune, Score, Imported)}


def to_json(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain values, with its kind and the protocol version."""
    value = {"protocol": PROTOCOL, "kind": spec.kind, **asdict(spec)}
    if isinstance(spec, Pretrain | Imported) and spec.scheme is not None:
        value["scheme"] = scheme_to_json(spec.scheme)
    return value


def from_json(value: dict[str, Any]) -> RunSpec:
    """The inverse of `to_json`; a setting that is newer than the file has its default.

    Raises `RunError` for a protocol version, a kind or a setting that is not known here.
    """
    known = OLDEST_PROTOCOL <= value["protocol"] <= PROTOCOL
    if not known or value["kind"] not in _KINDS:
        raise RunError(
            f"the run follows protocol {value['protocol']} and is of kind {value['kind']!r}",
            expected=f"protocol {PROTOCOL}, of this version of fewscan, and one of "
            + ", ".join(_KINDS),
            remedy="use the version of fewscan that made it, or sweep into a new folder",
        )
    plain = {k: v for k, v in value.items() if k not in ("protocol", "kind")}
    if "evaluation" in plain:
        plain["evaluation"] = _in_millimetres(plain["evaluation"])
    spec: RunSpec = _build(_KINDS[value["kind"]], plain)
    return spec


def _in_millimetres(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Of protocol 2, which counted components in voxels: so many of the published grid."""
    found = dict(evaluation)
    voxels = found.pop("min_component_voxels", None)
    return found if voxels is None else {**found, "min_component_mm3": voxels * 1.875**2}


def scheme_from_json(value: dict[str, Any]) -> Scheme:
    """A scheme from its kind and its settings. Raises `RunError` if they are not known here."""
    scheme: Scheme = _build(Scheme, value)
    return scheme


def scheme_to_json(scheme: Scheme) -> dict[str, Any]:
    """The scheme's kind, the package it comes from if it is not ours, and its settings, as plain
    values."""
    settings: Any = scheme
    return {**_identity(scheme), **asdict(settings)}


def _identity(scheme: Scheme) -> dict[str, Any]:
    package = package_of(scheme)
    return {"kind": scheme.kind, **({} if package is None else {"package": asdict(package)})}


def _build(cls: Any, value: Any) -> Any:
    if cls in (Scheme, Scheme | None) and value is not None:
        kind, package = value["kind"], value.get("package")
        cls = scheme_class(kind, None if package is None else Package(**package))
        value = {k: v for k, v in value.items() if k not in RESERVED}
    if not is_dataclass(cls):
        return tuple(_build(None, it) for it in value) if isinstance(value, list) else value
    make: Any = cls
    types = get_type_hints(cls)
    _require_known(value, types, make.__name__)
    return make(**{name: _build(types[name], inner) for name, inner in value.items()})


def _require_known(names: Any, known: Any, what: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise RunError(
            f"{what} has {', '.join(unknown)}, which this version of fewscan does not know",
            expected=", ".join(known),
            remedy="use the version of fewscan, or install the package, that made the run",
        )


def run_id(spec: RunSpec) -> str:
    """12 hexadecimal digits of the SHA-256 of the spec's canonical JSON."""
    value = {"protocol": PROTOCOL, "kind": spec.kind, **_without_defaults(spec)}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _without_defaults(value: Any) -> dict[str, Any]:
    """The fields that differ from their default; of a scheme, what it is before them."""
    found = dict(_different(value))
    return {**_identity(value), **found} if isinstance(value, Scheme) else found


def _different(value: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(value):
        inner = getattr(value, field.name)
        if inner != _default(field):
            yield field.name, _without_defaults(inner) if is_dataclass(inner) else inner


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default
