"""The README's file tree is the tree. `python tests/test_readme.py` writes it there."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTES = {
    ".ci/run": "what CI runs: make test",
    "CHANGELOG.md": "what changed, and what was found on the way",
    "CONTRIBUTING.md": "the invariants and habits of the house",
    "LICENSE": "MIT",
    "Makefile": "demo, test, bench, lint, format",
    "README.md": "this page",
    "benchmarks/README.md": "the table of ratios, and how to add one",
    "constraints.txt": "the versions that the tests run on",
    "docs/cluster.md": "for users of a Slurm cluster: study files, what happens when, troubles",
    "docs/performance.md": "where the time goes, and how to read the numbers",
    "docs/demo.png": "the figure of the demo",
    "docs/mlflow.png": "a study in MLflow",
    "experiments/demo.yaml": "the study in small, on synthetic scans",
    "experiments/paper.yaml": "the published study, each number with its source",
    "package/py.typed": "says that the package is typed",
    "harness/report/report.html": "the template of the report's page",
    "pyproject.toml": "the package, with a reason beside each dependency",
    "benchmarks/results/": "what the table shows: JSON, a file a subject",
    "tests/": "one test file a module; conftest.py has tiny scans, a tiny store and a tiny study",
}


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(name for name in listed.stdout.split() if (ROOT / name).exists())


def note(name: str) -> str:
    """The first line of a module's docstring, or the note above."""
    if name.endswith(".py"):
        text = ast.get_docstring(ast.parse((ROOT / name).read_text())) or ""
        return text.partition("\n")[0].rstrip(".")
    return NOTES[name]


def tree() -> str:
    """One line a file; a folder is described by its package's docstring."""
    lines, folder = [], ""
    left_out = ("tests/", "benchmarks/results/")
    names = [n for n in tracked() if not n.startswith(left_out) and n != ".gitignore"]
    for name in sorted(names, key=lambda n: (n.rpartition("/")[0], n)):
        parent, _, base = name.rpartition("/")
        if parent != folder:
            folder = parent
            package = f"{parent}/__init__.py"
            described = f"  {note(package)}" if (ROOT / package).exists() else ""
            lines.append(f"{parent}/{described}")
        if base != "__init__.py":
            indent = "  " if parent else ""
            lines.append(f"{indent}{base:<{22 - len(indent)}} {note(name)}")
    lines += [f"{name:<22} {NOTES[name]}" for name in ("benchmarks/results/", "tests/")]
    return "\n".join(f"    {line}".rstrip() for line in lines)


HEADING = "## The files\n\n"


def test_the_file_tree_is_true() -> None:
    shown = (ROOT / "README.md").read_text().partition(HEADING)[2].rstrip()
    assert shown == tree()


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before = readme.read_text().partition(HEADING)[0]
    readme.write_text(before + HEADING + tree() + "\n")
