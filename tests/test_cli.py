"""The commands that need no cluster, as a person gives them."""

from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from fake_runs import finish_all

from fewscan.experiments.unet import UNet
from fewscan.harness.cli import main
from fewscan.harness.loading import load_plan
from fewscan.storage.errors import DiskFullError


def fewscan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def study(tiny_document: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_document))
    return path


def commands() -> list[tuple[str, click.Command]]:
    assert isinstance(main, click.Group)
    return list(main.commands.items())


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    shown = fewscan(name, "--help")
    assert shown.exit_code == 0
    assert f"fewscan {name}" in shown.output.partition("Example:")[2]
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_phantom_prepare_check(tmp_path: Path) -> None:
    """From nothing to a checked store."""
    scans, store = tmp_path / "scans", tmp_path / "slices.zarr"
    assert fewscan("phantom", scans, "--subjects", 1, "--seed", 3).exit_code == 0
    prepared = fewscan("prepare", scans, store, "--size", 32, "--workers", 1, "--validation", 1)
    assert prepared.exit_code == 0, prepared.output
    assert "1 subjects in" in prepared.output
    checked = fewscan("check", store)
    assert checked.exit_code == 0, checked.output
    assert "slices of 32 × 32".replace("slices of ", "") in checked.output
    assert "none: too few patients" in checked.output


def test_prepare_names_what_it_skips_and_exits_with_1(scans: Path, tmp_path: Path) -> None:
    copy = tmp_path / "scans"
    for source in sorted(scans.iterdir())[:3]:
        (copy / source.name).mkdir(parents=True)
        for file in source.iterdir():
            (copy / source.name / file.name).write_bytes(file.read_bytes())
    broken = copy / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    done = fewscan("prepare", copy, tmp_path / "s.zarr", "--size", 16, "--workers", 1)
    assert done.exit_code == 1
    assert "skipped BraTS2021_00001" in done.output
    assert "2 subjects in" in done.output


def test_plan_lists_runs_and_parents(study: Path) -> None:
    shown = fewscan("plan", study)
    assert shown.exit_code == 0, shown.output
    for run in load_plan(study).runs:
        assert run.run_id in shown.output
    assert "pre-train denoise" in shown.output
    assert "18 runs: 18 missing" in shown.output


def test_plan_says_what_the_study_would_find(study: Path, tiny_document: dict[str, Any]) -> None:
    """From what is stated, from a pilot, and how to have it."""
    nothing = fewscan("plan", study)
    assert "power: not known; state deviations" in nothing.output
    stated = "power={gain: 0.1, seeds: 0.02, patients: 0.05, residual: 0.1, pretrainings: 0}"
    several = ("--set", "finetune.seeds=[0,1,2]")
    shown = fewscan("plan", study, "--set", stated, *several)
    assert shown.exit_code == 0, shown.output
    assert "is found with 80%, one of 0.1 with" in shown.output
    assert "deviations stated" in shown.output
    finetune = tiny_document["finetune"] | {"seeds": [0, 1]}
    folder = str(study.parent / "pilot")
    pilot = study.with_name("pilot.yaml")
    document = tiny_document | {"name": "small", "folder": folder, "finetune": finetune}
    pilot.write_text(yaml.safe_dump(document))
    finish_all(load_plan(pilot))
    shown = fewscan("plan", study, "--pilot", pilot, *several)
    assert "deviations of small's finished runs" in shown.output


def test_report_says_the_labels_that_a_score_takes(
    study: Path, undrawn: None, tiny_document: dict[str, Any]
) -> None:
    finish_all(load_plan(study))
    shown = fewscan("report", study, "--set", "report.reach.binary=0.2")
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    assert "labelled scan does what" in text
    assert "do without: a Dice at the chosen threshold of 0.200" in text


def test_a_finished_study_is_found_from_any_directory(
    tiny_document: dict[str, Any],
    store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    """Its file names store and folder beside itself; each command is given elsewhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere" / "deep"
    home.mkdir()
    elsewhere.mkdir(parents=True)
    (home / "slices.zarr").symlink_to(store_path)
    places = {"store": "slices.zarr", "folder": "out/study"}
    (home / "study.yaml").write_text(yaml.safe_dump(tiny_document | places))
    monkeypatch.chdir(home)
    finish_all(load_plan(Path("study.yaml")))
    monkeypatch.chdir(elsewhere)
    for command in ("plan", "status"):
        shown = fewscan(command, "../../home/study.yaml")
        assert shown.exit_code == 0, shown.output
        assert "18 runs: 18 finished" in shown.output
    assert fewscan("report", "../../home/study.yaml").exit_code == 0
    assert (home / "out" / "study" / "report" / "report.html").exists()
    assert not [*elsewhere.iterdir()], "nothing is written where the command is given"


def test_report_without_results_says_what_to_do(study: Path) -> None:
    shown = fewscan("report", study)
    assert shown.exit_code == 1
    assert "no run of the study has a test result yet" in shown.output
    assert "remedy: `fewscan sweep`" in shown.output


def test_the_doctor_says_what_is_missing_and_how_to_fix_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shown = fewscan("doctor")
    assert shown.exit_code == 1
    assert "✗ sbatch" in shown.output
    assert "✓ submitit" in shown.output


def test_our_errors_have_no_traceback(tmp_path: Path) -> None:
    shown = fewscan("check", tmp_path / "none.zarr")
    assert shown.exit_code == 1
    assert "no such store" in shown.output
    assert "Traceback" not in shown.output


def test_other_errors_keep_theirs(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewscan.harness.loading.make_plan", lambda study: 1 / 0)
    assert isinstance(fewscan("plan", study).exception, ZeroDivisionError)


def test_a_full_disk_is_one_clear_error(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFullError("no space left on the disk", remedy="free space")

    monkeypatch.setattr("fewscan.harness.loading.make_plan", full)
    shown = fewscan("plan", study)
    assert (shown.exit_code, "remedy: free space" in shown.output) == (1, True)


def test_an_imported_checkpoint_can_be_started_from(
    study: Path, tiny_document: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = UNet(4, 4, width=4, depth=2)
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "dae.pt")
    tiny_document["finetune"]["inits"] = ["scratch", "dae"]
    study.write_text(yaml.safe_dump(tiny_document))
    before = fewscan("plan", study)
    assert before.exit_code == 1
    assert "unknown parent 'dae'" in before.output
    assert "import-checkpoint" in before.output
    imported = fewscan("import-checkpoint", tmp_path / "dae.pt", study, "--as", "dae")
    assert imported.exit_code == 0, imported.output
    plan = load_plan(study)
    arms = {run.place.arm.key for run in plan.scores}
    assert arms == {"scratch", "unsupervised: denoise", "dae", "unsupervised: dae"}
    taken = fewscan("import-checkpoint", tmp_path / "dae.pt", study, "--as", "denoise")
    assert "is taken" in taken.output


def test_an_imported_network_that_does_not_fit_fails_with_its_reason(
    study: Path, tiny_document: dict[str, Any], tmp_path: Path
) -> None:
    from fewscan.experiments.devices import Devices
    from fewscan.experiments.stages import run_stage
    from fewscan.storage.errors import RunError

    torch.save({"model_state_dict": UNet(4, 4, 6, 2).state_dict()}, tmp_path / "dae.pt")
    tiny_document["finetune"]["inits"] = ["dae"]
    study.write_text(yaml.safe_dump(tiny_document))
    fewscan("import-checkpoint", tmp_path / "dae.pt", study, "--as", "dae")
    plan = load_plan(study)
    run = next(run for run in plan.runs if run.place.arm.key == "dae")
    folder = plan.folder_of(run)
    plan.record(run).write(folder)
    with pytest.raises(RunError, match="same network"):
        run_stage(folder, Devices())
    assert folder.state() == "failed"


@pytest.mark.parametrize("command", ["phantom {} --subjects 1", "prepare scans {}", "check {}"])
@pytest.mark.parametrize("place", ["/proc/x", "/sys/x", "/dev/null/x"])
def test_a_place_that_takes_no_files_is_an_error_of_one_line(command: str, place: str) -> None:
    done = CliRunner().invoke(main, command.format(place).split())
    assert done.exit_code == 1
    assert "error: " in done.output
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_a_part_of_a_study_is_planned(study: Path) -> None:
    whole = fewscan("plan", study, "--runs").output.splitlines()
    part = fewscan("plan", study, "--runs", "--only", "scratch", "--only", "labels=1").output
    assert len(part.splitlines()) == 5, "a head, and two runs for each target"
    assert {*part.splitlines()} < {*whole}
    refused = fewscan("plan", study, "--only", "nothing")
    assert refused.exit_code == 1
    assert "one of: unsupervised: denoise, scratch, denoise" in refused.output
