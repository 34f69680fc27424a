"""What each key of a study file means: written from the dataclasses that the file is read into."""

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from fewscan.experiments.schemes import SCHEMES, Scheme
from fewscan.experiments.spec import Augmentation, Evaluation, Postprocess, Training
from fewscan.harness.study import (
    Adaptive,
    Architecture,
    Arms,
    Epochs,
    Finetuning,
    Power,
    Pretraining,
    PretrainTuning,
    Probing,
    Published,
    Reporting,
    Resources,
    Scoring,
    Share,
    Splitting,
    Study,
    Tuning,
    TuningCell,
)
from fewscan.slurm import Settings
from fewscan.storage.errors import StudyError, named

WIDTH = 118
WORDS = {"None": "null", "True": "true", "False": "false"}
HEAD = """\
# The keys of a study file

A study file is YAML. A key that is left out has the default that is said here; a wrong key or
value is an error that names its place. Paths are relative to the file. `fewscan init STORE` writes
a file to begin with, `fewscan plan STUDY` checks one and runs nothing, `--set key.key=value`
overrides a value.

The program writes this page: `fewscan keys > docs/study.md`. `fewscan keys finetune` shows one
block of it, `fewscan keys finetune.seeds` one key, `fewscan keys mae` one scheme.
"""
EXAMPLES: dict[type, str] = {
    Study: """\
name: mine
store: mine.zarr
folder: studies/mine
finetune: {label_counts: [1, 4, all], training: {iterations: 4000, validate_every: 400}}
""",
    Finetuning: """\
finetune:
  label_counts: [1, 2, 4, 8, 16, all]
  seeds: [0, 1, 2]
  inits: [scratch, denoise]
  targets: [binary]
  training: {iterations: 4000, validate_every: 400}
  selection: within
""",
    Training: """\
finetune:
  training: {iterations: 4000, validate_every: 400, batch_size: 16, lr: 3.0e-4, precision: fp32}
""",
    Arms: """\
finetune:
  inits: [scratch, {init: denoise, schedule: [plain, sawtooth], lr_scale: [1, 0.1]}]
""",
    Augmentation: "finetune:\n  augmentation: {policy: none}\n",
    Epochs: "finetune:\n  iterations: {epochs: 20, at_least: 2000, at_most: 40000}\n",
    Tuning: """\
finetune:
  tune: {lr: [1.0e-4, 3.0e-4, 1.0e-3], on: {labels: 4, seed: 100}}
""",
    TuningCell: "finetune:\n  tune: {lr: [1.0e-4, 1.0e-3], on: {labels: 8}}\n",
    Probing: "finetune:\n  probes: {levels: [0, 3], label_counts: [4]}\n",
    Architecture: "network: {width: 32, depth: 4}\n",
    Pretraining: """\
pretrain:
  denoise:
    scheme: {kind: denoise, noise: {resolution: 16, std: 0.2}}
    training: {iterations: 20000, validate_every: 500}
    slices: all
    seeds: [0, 1, 2]
""",
    PretrainTuning: "pretrain:\n  denoise:\n    tune: {lr: [1.0e-4, 1.0e-3]}\n",
    Evaluation: "evaluation: {nsd_tolerance_mm: 2.0, lesion_wise: true}\n",
    Postprocess: """\
evaluation:
  postprocess: {largest_component: true, min_lesion_mm3: [30, 100], fill_holes: true}
""",
    Scoring: "score: {mirror: true}\n",
    Resources: """\
resources:
  device: cuda
  finetune: {devices: 1, cpus: 2, gpu_share: 0.5}
  checkpoint_every_s: 120
""",
    Splitting: "split: {folds: 5}\n",
    Share: "resources:\n  pretrain: {devices: 2, cpus: 4}\n",
    Settings: """\
slurm: {partition: gpu, gpus: 1, cpus: 4, memory_gb: 32, max_workers: 4, time_limit_min: 240}
""",
    Published: """\
published:
  - label: THE NAME IN THE LEGEND
    citation: AUTHORS, TITLE, VENUE YEAR, TABLE OR FIGURE
    metric: pooled_best_dice
    points: [[1, 0.5], [938, 0.8]]
""",
    Reporting: "report: {reach: {binary: 0.7}, axis: all}\n",
    Power: "power: {gain: 0.03, seeds: 0.02, patients: 0.05, residual: 0.1}\n",
    Adaptive: """\
finetune:
  seeds: [0, 1, 2]
adaptive: {at_most: 10, until: decided, half_width: 0.02}
""",
}
"""Of each block, as it stands in a study file; of a scheme all its defaults are one."""


@dataclass(frozen=True)
class Block:
    """Keys that stand together: those of a dataclass."""

    cls: type
    paths: tuple[str, ...]
    """Where they may stand, such as pretrain.NAME.training; empty: at the top."""

    @property
    def title(self) -> str:
        paths = ", ".join(f"`{path}`" for path in self.paths if path)
        if issubclass(self.cls, Scheme):
            return f"{paths} of kind `{self.cls.kind}`"
        return paths or "At the top"

    @property
    def keys(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(it.name for it in fields(self.cls))

    @property
    def example(self) -> str:
        """As it stands in a study file; empty within a scheme, whose example has it."""
        if issubclass(self.cls, Scheme):
            settings = _yaml({"kind": self.cls.kind} | _plain(self.cls()))
            lines = textwrap.wrap(settings, WIDTH - 16, break_on_hyphens=False)
            return "pretrain:\n  NAME:\n    scheme: " + f"\n{' ' * 14}".join(lines) + "\n"
        return EXAMPLES.get(self.cls, "")

    def render(self) -> str:
        """As Markdown."""
        parts = [f"## {self.title}", *_paragraphs(self.cls)]
        if self.example:
            parts.append(f"```yaml\n{self.example}```")
        if self.keys:
            parts.append("\n".join(self.line(key) for key in self.keys))
        return "\n\n".join(parts)

    def line(self, key: str) -> str:
        """A key: what it takes, its default, its meaning."""
        (found,) = (it for it in fields(self.cls) if it.name == key)
        hint = _hints(self.cls)[key]
        meaning = docs_of(self.cls).get(key, "")
        if not meaning or meaning.startswith("None:"):
            meaning = f"{_summary(hint)} {meaning}".strip()
        text = f"- `{key}` ({in_words(hint)}; {_default(found)}): {_as_in_yaml(meaning)}"
        return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


@cache
def blocks() -> tuple[Block, ...]:
    """All of them, the top first, each after the one that it first stands in."""
    places: dict[type, list[str]] = {}
    for cls, path in _walk(Study, ""):
        places.setdefault(cls, []).append(path)
    return tuple(Block(cls, tuple(dict.fromkeys(paths))) for cls, paths in places.items())


def _walk(cls: type, path: str) -> Iterator[tuple[type, str]]:
    yield cls, path
    for key, hint in _hints(cls).items():
        name = f"{path}.{key}" if path else key
        for inner in _classes(hint):
            is_named = get_origin(hint) is dict
            yield from _walk(inner, f"{name}.NAME" if is_named else name)


def _hints(cls: type) -> dict[str, Any]:
    """Key → type, with what is said of its bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {it.name: hints[it.name] for it in fields(cls)}


def _classes(hint: Any) -> Iterator[type]:
    """The dataclasses that a value of this type may be, or hold; of a scheme all kinds."""
    if hint is Scheme:
        yield from SCHEMES.values()
    elif is_dataclass(hint) and isinstance(hint, type):
        yield hint
    else:
        for inner in get_args(hint):
            yield from _classes(inner)


def in_words(hint: Any) -> str:
    """What a value of this type is, for people."""
    simple = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    simple |= {Path: "path", type(None): "null", Scheme: "a scheme, below"}
    origin, args = get_origin(hint), get_args(hint)
    if hint in simple:
        return simple[hint]
    if origin is Annotated:
        return in_words(args[0]) + _bounds(args[1:])
    if origin is Literal:
        return " or ".join(f"`{it}`" for it in args)
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, args))
    if origin is tuple and args[-1] is Ellipsis:
        return f"list: {in_words(args[0])}"
    if origin is tuple:
        each = dict.fromkeys(map(in_words, args))
        return f"{len(args)} × {' and '.join(each)}"
    if origin in (dict, Mapping):
        return f"mapping of {in_words(args[0])} to {in_words(args[1])}"
    assert is_dataclass(hint), hint
    return "keys, below"


def _bounds(said: Sequence[Any]) -> str:
    """ " (at least 1)", of what pydantic is told of a number."""
    signs = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    found = [
        f"{words} {getattr(it, sign):g}"
        for part in said
        for it in (part, *getattr(part, "metadata", ()))
        for sign, words in signs.items()
        if getattr(it, sign, None) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _default(found: Field[Any]) -> str:
    if found.default is MISSING and found.default_factory is MISSING:
        return "required"
    value = found.default if found.default_factory is MISSING else found.default_factory()
    if isinstance(value, Scheme):
        return f"default `{{kind: {value.kind}}}`"
    if is_dataclass(value):
        return "default: those of its keys"
    if value in ((), {}):
        return "default none"
    return f"default `{_yaml(_plain(value))}`"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {it.name: _plain(getattr(value, it.name)) for it in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()


def _summary(hint: Any) -> str:
    """The first paragraph of the block that a key holds; empty if it holds none."""
    return next((_paragraphs(it)[0] for it in _classes(hint)), "")


def _as_in_yaml(text: str) -> str:
    """Python's words for nothing, yes and no as a study file has them."""
    return re.sub(r"\b(None|True|False)(?=:| is| takes| leaves)", lambda it: WORDS[it[0]], text)


def _paragraphs(cls: type) -> list[str]:
    """Of its docstring, each on lines of our width."""
    found = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    told = [" ".join(it.split()) for it in found if not it.startswith("Raises")]
    return [textwrap.fill(it, WIDTH, break_on_hyphens=False) for it in told]


@cache
def docs_of(cls: type) -> dict[str, str]:
    """Key → the string that follows it in the source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for stated, said in zip(tree.body, tree.body[1:], strict=False):
        match stated, said:
            case (
                ast.AnnAssign(target=ast.Name(id=key)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[key] = " ".join(text.split())
    return found


def reference() -> str:
    """All keys, as docs/study.md has them."""
    return "\n\n".join([HEAD.rstrip(), *(block.render() for block in blocks())]) + "\n"


def explained(name: str) -> str:
    """One block, or one key, by its path or the end of it, or a scheme by its kind.

    Raises `StudyError` that names the nearest ones if there is none.
    """
    known: dict[str, list[str]] = {}
    for block in blocks():
        for path in block.paths:
            known.setdefault(path, []).append(block.render())
            for key in block.keys:
                inner = f"{path}.{key}" if path else key
                known.setdefault(inner, []).append(f"`{inner}`\n{block.line(key)}")
        if issubclass(block.cls, Scheme):
            known[block.cls.kind] = [block.render()]
    ends = [path for path in known if path == name] or [
        path for path in known if path.endswith(f".{name}")
    ]
    if not ends:
        near = get_close_matches(name, known, n=5, cutoff=0.4)
        raise StudyError(
            f"no key {name!r}",
            where="fewscan keys",
            expected=f"a key of a study file, such as {named(near or ['finetune'])}",
            remedy="`fewscan keys` shows all",
        )
    return "\n\n".join(dict.fromkeys(text for path in ends for text in reversed(known[path])))
