"""What a run is: frozen values whose canonical JSON hashes to the run's id.

Everything that may change a run's numbers stands in its spec; nothing else does (paths, devices and
names are elsewhere). Same spec, same id, same folder; all seeds come from the id and a purpose.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, get_type_hints

from fewscan.storage.errors import RunError

PROTOCOL = 1
"""Results of different protocol versions may not be compared; raised when the numbers change."""

Target = Literal["binary", "multiclass"]
Transfer = Literal["all", "encoder"]
"""Which weights a fine-tuning takes over from a pre-training; the head is always new."""
Precision = Literal["auto", "bf16", "fp32", "fp64"]
Residency = Literal["auto", "device", "shared", "stream"]
"""Where slices are kept while a run needs them: in no spec, but named where no torch is loaded."""


def _require_at_least(spec: Any, minimum: float, *names: str) -> None:
    """Raise ValueError for the first of the fields that is set and smaller than `minimum`."""
    for name in names:
        value = getattr(spec, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name} is {value}, expected at least {minimum}")


@dataclass(frozen=True)
class Network:
    """The U-Net that all arms share."""

    width: int = 64
    """Channels of the first level; each level below doubles them."""
    depth: int = 4
    """Levels, one more than there are poolings."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "width")
        _require_at_least(self, 2, "depth")


@dataclass(frozen=True)
class Noise:
    """The coarse noise that the auto-encoder removes."""

    resolution: int = 16
    """Side of the grid that the noise is drawn on, before it is interpolated to the slice."""
    std: float = 0.2
    """Standard deviation on that grid, in units of the images' 99th percentile."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "resolution")
        _require_at_least(self, 0, "std")


@dataclass(frozen=True)
class Training:
    """How long and how fast a network learns: Adam with amsgrad and a cosine learning rate."""

    iterations: int
    """Steps of the optimiser."""
    validate_every: int
    """Steps between two validations; each may choose the model that is kept."""
    batch_size: int = 16
    """Slices a step, over all devices together."""
    lr: float = 1e-4
    """The learning rate at its highest."""
    lr_half_period: int | None = None
    """Steps from the highest rate to 0 (and, going on, back up). None: one descent, to the end."""
    lr_step_every: int = 1
    """Steps between two changes of the rate."""
    weight_decay: float = 1e-5
    """L2 penalty added to the gradient, as Adam (not AdamW) does."""
    clip_norm: float = 0.5
    """The gradient's norm is cut to this."""
    validation_slices: int | None = None
    """Validate on this many slices, evenly spaced. None: on all."""
    precision: Precision = "auto"
    """auto: bf16 autocast where the device computes it natively, else fp32."""

    def __post_init__(self) -> None:
        counts = ("iterations", "validate_every", "batch_size", "lr_step_every")
        _require_at_least(self, 1, *counts, "lr_half_period", "validation_slices")
        _require_at_least(self, 0, "lr", "weight_decay", "clip_norm")


@dataclass(frozen=True)
class Evaluation:
    """How the test split is scored."""

    min_component_voxels: int = 0
    """3D components of at most this filled size are removed from the anomaly mask (0: keep all)."""
    nsd_tolerance_mm: float | None = 2.0
    """NSD: surfaces at most this far apart agree. 2 mm is a pixel of the published slices (1.9 mm);
    what is finer is the grid's doing. None: neither NSD nor HD95, and no need for MONAI."""

    def __post_init__(self) -> None:
        _require_at_least(self, 0, "min_component_voxels", "nsd_tolerance_mm")


@dataclass(frozen=True)
class Augmentation:
    """Which augmentation the fine-tuning sees."""

    policy: Literal["nnunet", "none"] = "nnunet"
    """nnunet: the nine transforms of nnU-Net's 2D training, see `experiments.augment`."""


@dataclass(frozen=True)
class Denoise:
    """Pre-train a denoising auto-encoder on the healthy slices of the training split."""

    kind: ClassVar[str] = "denoise"
    data: str
    """Fingerprint of the slice store."""
    network: Network
    noise: Noise
    training: Training
    seed: int = 0
    """Tells repetitions apart; the random numbers come from the run's id."""
    init: str | None = None
    """Id of the run whose weights it starts from."""


@dataclass(frozen=True)
class Segment:
    """Learn to segment from a few labelled scans, then score the test split once."""

    kind: ClassVar[str] = "segment"
    data: str
    """Fingerprint of the slice store."""
    network: Network
    target: Target
    """binary: lesion or not. multiclass: each class of the store."""
    label_count: int
    """Labelled scans: the first of the seed's permutation of the training split."""
    training: Training
    augmentation: Augmentation
    evaluation: Evaluation
    seed: int
    """Chooses the labelled scans (the same for all arms) and tells repetitions apart."""
    init: str | None = None
    """Id of the run whose weights it starts from; None: from scratch."""


@dataclass(frozen=True)
class Anomaly:
    """Score the test split with a pre-trained network as it is ("step 0"): no label is used."""

    kind: ClassVar[str] = "anomaly"
    data: str
    """Fingerprint of the slice store."""
    evaluation: Evaluation
    init: str
    """Id of the pre-training."""


@dataclass(frozen=True)
class Imported:
    """Weights that were trained elsewhere."""

    kind: ClassVar[str] = "imported"
    sha256: str
    """Of the tensors, so that the same weights in another file are the same run."""
    init: None = None
    """It starts from nothing that we know."""


RunSpec = Denoise | Segment | Anomaly | Imported
_KINDS: dict[str, type[RunSpec]] = {c.kind: c for c in (Denoise, Segment, Anomaly, Imported)}


def to_json(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain values, with its kind and the protocol version."""
    return {"protocol": PROTOCOL, "kind": spec.kind, **asdict(spec)}


def from_json(value: dict[str, Any]) -> RunSpec:
    """The inverse of `to_json`. Raises `RunError` for another protocol version."""
    if value["protocol"] != PROTOCOL:
        raise RunError(
            f"the run follows protocol {value['protocol']}",
            expected=f"protocol {PROTOCOL}, of this version of fewscan",
            remedy="use the version of fewscan that made it, or sweep into a new folder",
        )
    plain = {k: v for k, v in value.items() if k not in ("protocol", "kind")}
    spec: RunSpec = _build(_KINDS[value["kind"]], plain)
    return spec


def _build(cls: type[Any], value: dict[str, Any]) -> Any:
    types = get_type_hints(cls)
    return cls(
        **{
            f.name: _build(types[f.name], value[f.name])
            if is_dataclass(types[f.name])
            else value[f.name]
            for f in fields(cls)
        }
    )


def run_id(spec: RunSpec) -> str:
    """12 hexadecimal digits of the SHA-256 of the spec's canonical JSON."""
    # The text of `to_json`, without its deep copies: a study may have ten thousand specs.
    value = {"protocol": PROTOCOL, "kind": spec.kind, **vars(spec)}
    canonical = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=vars
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def seed_for(root: str | int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one purpose of the run `root` (its id) at one step."""
    digest = hashlib.sha256(f"{root}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
