"""A newcomer who types what README and docs/ print, page by page, in a place with small data.

The names are those of the pages, the data are tiny, and study files keep their arms and lose their
budget (`in_small`). Capitals in a command (STUDY, RUN) are what a reader would put there. What is
not typed stands in `NOT_TYPED`, with the reason; the rest of what `test_docs.commands` finds is.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import fake_slurm
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from fake_decathlon import write_task
from fake_nnunet import write_nnunet
from fake_scans import AFFINE, fake_images, write_subject, write_subjects
from test_docs import PAGES, commands
from tiny import run_in_process, tiny_values
from whole_sweep import FEWSCAN

from fewscan.experiments.unet import UNet
from fewscan.harness.cli import main
from fewscan.harness.loading import load_plan
from fewscan.storage.nifti import write_nifti
from fewscan.storage.prepare import prepare

ROOT = Path(__file__).parents[1]
LATER = "takes hours, and the page shows what came of it: it is planned instead"
NOT_TYPED = {
    "fewscan sweep experiments/paper.yaml": "docs/brats.md sweeps it",
    "fewscan table FOLDER OUT.csv": "docs/data.md types whole ones",
    "fewscan doctor [STUDY]": "docs/cluster.md types it, where there is a Slurm",
    "fewscan cancel STUDY": "docs/cluster.md types it, where something was launched",
    "fewscan sweep experiments/schemes_hippocampus.yaml": LATER,
    "fewscan sweep experiments/schemes_small.yaml": LATER,
    "fewscan sweep experiments/volumes_small.yaml": LATER,
    "fewscan sweep experiments/slices_small.yaml": LATER,
    "fewscan sweep hippocampus64.yaml": LATER,
    "fewscan report hippocampus64.yaml": "of what is planned there is no report",
    "fewscan report experiments/slices_small.yaml": "of what is planned there is no report",
}
IN_A_PROCESS = ("sweep", "ui")
"""Commands that need one of their own."""
Words = Mapping[str, object]
"""What stands on the page → what a reader would type there; of an iterator the next one."""


def test_every_page_with_commands_has_its_newcomer() -> None:
    there = {page.stem for page in PAGES if [*commands(page)]}
    assert there == {it.removeprefix("test_page_") for it in globals() if "test_page_" in it}
    every = [command for page in PAGES for command in commands(page)]
    assert all(any(it.startswith(known) for it in every) for known in NOT_TYPED)


def walk(
    page: Path, words: Words, before: Mapping[str, Callable[[], object]] | None = None
) -> list[str]:
    """Type the commands of a page, in its order; what each prints.

    `before` one that begins so, something else is done.
    """
    said = []
    for command in commands(page):
        for start, action in (before or {}).items():
            if command.startswith(start):
                action()
        why = next((it for known, it in NOT_TYPED.items() if command.startswith(known)), "")
        if why == LATER:
            command = command.replace("sweep", "plan", 1)
        if why in ("", LATER):
            said.append(typed(command, words))
    return said


def typed(command: str, words: Words) -> str:
    """What a command prints. Words in brackets may be left out, and are."""

    def meant(found: re.Match[str]) -> str:
        value = words.get(found[0], found[0])
        return str(next(value) if isinstance(value, Iterator) else value)

    text = re.sub(r"\s\[[^\]]*[A-Za-z-]{2,}[^\]]*\](?=\s|$)", "", command)
    for printed, real in words.items():
        if not printed.isupper():
            text = text.replace(printed, str(real))
    _, *arguments = shlex.split(re.sub(r"(?<![\w*-])[A-Z]+\b(?![-=\d])", meant, text))
    if arguments[0] in IN_A_PROCESS:
        return in_a_process(arguments)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, f"{arguments}\n{done.output}\n{done.exception!r}"
    return done.output


def in_a_process(arguments: list[str]) -> str:
    """What it prints; `ui` gets Ctrl-C once it has printed its links."""
    command = [str(FEWSCAN), *arguments]
    said = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if arguments[0] == "ui" and "Ctrl-C" in line:
                link = re.findall(r"http://\S+?(?=#)", said)[0]
                await_page(link)
                process.send_signal(signal.SIGINT)
    assert process.returncode == 0, said
    return said


def await_page(link: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(link) as page:
                assert b"MLflow" in page.read()
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, link
            time.sleep(0.1)


def in_small(study: Path) -> None:
    """The same arms, with a network and a budget for a test."""
    document = yaml.safe_load(study.read_text())
    training = {"iterations": 2, "validate_every": 2, "batch_size": 2, "precision": "fp32"}
    document["network"] = document.get("network", {}) | {"width": 2}
    for wish in document.get("pretrain", {}).values():
        wish |= {"training": wish["training"] | training, "seeds": [0]}
        wish.pop("tune", None)
    grid = {"label_counts": [1, 4, "all"], "seeds": [0], "targets": ["binary"]}
    document["finetune"] |= grid | {"training": document["finetune"]["training"] | training}
    for key in ("tune", "iterations"):
        document["finetune"].pop(key, None)
    document |= {
        "evaluation": {"nsd_tolerance_mm": None},  # MONAI takes seconds to load
        "baselines": ["supervised"],
        "resources": {"device": "cpu"},
    }
    study.write_text(yaml.safe_dump(document))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the newcomer stands, with the study files of the clone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    for study in (ROOT / "experiments").glob("*.yaml"):
        shutil.copy(study, "experiments")
    return tmp_path


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brats") / "BraTS2021_Training_Data"
    write_subjects(folder, 26)
    return folder


@pytest.fixture(scope="module")
def finished(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished studies of one store: mine.yaml, with ensembles, and other.yaml."""
    folder = tmp_path_factory.mktemp("finished")
    prepare(scans, folder / "scans.zarr", size=16, workers=1, validation=1)
    for name, init in (("mine", "denoise"), ("other", "dae")):
        document = tiny_values(folder / "scans.zarr", folder / name)
        document["pretrain"] = {init: document["pretrain"]["denoise"] | {"seeds": [len(name)]}}
        document["finetune"] |= {"label_counts": [4], "inits": ["scratch", init]}
        document["finetune"] |= {"targets": ["binary"]}
        if name == "mine":
            document["finetune"]["members"] = 5
        document |= {"baselines": [], "evaluation": {"nsd_tolerance_mm": None}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document | {"name": name}))
        plan = load_plan(folder / f"{name}.yaml")
        run_in_process(plan, plan.runs)
    return folder


@pytest.fixture
def words(finished: Path, scans: Path, place: Path) -> dict[str, object]:
    """What a reader with a finished study would type."""
    for name in ("mine", "other"):
        shutil.copytree(finished / name, place / name)
        text = (finished / f"{name}.yaml").read_text()
        (place / f"{name}.yaml").write_text(text.replace(str(finished / name), str(place / name)))
    plans = [load_plan(place / f"{name}.yaml") for name in ("mine", "other")]
    runs = [
        plan.folder_of(run).path
        for plan in plans
        for run in plan.grid
        if run.place.arm.networks == 1 and (run.place.arm.init or plan is plans[0])
    ]
    some = place / "some"
    for scan in sorted(scans.iterdir())[:2]:
        shutil.copytree(scan, some / scan.name)
    return {
        "STUDY": place / "mine.yaml",
        "RUN": iter(runs),
        "SCANS": some,
        "SCAN": next(some.iterdir()),
        "OUT": (str(place / f"out{n}") for n in range(100)),
    }


def test_page_README(place: Path, scans: Path, words: dict[str, object]) -> None:
    page = ROOT / "README.md"
    cases = write_nnunet(place / "nnUNet_raw" / "Dataset123_Mine", 12)
    parts = {"train": cases[:6], "validation": cases[6:8], "test": cases[8:]}
    (place / re.findall(r"--split (\S+)", page.read_text())[0]).write_text(json.dumps(parts))
    write_subject(place, "BraTS2021_01310")
    torch.manual_seed(0)
    network = UNet(in_channels=4, out_channels=4, width=4, depth=2)
    torch.save({"model_state_dict": network.state_dict()}, place / "dae.pt")
    (place / "mine.yaml").rename(place / "study.yaml")
    run = next(words["RUN"])  # type: ignore[call-overload]
    said = walk(
        page,
        words
        | {
            "/data/BraTS2021_Training_Data": scans,
            "studies/paper/runs/0123456789ab": run,
            "STUDY": place / "study.yaml",
            "RUN": run,
            "STORE": place / "new.zarr",
            "FILE": place / "dae.pt",
            "NAME": "published",
            "SCANS": scans,
            "N": 1,
        },
        {"fewscan plan experiments": lambda: in_small(place / "experiments" / "paper.yaml")},
    )
    assert (place / "lesion.nii.gz").exists()
    assert {"mine.yaml", "new.yaml"} <= {it.name for it in place.iterdir()}
    assert len(said) == len([*commands(page)]) - 4


def test_page_brats(place: Path, scans: Path) -> None:
    words = {"BraTS2021_Training_Data": scans}
    small = {"fewscan plan": lambda: in_small(place / "paper.yaml")}
    *_, part, rest = walk(ROOT / "docs" / "brats.md", words, small)
    plan = load_plan(place / "paper.yaml")
    assert all(plan.folder_of(it).result.exists() for it in plan.runs)
    assert "figure.png" in rest.replace("\n", "")
    assert part != rest


def test_page_cluster(place: Path, words: dict[str, object], slurm: Path) -> None:
    document = yaml.safe_load((place / "mine.yaml").read_text())
    document["slurm"] = {"partition": "main", "cpus": 1, "max_workers": 1, "poll_s": 1}
    document["slurm"] |= {"memory_gb": 1, "time_limit_min": 10}
    document["finetune"]["seeds"] = [0, 1]
    (place / "my.yaml").write_text(yaml.safe_dump(document))
    doctor, _, swept, status, cancelled = walk(ROOT / "docs" / "cluster.md", words)[:5]
    assert "✗" not in doctor
    assert "is the head" in swept
    assert "Slurm: " in status
    assert "are cancelled" in cancelled
    assert fake_slurm.jobs(slurm)


def test_page_data(place: Path) -> None:
    def scan(number: int, *names: str) -> None:
        channels, classes = fake_images(number)
        labels = np.where(classes == 3, 4, classes).astype(np.uint8)
        for name, voxels in zip(names, [*channels[: len(names) - 1], labels], strict=True):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            write_nifti(place / name, voxels, AFFINE)

    for n in range(26):
        upenn, ucsf = f"UPENN-GBM/UPENN-GBM-{n:05d}_11", f"UCSF-PDGM/UCSF-PDGM-{n:04d}"
        scan(n, f"{upenn}_FLAIR.nii.gz", f"{upenn}_T1GD.nii.gz", f"{upenn}_segm.nii.gz")
        scan(n, f"{ucsf}_FLAIR_bias.nii.gz", f"{ucsf}_tumor_segmentation.nii.gz")
        scan(n, f"mine/a/images/{n}.nii.gz", f"mine/a/masks/{n}.nii.gz")
    walk(ROOT / "docs" / "data.md", {})
    assert (place / "upenn.zarr").exists()
    for name in ("upenn", "ucsf", "mine"):
        assert len((place / f"{name}.csv").read_text().splitlines()) > 26


def test_page_ensembles(place: Path, words: dict[str, object]) -> None:
    said = walk(ROOT / "docs" / "ensembles.md", words)
    assert "5 networks" in said[0]
    outputs = [[*(place / f"out{n}").glob("*.nii.gz")] for n in range(3)]
    assert all(len(it) == 2 for it in outputs)


def test_page_mlflow(place: Path, words: dict[str, object]) -> None:
    words |= {"http://mlflow.lab:5000": f"sqlite:///{place}/elsewhere.db"}
    typed("fewscan sync STUDY", words)  # as its sweep would have done
    served, _, registered = walk(ROOT / "docs" / "mlflow.md", words)
    assert "http://127.0.0.1" in served
    assert "the best binary model" in registered
    assert (place / "elsewhere.db").exists()


def test_page_results(place: Path, scans: Path) -> None:
    ids = [f"hippocampus_{n:03d}" for n in range(26)]
    write_task(place / "Task04_Hippocampus", ids)
    prepare(scans, place / "demo" / "slices.zarr", size=48, workers=1)  # what `make demo` leaves
    for study in (place / "experiments").glob("*.yaml"):
        in_small(study)
    small = {"fewscan sweep hippocampus64": lambda: in_small(place / "hippocampus64.yaml")}
    assert len(walk(ROOT / "docs" / "results.md", {}, small)) == 9
