"""Runs as values: what survives JSON, what is hashed into an id, and what is not."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, make_dataclass, replace
from typing import Any, ClassVar

import pytest

from fewscan.experiments import spec as spec_module
from fewscan.experiments.image_scores import ImageScore
from fewscan.experiments.schemes import SCHEMES, Denoise
from fewscan.experiments.schemes.denoise import Noise
from fewscan.experiments.schemes.scheme import Scheme
from fewscan.experiments.spec import (
    Augmentation,
    Evaluation,
    Finetune,
    Imported,
    Network,
    Postprocess,
    Pretrain,
    RunSpec,
    Score,
    Training,
    from_json,
    run_id,
    scheme_from_json,
    scheme_to_json,
    to_json,
)
from fewscan.storage.errors import RunError

TRAINING = Training(iterations=10, validate_every=5)
FINETUNE = Finetune("data", Network(), "binary", 4, TRAINING, seed=0, init="abc")
PRETRAIN = Pretrain("data", Network(), TRAINING)
SPECS: list[RunSpec] = [
    FINETUNE,
    PRETRAIN,
    Pretrain("data", Network(depth=3), TRAINING, Denoise(Noise(8)), seed=1, init="abc"),
    Score("data", Evaluation(20), ("abc", "def")),
    Imported("0123"),
]
ODD: list[RunSpec] = [
    Pretrain("data", Network(8), TRAINING, Denoise(Noise(8))),
    Finetune("data", Network(8), "binary", 4, TRAINING, 0, Augmentation("none")),
    Score(
        "data",
        Evaluation(20, postprocess=Postprocess(fill_holes=True)),
        ("abc",),
        image=ImageScore("flair"),
    ),
]
"""None of whose nested settings is the default."""


def ids(value: Any) -> str:
    return type(value).__name__


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_a_spec_survives_json(spec: RunSpec) -> None:
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


CANONICAL = {
    '{"data":"data","init":"abc","kind":"finetune","label_count":4,"network":{},"protocol":3,'
    '"seed":0,"target":"binary","training":{"iterations":10,"validate_every":5}}': FINETUNE,
    '{"data":"data","kind":"pretrain","network":{},"protocol":3,'
    '"training":{"iterations":10,"validate_every":5}}': PRETRAIN,
    '{"data":"data","init":"abc","kind":"pretrain","network":{"depth":3},"protocol":3,'
    '"scheme":{"kind":"denoise","noise":{"resolution":8}},"seed":1,'
    '"training":{"iterations":10,"validate_every":5}}': SPECS[2],
    '{"data":"data","evaluation":{"min_component_mm3":20},"kind":"score",'
    '"parents":["abc","def"],"protocol":3}': SPECS[3],
    '{"kind":"imported","protocol":3,"sha256":"0123"}': SPECS[4],
}


@pytest.mark.parametrize("canonical", CANONICAL)
def test_the_id_is_the_hash_of_the_canonical_json(canonical: str) -> None:
    """Keys in order, no space, and no value that equals its default."""
    expected = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    assert run_id(CANONICAL[canonical]) == expected


def test_the_id_is_the_spec() -> None:
    """A stored id: if it changes, finished runs of all users are not found again."""
    assert run_id(FINETUNE) == run_id(replace(FINETUNE)) == "722ae5e73f15"
    others = [
        replace(FINETUNE, seed=1),
        replace(FINETUNE, init=None),
        replace(FINETUNE, data="other"),
        replace(FINETUNE, training=replace(TRAINING, lr=2e-4)),
        replace(FINETUNE, transfer="encoder"),
        replace(FINETUNE, augmentation=Augmentation("none")),
    ]
    assert len({run_id(spec) for spec in [FINETUNE, *others]}) == 7


def with_newer_field(value: Any) -> Any:
    """The same settings, of a class that has since got a field with a default."""
    newer = make_dataclass(
        type(value).__name__,
        [("newer", int, 7)],
        bases=(type(value),),
        frozen=True,
        kw_only=True,
    )
    return newer(**{field.name: getattr(value, field.name) for field in fields(value)})


def nested(value: Any) -> Iterator[tuple[str, ...]]:
    """Paths to the value itself and to all settings in it."""
    yield ()
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from ((field.name, *path) for path in nested(inner))


def changed(value: Any, path: tuple[str, ...], change: Any) -> Any:
    if not path:
        return change(value)
    inner = changed(getattr(value, path[0]), path[1:], change)
    return replace(value, **{path[0]: inner})


PLACES = [(spec, path) for spec in ODD for path in nested(spec)]
PLACES += [(SPECS[4], ())]


def place_id(value: Any) -> str:
    return type(value).__name__ if not isinstance(value, tuple) else ".".join(value)


def test_all_settings_are_tried_below() -> None:
    tried = {type(_at(spec, path)).__name__ for spec, path in PLACES}
    assert tried == {
        *("Pretrain", "Finetune", "Score", "Imported", "Network", "Training", "Evaluation"),
        *("Augmentation", "Denoise", "Noise", "ImageScore", "Postprocess"),
    }


def _at(value: Any, path: tuple[str, ...]) -> Any:
    return _at(getattr(value, path[0]), path[1:]) if path else value


@pytest.mark.parametrize(("spec", "path"), PLACES, ids=place_id)
def test_a_new_setting_leaves_the_ids_of_finished_runs(
    spec: RunSpec, path: tuple[str, ...]
) -> None:
    newer = changed(spec, path, with_newer_field)
    assert run_id(newer) == run_id(spec)
    other = changed(newer, path, lambda value: replace(value, newer=8))
    assert run_id(other) != run_id(spec)


IN_3D: dict[str, dict[str, Any]] = {
    "dims": {"dims": 3, "patch": (16, 16, 16)},
    "patch": {"dims": 3, "patch": (32, 16, 16)},
    "flat_levels": {"dims": 3, "patch": (16, 16, 16), "flat_levels": 1},
}
"""These go together."""


def changed_once(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each setting that has a default, changed alone: its name, and the whole."""
    others: dict[str, Any] = {
        "precision": "fp64",
        "policy": "none",
        "optimiser": "sgd",
        "transfer": "encoder",
        "split": "validation",
        "init": "other",
        "lr_half_period": 7,
        "validation_slices": 7,
        "smoothing_mm": 7.0,
        "pitch_mm": 7.0,
        "folds": 2,
        "lesion_iou": 0.7,
        "min_lesion_mm3": (7.0,),
    }
    beside = {"folds": {"selection": "within"}}
    """What a setting cannot be without."""
    for field in fields(value):
        inner = getattr(value, field.name)
        if isinstance(value, Network) and field.name in IN_3D:
            yield field.name, replace(value, **IN_3D[field.name])
        elif is_dataclass(inner):
            for name, made in changed_once(inner):
                yield f"{field.name}.{name}", replace(value, **{field.name: made})
        elif isinstance(inner, int | float) or field.name in others:
            new = others.get(field.name, inner + 1 if isinstance(inner, int | float) else None)
            yield field.name, replace(value, **{field.name: new}, **beside.get(field.name, {}))
        else:
            new = (*inner, "x") if isinstance(inner, tuple) else "multiclass"
            yield field.name, replace(value, **{field.name: new})


@pytest.mark.parametrize("spec", [FINETUNE, PRETRAIN, SPECS[3]], ids=ids)
def test_every_setting_changes_the_id(spec: RunSpec) -> None:
    found = dict(changed_once(spec))
    assert len(found) >= len(fields(spec))
    seen = {run_id(made): name for name, made in found.items()}
    assert len(seen) == len(found)
    assert run_id(spec) not in seen


@dataclass(frozen=True)
class Other(Scheme):
    """The settings of denoising under another kind."""

    kind: ClassVar[str] = "other"
    noise: Noise = Noise()


@pytest.mark.parametrize("noise", [Noise(), Noise(8)], ids=["default", "changed"])
def test_schemes_of_equal_settings_have_ids_of_their_own(noise: Noise) -> None:
    one, two = (replace(PRETRAIN, scheme=scheme) for scheme in (Denoise(noise), Other(noise)))
    assert run_id(one) != run_id(two)


@pytest.mark.parametrize("kind", SCHEMES)
def test_each_scheme_survives_json(kind: str) -> None:
    spec = replace(PRETRAIN, scheme=SCHEMES[kind]())
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec
    assert (run_id(spec) == run_id(PRETRAIN)) == (kind == "denoise")


def test_another_scheme_survives_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "other", Other)
    spec = replace(PRETRAIN, scheme=Other(Noise(8)))
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


@pytest.mark.parametrize("spec", ODD, ids=ids)
def test_a_setting_that_is_newer_than_the_file_has_its_default(spec: RunSpec) -> None:
    """Whatever equals its default may be missing, at any depth."""
    value = to_json(spec)
    for path, default in defaults_in(spec):
        *parents, last = path
        inner = value
        for name in parents:
            inner = inner[name]
        assert inner.pop(last) == default
    assert from_json(json.loads(json.dumps(value))) == spec


def defaults_in(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from (((field.name, *path), found) for path, found in defaults_in(inner))
        elif inner == field.default:
            yield (field.name,), inner


@pytest.mark.parametrize(("spec", "path"), PLACES, ids=place_id)
def test_an_unknown_setting_is_refused_by_name(spec: RunSpec, path: tuple[str, ...]) -> None:
    value = to_json(spec)
    inner = value
    for name in path:
        inner = inner[name]
    inner["shininess"] = 3
    with pytest.raises(RunError, match=r"(?s)has shininess, which.*does not know.*remedy"):
        from_json(value)


def test_an_unknown_scheme_is_refused_by_name() -> None:
    value = to_json(PRETRAIN) | {"scheme": {"kind": "alchemy"}}
    with pytest.raises(RunError, match=r"(?s)alchemy.*denoise"):
        from_json(value)
    with pytest.raises(RunError, match="alchemy"):
        scheme_from_json({"kind": "alchemy"})


def test_another_protocol_or_kind_is_refused() -> None:
    for protocol in (1, 99):
        with pytest.raises(RunError, match=rf"(?s)protocol {protocol}.*protocol 3.*remedy"):
            from_json(to_json(FINETUNE) | {"protocol": protocol})
    with pytest.raises(RunError, match=r"(?s)kind 'segment'.*finetune"):
        from_json(to_json(FINETUNE) | {"kind": "segment"})


def test_folders_of_older_protocols_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2 on, whatever the version of today."""
    monkeypatch.setattr(spec_module, "PROTOCOL", 5)
    assert from_json(to_json(FINETUNE) | {"protocol": 2}) == FINETUNE


def test_scores_that_counted_components_in_voxels_are_read() -> None:
    """Of protocol 2: as many voxels of the published grid."""
    score = to_json(Score("data", Evaluation(), ("abc",))) | {"protocol": 2}
    for voxels in (0, 20):
        old = score | {"evaluation": {"min_component_voxels": voxels, "nsd_tolerance_mm": 1.0}}
        expected = Evaluation(min_component_mm3=voxels * 1.875**2, nsd_tolerance_mm=1.0)
        assert from_json(old) == Score("data", expected, ("abc",))


SCHEME_DEFAULTS: dict[str, dict[str, Any]] = {
    "ddep": {"std": 0.22},
    "synthetic": {
        "task": "fpi",
        "alpha": (0.05, 0.95),
        "half_width": (0.05, 0.2),
        "tissue_std": 0.2,
    },
    "contrast": {"objective": "infonce", "reach": 0.1, "temperature": 0.1},
    "denoise": {"noise": {"resolution": 16, "std": 0.2, "pitch_mm": None}},
    "autoencode": {"latent_channels": 4, "skips": False},
    "inpaint": {"fill": "swap", "boxes": 5, "box_mm": 80.0, "patch_mm": 15.0, "share": 0.25},
    "mae": {"ratio": 0.6, "block_mm": 15.0, "sparse": False, "skips": False},
    "genesis": {"window_mm": 24.0, "box_mm": 80.0},
}


def test_a_default_is_part_of_the_protocol() -> None:
    """Stored: a default is not hashed, so changing one changes what finished runs' ids mean."""
    assert asdict(Training(1, 1)) == {
        "iterations": 1,
        "validate_every": 1,
        "batch_size": 16,
        "lr": 1e-4,
        "lr_half_period": None,
        "lr_step_every": 1,
        "optimiser": "adam",
        "weight_decay": 1e-5,
        "decay_norms": True,
        "clip_norm": 0.5,
        "validation_slices": None,
        "precision": "auto",
    }
    assert asdict(Network()) == {
        "width": 64,
        "depth": 4,
        "dims": 2,
        "patch": None,
        "flat_levels": 0,
    }
    assert asdict(Evaluation()) == {
        "min_component_mm3": 0,
        "nsd_tolerance_mm": 2.0,
        "lesion_wise": False,
        "lesion_reach_mm": 3.0,
        "smallest_lesion_mm3": 50.0,
        "lesion_iou": 0.1,
        "postprocess": {"largest_component": False, "min_lesion_mm3": (), "fill_holes": False},
    }
    assert asdict(Augmentation()) == {"policy": "nnunet"}
    assert {kind: scheme_to_json(scheme()) for kind, scheme in SCHEMES.items()} == {
        kind: {"kind": kind, **settings} for kind, settings in SCHEME_DEFAULTS.items()
    }
    assert (PRETRAIN.scheme, PRETRAIN.seed, PRETRAIN.init) == (Denoise(), 0, None)
    assert (FINETUNE.augmentation, FINETUNE.transfer) == (Augmentation(), "all")
    assert (FINETUNE.selection, FINETUNE.schedule, FINETUNE.probe_level) == (
        "validation",
        "plain",
        0,
    )
    for spec in (PRETRAIN, FINETUNE):
        assert (spec.rate_from, spec.is_trial) == ((), False)
    assert Score("data", Evaluation(), ()).split == "test"
