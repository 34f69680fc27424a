"""The file tree of docs/tour.md is the tree: `python tests/test_tour.py` writes it there."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTES = {
    ".ci/run": "what CI runs: make test",
    "CHANGELOG.md": "what changed, and what was found on the way",
    "CITATION.cff": "how to cite fewscan, and the papers that its first study is about",
    "CONTRIBUTING.md": "the invariants and habits of the house",
    "LICENSE": "MIT",
    "Makefile": "demo, test, lowest, bench, mutants, lint, format",
    "README.md": "what a newcomer needs",
    "benchmarks/README.md": "the table of ratios, and how to add one",
    "constraints-lowest.txt": "the lowest versions that they run on, with make lowest",
    "constraints.txt": "the versions that the tests run on",
    "docs/index.md": "which page for whom",
    "docs/brats.md": "the published study, command by command",
    "docs/report.md": "how to read a report, from the top",
    "docs/mlflow.md": "what is where in MLflow, and how to filter and register",
    "docs/containers.md": "recipes for Docker and Apptainer",
    "mkdocs.yml": "the pages in docs/ as a site",
    "docs/cluster.md": "for users of a Slurm cluster: study files, what happens when, troubles",
    "docs/data.md": "which data is read: layout by layout, with the command; tables; labels",
    "docs/adaptive.md": "seeds that are added where the answer is open, and what may be claimed",
    "docs/ensembles.md": "members, folds, mirroring: what is averaged, which labels it takes",
    "docs/lesions.md": "lesion-wise numbers and post-processing: definitions, what is fitted where",
    "docs/performance.md": "where the time goes, and how to read the numbers",
    "docs/reliability.md": "what a study on a cluster survives, tried at random",
    "docs/results.md": "what the study files gave where they were run",
    "docs/schemes.md": "the ways of pre-training, and how to bring one of your own",
    "docs/security.md": "what listens where, who gets in, what lies where",
    "docs/study.md": "every key of a study file; `fewscan keys` prints it",
    "docs/volumes.md": "3D networks: patches, thick slices, weights of a 2D network",
    "docs/statistics.md": "what intervals and p-values are worth, in studies with a known truth",
    "docs/tour.md": "this page",
    "docs/volumes_hippocampus.png": "3D against 2D on real scans",
    "docs/zoo_phantom.png": "the same on synthetic scans",
    "docs/hippocampus.png": "the curve of the hippocampus, as a newcomer draws it",
    "docs/zoo_hippocampus.png": "the figure of nine pre-trainings on real scans",
    "docs/page.png": "the report's page of the demo",
    "docs/demo.png": "the figure of the demo",
    "docs/mlflow.png": "a study in MLflow",
    "experiments/demo.yaml": "the study in small, on synthetic scans",
    "experiments/schemes.yaml": "which pre-training? nine of them on one network and budget",
    "experiments/schemes_small.yaml": "the same in small, on synthetic scans",
    "experiments/schemes_hippocampus.yaml": "the same on real scans, half an hour on two cores",
    "experiments/slices_small.yaml": "2D beside 3D: the twin of volumes_small.yaml on slices",
    "experiments/volumes_small.yaml": "3D in small, on the Decathlon's hippocampus",
    "experiments/paper.yaml": "the published study, each number with its source",
    "package/py.typed": "says that the package is typed",
    "harness/first_study.yaml.j2": "the template of the study file that `init` writes",
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


TOUR = ROOT / "docs" / "tour.md"
HEADING = "## The files\n\n"
README_BYTES = 10_000
"""A newcomer reads no more."""


def test_the_file_tree_is_true() -> None:
    shown = TOUR.read_text().partition(HEADING)[2].rstrip()
    assert shown == tree()


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


def test_every_module_that_the_tour_names_is_there() -> None:
    walk = TOUR.read_text().partition(HEADING)[0]
    named = set(re.findall(r"`((?:harness|experiments|storage|slurm)/[\w/]+\.\w+)`", walk))
    assert named
    assert not {name for name in named if not (ROOT / name).exists()}


if __name__ == "__main__":
    before = TOUR.read_text().partition(HEADING)[0]
    TOUR.write_text(before + HEADING + tree() + "\n")
