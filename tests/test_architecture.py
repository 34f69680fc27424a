"""Who may import whom: the rules of the four folders, read from the sources."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"harness", "experiments", "storage", "slurm"}
MAY_IMPORT = {
    "storage": set(),
    "experiments": {"storage"},
    "slurm": {"storage"},
    "harness": {"experiments", "storage", "slurm"},
}
FORBIDDEN = {
    "storage": {"torch", "ray", "mlflow", "submitit"},
    "experiments": {"ray", "mlflow", "submitit", "nibabel", "zarr", "pydantic", "matplotlib"},
    "slurm": {"torch", "mlflow", "nibabel", "zarr"},
    "harness": {"nibabel", "zarr", "submitit"},
}
MLFLOW_ROOMS = (
    "dataset",
    "mlflow_errors",
    "mlflow_study",
    "models",
    "registry",
    "stores",
    "ui",
    "tracker",
)
ONE_ROOM = {
    "nibabel": {"storage/nifti.py"},
    "PIL": {"storage/pictures.py"},
    "zarr": {"storage/slices.py"},
    "ray": {"harness/schedule.py", "harness/trial.py", "harness/ray_cluster.py"},
    "mlflow": {f"harness/tracking/{name}.py" for name in MLFLOW_ROOMS},
}


def sources() -> list[Path]:
    return [p for name in sorted(OURS) for p in sorted((ROOT / name).rglob("*.py"))]


def imports(path: Path) -> dict[str, bool]:
    """Top-level package → whether a module-level statement imports it."""
    tree = ast.parse(path.read_text())
    at_module_level = {id(node) for node in tree.body}
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
        for name in names:
            package = name.removeprefix("fewscan.").partition(".")[0]
            found[package] = found.get(package, False) or id(node) in at_module_level
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_respect_the_folders(path: Path) -> None:
    relative = path.relative_to(ROOT)
    folder = relative.parts[0]
    found = imports(path)
    assert not ((OURS | {"benchmarks"}) & set(found)) - MAY_IMPORT[folder] - {folder}
    assert not set(found) & FORBIDDEN[folder]
    for package, rooms in ONE_ROOM.items():
        if folder != "slurm":
            assert package not in found or str(relative) in rooms


def module(path: Path) -> str:
    """Its name when it is imported; a package's own file is the package."""
    parts = ("fewscan", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: Collection[str]) -> set[str]:
    """Which of `modules` any statement imports, in a function or not, but not for types alone."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module or "")
    return found & set(modules) - {module(path)}


def circles(imported: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Groups of modules each of which leads to all others of its group."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            new = set(imported[todo.pop()]) - found
            found |= new
            todo += new
        return found

    reach = {name: reached(name) for name in imported}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in imported
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def test_a_circle_is_found() -> None:
    imported = {"a": ["b"], "b": ["c"], "c": ["b", "d"], "d": []}
    assert circles(imported) == [["b", "c"]]


def test_no_imports_go_in_a_circle() -> None:
    """Not even through functions: what is hidden there is a circle for whoever reads the code."""
    files = {module(path): path for path in sources()}
    assert not circles({name: imported_modules(path, files) for name, path in files.items()})


def test_a_scheduler_is_named_in_its_own_file_alone() -> None:
    own = ROOT / "slurm" / "slurm_scheduler.py"
    words = re.compile(r"\b(sbatch|squeue|scancel|scontrol|sacct|srun|submitit)\b|\bSLURMD?_")
    assert words.search(own.read_text())
    for path in sorted((ROOT / "slurm").glob("*.py")):
        found = {match[0] for match in words.finditer(path.read_text())}
        if path.name == "settings.py":
            found -= {"sbatch"}  # a key that people write
        assert path == own or not found, path


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.py")), ids=lambda p: p.name)
def test_experiments_import_with_torch_numpy_and_zarr_alone(path: Path) -> None:
    """On a bare GPU machine there is nothing else; scipy is asked for only where it is used."""
    at_top = {package for package, top in imports(path).items() if top}
    assert at_top <= {*sys.stdlib_module_names, "torch", "numpy", "storage", "experiments"}


def loaded_by(code: str) -> set[str]:
    """The modules that a bare process has loaded after `code`."""
    code = f"import sys, {code}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_stage_needs_neither_cluster_nor_view() -> None:
    absent = {"ray", "mlflow", "submitit", "nibabel", "zarr", "isal", "scipy", "pydantic", "yaml"}
    assert not absent & loaded_by("fewscan.experiments.stages")


def test_help_is_instant() -> None:
    assert not {"numpy", "yaml", "torch", "ray", "mlflow"} & loaded_by("fewscan.harness.cli")


def test_plan_and_status_are_quick_to_load() -> None:
    """The seconds that torch, ray and mlflow take to load are for commands that need them."""
    slow = {"torch", "ray", "mlflow", "scipy", "matplotlib", "zarr", "nibabel"}
    assert not slow & loaded_by(
        "fewscan.harness.cli, fewscan.harness.listing, fewscan.harness.on_slurm"
    )


def test_no_two_classes_have_one_name():
    where: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}
