"""Change one thing of the source, run the tests of its module, and see whether they notice.

    make mutants                                     the claims, and a sample of 60
    make mutants MUTANTS=200                         the same 60, and 140 more
    make mutants MUTANTS=all                         all of them, about 800: some hours
    make mutants MUTANTS=20 MODULES=storage/splits.py

A claim is a sentence of README.md or an invariant, with the change that breaks it (claims.toml).
The other mutants are cosmic-ray's, one for each place and kind of change. They are made in a copy
of the tree, so that an interrupted run leaves nothing behind but build/mutants. A survivor is
either killed by a new test or explained in explained.toml; with any other the command fails.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COPY = ROOT / "build" / "mutants" / "tree"
LINKS = COPY / "links"
RESULTS = ROOT / "build" / "mutants" / "results.jsonl"
PACKAGES = ("experiments", "harness", "slurm", "storage")
OTHERS = (
    *("torch", "torch._dynamo", "torch.distributed.nn.functional", "scipy.stats", "scipy.ndimage"),
    *("scipy.optimize", "sklearn.metrics", "pydantic", "yaml", "nibabel", "zarr", "cv2", "jinja2"),
    *("matplotlib.pyplot", "hypothesis.strategies", "monai.metrics"),
)
BITWISE = ("BitAnd", "BitOr", "BitXor", "LShift", "RShift")
IDENTITY = ("Is", "IsNot")
A_TEST_S = 120
"""A test that takes longer hangs, and has noticed."""
TIMES_LONGER = 4
"""Tests that take so much longer than without a change, and a minute more, have noticed."""


@dataclass(frozen=True)
class Mutant:
    """A file with one thing changed."""

    file: str
    source: str
    """The whole file, changed."""
    tests: tuple[str, ...]
    """Files of `tests/`, the fastest first."""
    claim: str = ""
    """The sentence that is no longer true; empty for one of cosmic-ray's."""

    @property
    def lines(self) -> tuple[list[str], list[str]]:
        """What was there, and what is there instead."""
        diff = difflib.ndiff((ROOT / self.file).read_text().split("\n"), self.source.split("\n"))
        changed = [line for line in diff if line[0] in "+-"]
        return tuple([line[2:].strip() for line in changed if line[0] == s] for s in "-+")  # type: ignore[return-value]

    def __str__(self) -> str:
        before, after = (" ⏎ ".join(lines) for lines in self.lines)
        return f"{self.file}: {before}  →  {after}"


def tests_of_modules() -> dict[str, tuple[str, ...]]:
    """Module → files of `tests/` that are about it."""
    table = tomllib.loads((HERE / "modules.toml").read_text())
    return {file: tuple(tests) for file, tests in table.items()}


def claims() -> list[Mutant]:
    """Raises ValueError for one whose text does not stand in its file exactly once."""
    found = []
    for it in tomllib.loads((HERE / "claims.toml").read_text())["claim"]:
        source = (ROOT / it["file"]).read_text()
        if source.count(it["old"]) != 1:
            times = source.count(it["old"])
            raise ValueError(f"{it['says']!r}: {it['old']!r} stands {times} times in {it['file']}")
        changed = source.replace(it["old"], it["new"])
        found.append(Mutant(it["file"], changed, tuple(it["tests"]), it["says"]))
    return found


def explained() -> dict[tuple[str, str, str], str]:
    """File, old line and new line of a survivor → why no test can or need notice it."""
    table = tomllib.loads((HERE / "explained.toml").read_text())
    return {(it["file"], it["old"], it["new"]): it["why"] for it in table.get("survivor", [])}


def sampled(modules: dict[str, tuple[str, ...]], count: int | None, seed: int) -> Iterator[Mutant]:
    """So many of all mutants, in an order that depends on nothing but the seed and the sources."""
    rng = random.Random(seed)
    places = [(file, choices) for file in sorted(modules) for choices in _places(file)]
    rng.shuffle(places)
    for file, choices in places[:count]:
        changed = _changed((ROOT / file).read_text(), rng.choice(choices))
        if changed is not None:
            yield Mutant(file, changed, modules[file])


Choice = tuple[Any, int]
"""An operator of cosmic-ray, and at which of the places that it finds in a file."""


def _places(file: str) -> Iterator[list[Choice]]:
    """For each place and kind of change of a file what may be done there."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    source = (ROOT / file).read_text()
    tree, left_out = get_ast(source), _left_out(source)
    operators = [
        plugins.get_operator(name) for name in sorted(filter(_tells, plugins.operator_names()))
    ]
    found: dict[tuple[Any, str], list[Choice]] = defaultdict(list)
    for operator in [*(it() for it in operators if not it.arguments()), _deletion()]:
        kind = type(operator).__name__.partition("_")[0]
        positions = (p for node in ast_nodes(tree) for p in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            if not any(begin <= start < end for begin, end in left_out):
                found[start, kind].append((operator, occurrence))
    yield from (choices for _, choices in sorted(found.items(), key=lambda item: item[0]))


def _tells(operator: str) -> bool:
    """Whether there is something to notice, and a test is needed for it.

    Bits of a float are a TypeError; `== None` and `is 0` are what they were.
    """
    kind, *names = operator.rpartition("/")[2].split("_")
    if kind == "ReplaceBinaryOperator":
        return names[1] not in BITWISE or names[0] in BITWISE
    if kind == "ReplaceComparisonOperator":
        return (names[0] in IDENTITY) == (names[1] in IDENTITY)
    return kind not in ("ExceptionReplacer", "ExceptionSwallow", "RemoveDecorator")


def _changed(source: str, choice: Choice) -> str | None:
    from cosmic_ray.mutating import mutate_code

    changed = mutate_code(source, *choice)
    return None if changed == source else changed


def _left_out(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a change tells nothing: annotations, decorators, assert and strict."""
    nodes: list[Any] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assert() | ast.keyword(arg="strict"):
                nodes.append(node)
            case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=annotation):
                nodes.append(annotation)
            case ast.FunctionDef(returns=returns, decorator_list=decorators):
                nodes += [returns, *decorators]
            case ast.ClassDef(decorator_list=decorators):
                nodes += decorators
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n]


def _deletion() -> Any:
    """Leave out a statement that is no plain assignment; cosmic-ray does not do that."""
    from cosmic_ray.operators.operator import Operator
    from parso.python.tree import Name

    class Deletion(Operator):  # type: ignore[misc]
        def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
            if node.type == "simple_stmt" and _may_go(node.children[0]):
                yield node.start_pos, node.end_pos

        def mutate(self, node: Any, index: int) -> Any:
            first = node.get_first_leaf()
            node.children[0] = Name("pass", first.start_pos, first.prefix)
            return node

        @classmethod
        def examples(cls) -> tuple[()]:
            return ()

    return Deletion()


def _may_go(statement: Any) -> bool:
    if statement.type in ("atom_expr", "await"):
        return True
    if statement.type != "expr_stmt" or statement.children[1].type == "annassign":
        return False
    target, operator = statement.children[:2]
    return target.type in ("atom_expr", "power") or operator.get_code().strip() != "="


def make_copy() -> None:
    """The tree as it is, with what git does not know yet, and a package of links to import."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shutil.rmtree(COPY, ignore_errors=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, COPY / name)
    package = LINKS / "fewscan"
    package.mkdir(parents=True)
    for name in PACKAGES:
        (package / name).symlink_to(COPY / name)
    (package / "__init__.py").symlink_to(COPY / "package" / "__init__.py")


def import_others() -> None:
    """What tests import of other people, so that each process of tests begins with it."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # monai loads it
    for name in OTHERS:
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] == "fewscan"]


def run_tests(tests: tuple[str, ...], seconds: float) -> tuple[int, str] | None:
    """Exit code and output of pytest, until a test fails; None if it took too long.

    In a process of its own, a fork of this one. Nothing that it started goes on.
    """
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as output:
        process = os.fork()
        if process == 0:
            os.setsid()
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            code = 99
            try:
                code = _pytest(tests)
            finally:
                os._exit(code)
        deadline, status = time.monotonic() + seconds, None
        try:
            while status is None and time.monotonic() < deadline:
                ended, how = os.waitpid(process, os.WNOHANG)
                status = how if ended else None
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        if status is None:
            os.waitpid(process, 0)
            return None
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def _pytest(tests: tuple[str, ...]) -> int:
    os.chdir(COPY)
    sys.dont_write_bytecode = True  # a change within a second would not be seen
    sys.path[0] = os.environ["PYTHONPATH"] = str(LINKS)
    experiments = importlib.import_module("fewscan.experiments")
    assert Path(experiments.__path__[0]).is_relative_to(LINKS), experiments.__path__
    options = ["-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--timeout={A_TEST_S}"]
    return int(pytest.main([*options, *(f"tests/{it}" for it in tests)]))


def baselines(mutants: list[Mutant]) -> dict[str, float]:
    """Seconds that the tests take on the tree as it is; they must pass there."""
    found: dict[str, float] = {}
    for test in dict.fromkeys(test for mutant in mutants for test in mutant.tests):
        began = time.monotonic()
        result = run_tests((test,), seconds=1800)
        if result is None or result[0] != 0:
            sys.exit(f"{test} fails without any change:\n{result and result[1]}")
        found[test] = time.monotonic() - began
        print(f"{found[test]:6.1f} s  {test}", flush=True)
    return found


def outcome_of(mutant: Mutant, seconds: float) -> tuple[str, str]:
    """killed, timeout or survived; and by which test."""
    place = COPY / mutant.file
    place.write_text(mutant.source)
    try:
        result = run_tests(mutant.tests, TIMES_LONGER * seconds + 60)
    finally:
        place.write_text((ROOT / mutant.file).read_text())
    if result is None:
        return "timeout", ""
    code, output = result
    by = [line for line in output.split("\n") if line.startswith(("FAILED", "ERROR"))]
    return ("survived" if code == 0 else "killed"), (by[0] if by else "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("modules", nargs="*", help="as they stand in modules.toml; all by default")
    parser.add_argument("--count", default="60", help="of cosmic-ray's mutants, or all")
    parser.add_argument("--skip", type=int, default=0, help="the first so many of the sample")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    modules = tests_of_modules()
    wanted = {file: modules[file] for file in arguments.modules or modules}
    count = None if arguments.count == "all" else int(arguments.count)
    mutants = [] if arguments.modules or arguments.skip else claims()
    mutants += islice(sampled(wanted, count, arguments.seed), arguments.skip, None)
    make_copy()
    import_others()
    seconds = baselines(mutants)
    outcomes: list[str] = []
    with RESULTS.open("a") as results, contextlib.suppress(KeyboardInterrupt):
        for mutant in mutants:
            outcomes.append(_tried(mutant, sum(seconds[it] for it in mutant.tests), results))
    _tell(mutants[: len(outcomes)], outcomes)


def _tried(mutant: Mutant, seconds: float, results: Any) -> str:
    outcome, by = outcome_of(mutant, seconds)
    before, after = (" ".join(lines) for lines in mutant.lines)
    why = explained().get((mutant.file, before, after))
    if outcome == "survived" and why:
        outcome = "explained"
    told = {"file": mutant.file, "claim": mutant.claim, "outcome": outcome, "by": by}
    results.write(json.dumps(told | {"old": before, "new": after}, ensure_ascii=False) + "\n")
    results.flush()
    print(f"{outcome:<9}  {mutant.claim or mutant}", flush=True)
    return outcome


def _tell(mutants: list[Mutant], outcomes: list[str]) -> None:
    """A line a module, and the survivors. Exits with 1 if there are any."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        counts["claims" if mutant.claim else mutant.file][outcome] += 1
    print()
    for name, found in sorted(counts.items()):
        killed = found["killed"] + found["timeout"]
        said = f", {found['explained']} explained" if found["explained"] else ""
        print(f"{name:<36} {killed:>4} of {found.total()} killed{said}")
    survivors = [m for m, o in zip(mutants, outcomes, strict=True) if o == "survived"]
    for mutant in survivors:
        print(f"\nsurvived: {mutant.claim}\n  {mutant}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
