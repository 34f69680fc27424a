"""Schemes that another package brings: installed, planned, run; and refused where they are not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from fewscan.experiments.devices import Devices
from fewscan.experiments.schemes import SCHEMES, Denoise, registry
from fewscan.experiments.schemes.registry import Package, kinds, package_of, scheme_class
from fewscan.experiments.schemes.scheme import Scheme
from fewscan.experiments.spec import (
    Network,
    Pretrain,
    Training,
    from_json,
    run_id,
    scheme_from_json,
    to_json,
)
from fewscan.experiments.stages import run_stage
from fewscan.harness.study_file import dump_study, parse_study
from fewscan.storage.errors import RunError, StudyError
from fewscan.storage.runs import RunFolder

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example_scheme"
RUN_ALL = """
import sys
from pathlib import Path
from tiny import run_in_process
from fewscan.harness.loading import load_plan
plan = load_plan(Path(sys.argv[1]))
run_in_process(plan, plan.runs)
for run in plan.runs:
    print(run.run_id, run.spec.kind, plan.folder_of(run).path)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed by pip into a folder of its own."""
    source, folder = tmp_path_factory.mktemp("source") / "it", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(folder), str(source)]
    subprocess.run(command, check=True)
    return folder


def with_example(site: Path, *arguments: str | Path, code: str | None = None) -> str:
    """What Python prints where the example is installed."""
    paths = f"{site}:{ROOT / 'tests'}"
    start = ["-m", "fewscan.harness.cli"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env=environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def study(tiny_document: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny study with the example's scheme in place of ours."""
    scheme = {"kind": "quarter_turns", "smoothing": 0.1}
    wish = tiny_document["pretrain"]["denoise"] | {"scheme": scheme}
    finetune = tiny_document["finetune"] | {"inits": ["scratch", "turns"], "label_counts": [1]}
    document = tiny_document | {"pretrain": {"turns": wish}, "finetune": finetune}
    document["baselines"] = []
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_packages_scheme_is_planned_and_run_and_missed_where_it_is_not(
    site: Path, study: Path
) -> None:
    assert "turns" in with_example(site, "plan", study)
    lines = with_example(site, study, code=RUN_ALL).splitlines()
    runs = [line.split() for line in lines if len(line.split()) == 3]
    folders = {kind: RunFolder(Path(path)) for _, kind, path in runs}
    assert set(folders) == {"pretrain", "finetune", "score"}
    assert all(RunFolder(Path(path)).result.exists() for _, _, path in runs)

    spec = json.loads(folders["pretrain"].spec.read_text())["spec"]
    package = {"name": "fewscan-quarter-turns", "version": "1.0"}
    expected = {"kind": "quarter_turns", "package": package, "smoothing": 0.1}
    assert spec["scheme"] == expected
    records = [json.loads(RunFolder(Path(path)).spec.read_text()) for _, _, path in runs]
    inits = {it["spec"]["init"] for it in records if it["spec"]["kind"] == "finetune"}
    assert inits == {None, folders["pretrain"].run_id}

    folders["pretrain"].result.unlink()  # as on a worker that lacks the package
    wanted = r"(?s)'quarter_turns' of fewscan-quarter-turns 1\.0 is not known here"
    remedy = r"pip install fewscan-quarter-turns==1\.0"
    with pytest.raises(RunError, match=wanted + ".*" + remedy):
        run_stage(folders["pretrain"], Devices())
    assert (
        "fewscan-quarter-turns 1.0" in json.loads(folders["pretrain"].error.read_text())["message"]
    )
    with pytest.raises(
        StudyError, match=r"(?s)a scheme says its kind, one of: denoise, .*contrast"
    ):
        parse_study(yaml.safe_load(study.read_text()), "it")


# What else a package may bring, made by hand in this process.


@dataclass(frozen=True)
class Mine(Scheme):
    """A scheme that computes nothing."""

    kind: ClassVar[str] = "mine"
    strength: float = 1.0


@dataclass(frozen=True)
class NotItsName(Scheme):
    kind: ClassVar[str] = "another"


@dataclass(frozen=True)
class Reserved(Scheme):
    kind: ClassVar[str] = "reserved"
    package: str = ""


@dataclass
class Thawed(Scheme):
    kind: ClassVar[str] = "thawed"


class Plain(Scheme):
    kind: ClassVar[str] = "plain"


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with entry points on the path: what pip leaves of it."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def put(name: str, version: str, **schemes: str) -> None:
        for old in (tmp_path / "site").glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        info = tmp_path / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{kind} = {value}" for kind, value in schemes.items()]
        (info / "entry_points.txt").write_text("\n".join(["[fewscan.schemes]", *lines]) + "\n")
        registry._offered.cache_clear()

    yield put
    registry._offered.cache_clear()


HERE = f"{__name__}:"


def pretraining(scheme: Scheme) -> Pretrain:
    return Pretrain("data", Network(4, 2), Training(2, 1), scheme)


def test_name_and_version_are_part_of_what_a_run_is(install: Install) -> None:
    ids = []
    for version in ("1.0", "1.1"):
        install("brought", version, mine=HERE + "Mine")
        spec = pretraining(Mine(2.0))
        assert package_of(Mine()) == Package("brought", version)
        assert to_json(spec)["scheme"]["package"] == {"name": "brought", "version": version}
        assert from_json(json.loads(json.dumps(to_json(spec)))) == spec
        ids.append(run_id(spec))
    install("other", "1.1", yours=HERE + "Mine")
    install("brought", "1.1", mine=HERE + "Mine")
    assert run_id(pretraining(Mine(2.0))) == ids[1] != ids[0]
    assert run_id(pretraining(Mine(3.0))) != ids[1]


def test_our_own_schemes_have_no_package_and_keep_their_ids(install: Install) -> None:
    before = run_id(pretraining(Denoise()))
    install("brought", "1.0", mine=HERE + "Mine")
    assert run_id(pretraining(Denoise())) == before == "ab70f3b5beb0"
    assert "package" not in to_json(pretraining(Denoise()))["scheme"]
    assert all(package_of(it()) is None for it in SCHEMES.values())
    assert kinds() == {**dict.fromkeys(SCHEMES), "mine": Package("brought", "1.0")}


def test_another_version_is_not_taken_for_the_one_that_made_a_run(install: Install) -> None:
    install("brought", "1.0", mine=HERE + "Mine")
    value = to_json(pretraining(Mine()))
    install("brought", "1.1", mine=HERE + "Mine")
    message = r"(?s)'mine' of brought 1\.0 is not known here, here is that of brought 1\.1.*==1\.0"
    with pytest.raises(RunError, match=message):
        from_json(value)
    value["scheme"] = {"kind": "denoise", "package": {"name": "brought", "version": "1.0"}}
    with pytest.raises(RunError, match="here is that of fewscan itself"):
        from_json(value)
    with pytest.raises(RunError, match=r"(?s)'his' is not known here.*one of: .*mine \(of brought"):
        scheme_from_json({"kind": "his"})


def test_a_study_file_may_name_it(install: Install, tiny_document: dict[str, Any]) -> None:
    install("brought", "1.0", mine=HERE + "Mine")
    wish = tiny_document["pretrain"]["denoise"] | {"scheme": {"kind": "mine", "strength": 2}}
    document = tiny_document | {"pretrain": {"denoise": wish}}
    study = parse_study(document, "it")
    assert study.pretrain["denoise"].scheme == Mine(2.0)
    assert parse_study(yaml.safe_load(dump_study(study)), "it") == study
    wish["scheme"]["strenth"] = 3
    with pytest.raises(StudyError, match=r"scheme\.strenth: unknown key; did you mean 'strength'"):
        parse_study(document, "it")
    wish["scheme"] = {"kind": "nobody's"}
    with pytest.raises(StudyError, match=r"one of: denoise, .*mine \(of brought 1\.0\)"):
        parse_study(document, "it")


def test_our_names_are_taken(install: Install) -> None:
    install("brought", "1.0", denoise=HERE + "Mine")
    message = r"(?s)brought 1\.0 offers .* 'denoise', a name that is fewscan's own.*rename it"
    with pytest.raises(RunError, match=message):
        scheme_class("denoise")


def test_two_packages_cannot_share_a_name(install: Install) -> None:
    install("one", "1.0", mine=HERE + "Mine")
    install("two", "3.0", mine=HERE + "Mine")
    with pytest.raises(RunError, match=r"a name that is of (one 1\.0|two 3\.0)"):
        kinds()


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("mine", "nowhere_to_be_found:Mine", "cannot be loaded .*nowhere_to_be_found"),
        ("mine", HERE + "Absent", "cannot be loaded .*Absent"),
        ("mine", HERE + "HERE", "is no Scheme"),
        ("plain", HERE + "Plain", "is no dataclass"),
        ("thawed", HERE + "Thawed", "is not frozen"),
        ("mine", HERE + "NotItsName", "calls its kind 'another'"),
        ("reserved", HERE + "Reserved", "has a setting named package, which is taken"),
    ],
)
def test_what_is_no_scheme_is_refused_by_name(
    install: Install, kind: str, value: str, message: str
) -> None:
    install("brought", "1.0", **{kind: value})
    assert kind in kinds(), "nothing of theirs is run before it is asked for"
    with pytest.raises(RunError, match=rf"(?s)'{kind}' {message}.*of brought 1\.0.*mend brought"):
        scheme_class(kind)


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "schemes.md").read_text()
    for name in ("quarter_turns.py", "pyproject.toml"):
        assert (EXAMPLE / name).read_text().strip() in page


def test_the_page_names_every_scheme_of_ours() -> None:
    page = (ROOT / "docs" / "schemes.md").read_text()
    assert all(f"| `{kind}` |" in page for kind in SCHEMES)
