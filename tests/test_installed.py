"""The package as people install it: wheel and sdist, from other directories than the clone."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from whole_sweep import WholeSweep

from fewscan.experiments.results import Result
from fewscan.harness.planner import make_plan
from fewscan.harness.ray_cluster import require_same_code
from fewscan.harness.study import Study
from fewscan.harness.study_file import load_study
from fewscan.harness.trial import config_of, run_trial
from fewscan.storage.code_digest import code_digest
from fewscan.storage.errors import ClusterError

ROOT = Path(__file__).parents[1]
ROOMS = ("experiments", "harness", "slurm", "storage")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "package", *ROOMS)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, the wheel made from the sdist."""
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, clone)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dist


@pytest.fixture(scope="module")
def site(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True)
    return folder


def files_of_the_package() -> set[str]:
    """What belongs into every distribution."""
    suffixes = {".py", ".html", ".j2", ".yaml"}
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*")]
    return {p.relative_to(ROOT).as_posix() for p in paths if p.suffix in suffixes}


def test_wheel_and_sdist_hold_every_source(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("fewscan/") for name in archive.namelist()}
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert files_of_the_package() <= names
    assert {"__init__.py", "py.typed"} <= names
    assert tops == {"fewscan", f"{wheel.name.partition('-py3')[0]}.dist-info"}
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_the_package() | {"package/__init__.py", "package/py.typed"} <= inside


def run_installed(site: Path, cwd: Path, *arguments: str | Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-m", "fewscan.harness.cli", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_wheel_works_from_another_directory(
    site: Path, tiny_document: dict[str, Any], tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(tiny_document))
    assert "18 runs" in run_installed(site, tmp_path, "plan", study)
    assert "sound" in run_installed(site, tmp_path, "check", tiny_document["store"])
    for more in ([], ["--from", "demo"]):
        file = tmp_path / f"first{len(more)}.yaml"
        run_installed(site, tmp_path, "init", tiny_document["store"], file, *more)
        assert "denoise" in load_study(file).pretrain
    assert run_installed(site, tmp_path, "keys") == (ROOT / "docs" / "study.md").read_text()
    code = (
        "import fewscan.harness.report.write as page, fewscan.storage.code_digest as it;"
        "from pathlib import Path; folder = Path(page.__file__).parent;"
        "print(folder.parents[1], (folder / 'report.html').exists(), it.code_digest())"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-c", code]
    shown = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(site / "fewscan"), "True", code_digest()]


def test_a_sweep_runs_what_is_installed_whatever_lies_in_the_working_directory(
    whole_sweep: WholeSweep,
) -> None:
    plan = whole_sweep.plan
    results = [Result.read(plan.folder_of(run)) for run in plan.runs]
    assert {result.computed["code"] for result in results} == {code_digest()}


def test_a_worker_with_other_code_refuses(tiny_study: Callable[..., Study], tmp_path: Path) -> None:
    require_same_code(code_digest())
    with pytest.raises(ClusterError, match=r"(?s)runs other code than the driver.*digest 0123"):
        require_same_code("0123")
    plan = make_plan(tiny_study())
    config = config_of(plan, plan.runs[0], False, tmp_path) | {"code": "0123"}
    plan.record(plan.runs[0]).write(plan.folder_of(plan.runs[0]))
    assert run_trial(config) == {"finished": 0.0}
    error = json.loads(plan.folder_of(plan.runs[0]).error.read_text())
    assert "other code than the driver" in error["message"]
    assert not plan.folder_of(plan.runs[0]).events.exists(), "nothing was computed"
