"""The study file: YAML becomes one frozen `Study`, validated before anything runs.

Every mistake in the file is named at once, each with its place, what was expected and, for an
unknown key, the nearest known one.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.registry import scheme_class
from fewscan.experiments.spec import Postprocess
from fewscan.harness.study import Arms, Epochs, Study
from fewscan.storage.errors import StudyError

ALL_RULES = Postprocess(
    largest_component=True, min_lesion_mm3=(10.0, 30.0, 100.0, 300.0, 1000.0), fill_holes=True
)
"""What `evaluation.postprocess: true` tries: volumes from ten voxels of 1 mm to a ball of 12 mm, in
half decades."""

_STUDY: TypeAdapter[Study] = TypeAdapter(Study)
_RENAMED = {
    "min_component_voxels": "it is min_component_mm3 now, a volume: 20 voxels of the published "
    "grid are 70.3125"
}
"""Keys of earlier versions → what to write instead."""


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply `--set` overrides such as "finetune.seeds=[0,1]".

    Paths in the file are relative to it, those of overrides to where the command is given. Raises
    `StudyError` that lists every mistake. Whether store, counts and parents exist is for
    `harness.plan` to say, which has them at hand.
    """
    document = _read_yaml(path)
    _from_the_file(document, path)
    for override in overrides:
        _override(document, override)
    _require_plain(document, path)
    return parse_study(document, where=str(path))


def parse_study(document: dict[str, Any], where: str) -> Study:
    """Validate plain values; paths in the study become absolute."""
    document = _written_out(document)
    try:
        study = _STUDY.validate_python(document)
    except ValidationError as error:
        mistakes = "\n".join(f"    {_explain(it, document)}" for it in error.errors())
        raise StudyError(
            f"the study file has mistakes:\n{mistakes}",
            where=where,
            expected="keys and values as `fewscan keys` explains them (docs/study.md)",
            remedy="fix each line above; `fewscan plan STUDY` checks the file and runs nothing, "
            "`fewscan init STORE --from paper` writes an example",
        ) from None
    pretrain = {
        name: replace(it, store=it.store and it.store.absolute())
        for name, it in study.pretrain.items()
    }
    store, folder = study.store.absolute(), study.folder.absolute()
    return replace(study, store=store, folder=folder, pretrain=pretrain)


def _written_out(document: dict[str, Any]) -> dict[str, Any]:
    """Without short forms: `pretrain: {NAME: …}` with `noise`, of the published scheme, or one
    `seed`; `finetune.inits` with one grid and no list; `evaluation.postprocess: true`, for all its
    rules."""
    finetune, evaluation = document.get("finetune"), document.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("postprocess"), bool):
        rules = asdict(ALL_RULES if evaluation["postprocess"] else Postprocess())
        document = {**document, "evaluation": {**evaluation, "postprocess": rules}}
    if isinstance(finetune, dict) and isinstance(finetune.get("inits"), dict):
        document = {**document, "finetune": {**finetune, "inits": [finetune["inits"]]}}
    wishes = document.get("pretrain")
    if not isinstance(wishes, dict):
        return document
    long = {name: _pretraining_written_out(wish) for name, wish in wishes.items()}
    return {**document, "pretrain": long}


def _pretraining_written_out(wish: Any) -> Any:
    if not isinstance(wish, dict):
        return wish
    wish = dict(wish)
    if "noise" in wish and "scheme" not in wish:
        wish["scheme"] = {"kind": Denoise.kind, "noise": wish.pop("noise")}
    if "seed" in wish and "seeds" not in wish:
        wish["seeds"] = [wish.pop("seed")]
    return wish


def dump_study(study: Study) -> str:
    """The resolved study as YAML that `load_study` reads back to the same value."""
    plain = _STUDY.dump_python(replace(study, slurm=None), mode="json")
    if study.slurm is not None:  # it keeps its sbatch keys in a view that pydantic does not know
        plain["slurm"] = study.slurm.as_json()
    return yaml.safe_dump(plain, sort_keys=False)


def read_values(text: str) -> Any:
    """What a text of YAML holds. Raises `yaml.YAMLError`, ValueError and RecursionError."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Of YAML as it has been since 1.2: `on`, `off`, `yes` and `no` are words, as keys are."""


_Loader.yaml_implicit_resolvers = {
    letter: [it for it in found if it[0] != "tag:yaml.org,2002:bool"]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = read_values(path.read_text())
        if not isinstance(document, dict):
            raise ValueError(f"it holds {type(document).__name__}, not a mapping")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(
            f"the study file cannot be read: {error}",
            where=path,
            expected="a YAML file with keys such as name, store, folder, finetune",
            remedy="check the path and, if a line is named, its indentation; or let `fewscan init "
            "STORE` write one",
        ) from error
    return document


def _paths(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a document holds paths: mappings and keys. What is no path is left for the checks."""
    wishes = document.get("pretrain")
    inner = wishes.values() if isinstance(wishes, dict) else ()
    every = (document, document.get("finetune"), *inner)
    for mapping in filter(lambda it: isinstance(it, dict), every):
        for key in ("store", "folder", "partner"):
            if isinstance(mapping.get(key), str):
                yield mapping, key


def _from_the_file(document: dict[str, Any], path: Path) -> None:
    """Let relative paths of a study file begin at its folder.

    Raises `StudyError` if what is named is not there, but where the command is given: earlier
    versions looked there, and a finished study would be computed again.
    """
    base = path.absolute().parent
    for mapping, key in _paths(document):
        written, place = mapping[key], Path(os.path.normpath(base / mapping[key]))
        if not place.exists() and Path(written).exists():
            raise StudyError(
                f"{key}: {written} is not there beside the study file, but in {Path.cwd()}",
                where=path,
                expected="a path relative to the study file",
                remedy=f"write {key}: {os.path.relpath(written, base)}; or an absolute path",
            )
        mapping[key] = str(place)


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise StudyError(
            f"cannot understand the override {override!r}",
            where="--set",
            expected="key.key=value, the value as in YAML",
            remedy='for example: --set "finetune.seeds=[0,1]"',
        )
    *parents, last = name.split(".")
    for parent in parents:
        inner = document.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise StudyError(
                f"{parent!r} holds the value {inner!r}, not keys",
                where=f"--set {override}",
                expected="a path through mappings",
                remedy="`fewscan keys` explains the keys of a study",
            )
        document = inner
    try:
        document[last] = read_values(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(
            f"the value cannot be read: {error}",
            where=f"--set {override}",
            expected="a value as in YAML",
            remedy="put it into quotes if it has brackets, colons or hashes of its own",
        ) from error


def _require_plain(document: dict[str, Any], path: Path) -> None:
    """Refuse what YAML can hold and no setting can be: nan, infinity, a value within itself."""
    try:
        json.dumps(document, allow_nan=False, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise StudyError(
            f"the study file holds a value that no setting can have: {error}",
            where=path,
            expected="finite numbers, text, lists and mappings with text as keys",
            remedy="look for .nan, .inf, and for anchors (&name) that contain themselves (*name)",
        ) from error


def _explain(mistake: ErrorDetails, document: Any) -> str:
    name = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "unexpected_keyword_argument":
        *parents, key = mistake["loc"]
        if key in _RENAMED:
            return f"{name}: unknown key; {_RENAMED[key]}"
        known = _known_keys(parents, document)
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if mistake["type"] == "missing":
        return f"{name}: is missing"
    return f"{name}: {mistake['msg']}, found {mistake['input']!r}"


def _known_keys(location: Sequence[int | str], document: Any) -> list[str]:
    """The keys that a study file may have at `location`; which of a scheme, says its kind."""
    here: Any = Study
    for part in location:
        document = document[part]
        in_a_collection = _inner_class(here)
        here = in_a_collection or get_type_hints(here)[str(part)]
        if part == "scheme":
            here = scheme_class(document["kind"])
        if part == "iterations" and isinstance(document, dict):
            here = Epochs
        if part == "inits":
            here = tuple[Arms, ...]
    return [f.name for f in fields(_inner_class(here) or here)]


def _inner_class(hint: Any) -> Any:
    """The dataclass in a type such as `Settings | None` or `dict[str, Pretraining]`, if any."""
    return next((inner for inner in get_args(hint) if is_dataclass(inner)), None)
