"""`fewscan init`: what it writes fits the store, loads, and is planned; what is there stays."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_nnunet import write_nnunet, write_simplest
from fake_scans import write_subject

from fewscan.harness.cli import main
from fewscan.harness.first_study import Device, label_counts, shipped, write_first_study
from fewscan.harness.loading import load_plan
from fewscan.harness.plan import Plan
from fewscan.storage.catalog import Selection
from fewscan.storage.errors import StudyError
from fewscan.storage.prepare import prepare

STUDY_FILES = Path(__file__).parents[1] / "experiments"


def brats(folder: Path) -> None:
    for n in range(20):
        write_subject(folder, f"BraTS-GLI-{n:05d}-000", n)


def partly_labelled(folder: Path) -> None:
    for n in range(24):
        place = write_subject(folder, f"BraTS-GLI-{n:05d}-000", n)
        if n >= 20:
            next(place.glob("*seg*")).unlink()


def first_plan(folder: Path, write: Callable[[Path], object], device: Device = "cpu") -> Plan:
    """Of the study file that is written for scans, prepared as a person would."""
    write(folder / "scans")
    store = folder / "stores" / "scans.zarr"
    prepare(folder / "scans", store, 16, 1, selection=Selection(unlabelled=True), validation=1)
    write_first_study(store, folder / "mine.yaml", device)
    return load_plan(folder / "mine.yaml")


@pytest.mark.parametrize(
    ("write", "targets", "slices", "baseline"),
    [
        (brats, ("binary", "multiclass"), "healthy", "channel flair"),
        (partly_labelled, ("binary", "multiclass"), "all", "channel flair"),
        (lambda at: write_nnunet(at, 20), ("binary", "multiclass"), "healthy", "channel T2"),
        (lambda at: write_simplest(at, 20), ("binary",), "healthy", "channel T2"),
    ],
    ids=["brats", "unlabelled", "nnunet", "one channel and class"],
)
def test_what_is_written_fits_the_store(
    write: Callable[[Path], object],
    targets: tuple[str, ...],
    slices: str,
    baseline: str,
    tmp_path: Path,
) -> None:
    plan = first_plan(tmp_path, write)
    study = plan.study
    assert study.finetune.targets == targets
    assert study.pretrain["denoise"].slices == slices
    assert study.baselines[-1] == baseline
    assert study.finetune.label_counts[:3] == (1, 2, 4)
    assert {run.place.labels for run in plan.grid} >= {1, 2, 4, len(plan.split.train)}
    assert study.finetune.selection == "within", "one validation scan chooses nothing"
    assert (study.network.width, study.network.depth) == (16, 4)
    assert study.resources.device == "cpu"
    assert study.folder == tmp_path / "studies" / "mine"
    text = (tmp_path / "mine.yaml").read_text()
    assert "store: stores/scans.zarr " in text, "relative to the file"
    assert max(map(len, text.splitlines())) <= 120


def test_enough_validation_scans_choose_and_a_gpu_has_the_published_width(
    scans: Path, tmp_path: Path
) -> None:
    store = tmp_path / "more.zarr"
    prepare(scans, store, 24, 1, validation=3)
    write_first_study(store, tmp_path / "few.yaml", "cuda")
    few = load_plan(tmp_path / "few.yaml").study
    assert few.finetune.selection == "within"
    assert (few.network.width, few.network.depth) == (64, 4)
    split = tmp_path / "split.yaml"
    ids = [f"BraTS2021_{n:05d}" for n in range(24)]
    split.write_text(f"train: {ids[:12]}\nvalidation: {ids[12:18]}\ntest: {ids[18:]}\n")
    prepare(scans, tmp_path / "given.zarr", 20, 1, split=split)
    write_first_study(tmp_path / "given.zarr", tmp_path / "given.yaml", "cuda")
    study = load_plan(tmp_path / "given.yaml").study
    assert study.finetune.selection == "validation"
    assert study.network.depth == 3, "20 pixels can be halved twice"
    assert (study.resources.device, study.resources.finetune.gpu_share) == ("cuda", 0.5)


@pytest.mark.parametrize(
    ("train", "expected"),
    [(1, "all"), (2, "1 all"), (18, "1 2 4 8 all"), (938, "1 2 4 8 16 32 64 128 256 512 all")],
)
def test_label_counts_double_as_in_the_paper(train: int, expected: str) -> None:
    assert label_counts(train) == expected.split()


def fewscan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(it) for it in arguments])


def test_init_says_what_to_do_next_and_replaces_nothing(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = fewscan("init", store_path)
    assert done.exit_code == 0, done.output
    file = tmp_path / f"{store_path.stem}.yaml"
    assert f"fewscan plan {file.name} " in done.output
    assert f"fewscan sweep {file.name} " in done.output
    assert load_plan(file).store.path == store_path
    file.write_text("mine")
    for more in ([], ["--from", "paper"]):
        again = fewscan("init", store_path, file, *more)
        assert again.exit_code == 1
        assert "is there already" in again.output
    assert file.read_text() == "mine"


def test_a_store_that_no_study_can_run_on_gets_no_file(store_path: Path, tmp_path: Path) -> None:
    store = tmp_path / "two.zarr"
    scans = tmp_path / "scans"
    for n in range(2):
        write_subject(scans, f"BraTS-GLI-{n:05d}-000", n)
    prepare(scans, store, 16, 1)
    for wrong in (store, tmp_path / "none.zarr"):
        done = fewscan("init", wrong, tmp_path / "it.yaml")
        assert done.exit_code == 1
        assert "remedy:" in done.output
        assert not (tmp_path / "it.yaml").exists()


def test_names_that_yaml_would_misread_are_quoted(store_path: Path, tmp_path: Path) -> None:
    for name in ("2021", "on: what #2", "null"):
        store = tmp_path / f"{name}.zarr"
        shutil.copytree(store_path, store)
        write_first_study(store, tmp_path / f"{name}.yaml", "cpu")
        plan = load_plan(tmp_path / f"{name}.yaml")
        assert (plan.study.name, plan.store.path) == (name, store)


def test_shipped_study_files_are_copied_with_the_store_and_a_folder(
    store_path: Path, tmp_path: Path
) -> None:
    assert shipped() == sorted(it.stem for it in STUDY_FILES.glob("*.yaml"))
    out = tmp_path / "sub" / "mine.yaml"
    out.parent.mkdir()
    done = fewscan("init", store_path, out, "--from", "demo")
    assert done.exit_code == 0, done.output
    assert "note:" not in done.output
    plan = load_plan(out)
    assert (plan.study.name, plan.store.path) == ("mine", store_path)
    assert plan.study.folder == out.parent / "studies" / "mine"
    original = (STUDY_FILES / "demo.yaml").read_text()
    places = re.compile("^(name|store|folder):.*\n", re.MULTILINE)
    assert places.sub("", out.read_text()) == places.sub("", original)


def test_a_copy_that_does_not_fit_says_why(store_path: Path, tmp_path: Path) -> None:
    done = fewscan("init", store_path, tmp_path / "paper.yaml", "--from", "paper")
    assert done.exit_code == 0
    assert "note: on this store it cannot run as it stands" in done.output
    assert "cannot be halved" in done.output or "label count 938 is larger" in done.output
    with pytest.raises(StudyError):
        load_plan(tmp_path / "paper.yaml")


def test_an_unknown_name_lists_what_there_is(store_path: Path, tmp_path: Path) -> None:
    done = fewscan("init", store_path, tmp_path / "it.yaml", "--from", "papers")
    assert done.exit_code == 1
    assert f"one of: {', '.join(shipped())}" in done.output
    assert not (tmp_path / "it.yaml").exists()
