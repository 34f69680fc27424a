"""The shell lines around a job, run by a shell: nothing of others is touched when they fail."""

import os
import subprocess
from pathlib import Path

import pytest

from fewscan.slurm import job_script
from fewscan.slurm.session import TEMPORARY


@pytest.fixture
def removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `rm` is asked to remove, a line a word; it removes nothing."""
    log = tmp_path / "removed"
    log.touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rm").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {log}\n')
    (tmp_path / "bin" / "rm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return log


def shell(*lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash"], input="\n".join(lines), capture_output=True, text=True)


def test_a_disk_without_room_for_the_folder_ends_the_job_and_is_named(removed: Path) -> None:
    before = job_script.lines_before("/nowhere", "ab12-7", ["touch /never"])
    done = shell(*before, "echo it ran", *job_script.lines_after())
    assert done.returncode != 0
    assert "setup line failed: " in done.stderr
    assert "mktemp" in done.stderr
    assert "it ran" not in done.stdout
    assert "/dev/shm/" not in removed.read_text().split()


def test_without_a_folder_nothing_is_removed(removed: Path) -> None:
    done = shell(f"export {TEMPORARY}=", "(exit 3)", *job_script.lines_after())
    assert done.returncode == 3
    assert removed.read_text() == ""


def test_the_folder_and_its_namesake_in_memory_are_removed(removed: Path) -> None:
    done = shell(*job_script.lines_before("/tmp", "ab12-7", []), f"echo ${TEMPORARY}",
                 *job_script.lines_after())  # fmt: skip
    folder = Path(done.stdout.strip())
    assert done.returncode == 0
    assert removed.read_text().split()[-2:] == [str(folder), f"/dev/shm/{folder.name}"]
    folder.rmdir()


def test_a_line_of_the_user_that_fails_leaves_no_folder(removed: Path) -> None:
    done = shell(*job_script.lines_before("/tmp", "ab12-7", [f"echo ${TEMPORARY}", "false"]))
    assert "setup line failed: false" in done.stderr
    folder = Path(done.stdout.strip())
    assert removed.read_text().split() == ["-rf", str(folder)]
    folder.rmdir()
