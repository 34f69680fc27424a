"""Set-ups that cannot work, on a real Slurm: one clear error, no job that comes back for ever."""

import subprocess
import sys
from pathlib import Path

import lab
import pytest
from conftest import MakeStudy
from lab_study import SLURM

from fewscan.slurm import Settings
from fewscan.slurm.doctor import checks
from fewscan.storage.errors import ClusterError, DiskFullError

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
NOBODY = 65534


def test_a_setup_line_that_fails_is_named(make_study: MakeStudy) -> None:
    study = make_study(setup=["module load nonsense", "echo never reached"])
    study.launch()
    now = study.until_ended("failed")
    assert "setup line failed: module load nonsense" in now.failures[0].text
    assert len(logs(study.cluster)) == 1


def test_workers_that_die_at_once_are_not_resubmitted_for_ever(make_study: MakeStudy) -> None:
    only_on_workers = 'case "$SLURM_JOB_NAME" in *worker) false;; esac'
    study = make_study(setup=[only_on_workers])
    study.launch()
    failure = study.until_ended("failed").failures[0]
    assert "in a row ended before they could work" in failure.text
    assert "setup line failed: false" in failure.text
    assert failure.log is not None
    assert failure.log.exists()
    settings = Settings(**SLURM)
    assert len(logs(study.cluster)) <= 1 + settings.early_deaths + settings.max_workers


def test_a_partition_that_does_not_exist_is_named_at_once(make_study: MakeStudy) -> None:
    with pytest.raises(ClusterError, match="invalid partition") as caught:
        make_study(partition="nonsense").launch()
    assert "sbatch" in str(caught.value)


def test_the_doctor_finds_the_lab_healthy(make_study: MakeStudy) -> None:
    study = make_study()
    told = checks(study.plan.folder.path, study.plan.study.slurm)
    assert all(check.ok for check in told), told
    assert {"clocks", "shared disk", "n1: shared disk"} <= {check.name for check in told}


def test_a_launch_on_a_full_disk_is_refused(small_disk: Path, make_study: MakeStudy) -> None:
    """One that fills later is waited for; see `test_lab_monkey.py`."""
    study = make_study(disk=small_disk)
    lab.fill()
    with pytest.raises(DiskFullError, match="no space left"):
        study.launch()
    assert not lab.states()


def test_a_folder_without_write_permission_is_named(make_study: MakeStudy) -> None:
    """Root may write anywhere, so another user tries, who loads our code while still root."""
    study = make_study()
    study.plan.folder.path.chmod(0o755)
    program = f"""
import os
from pathlib import Path
from fewscan.harness.cli import main
from fewscan.harness.on_slurm import launch_sweep
from fewscan.harness.loading import load_plan
from fewscan.storage.errors import FewscanError
plan = load_plan(Path("{study.file}"))
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
try:
    launch_sweep(plan)
except FewscanError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "cannot write" in done.stdout, done
    assert str(study.plan.folder.path) in done.stdout
    assert not lab.states()


def logs(cluster: Path) -> list[Path]:
    """The outputs of all jobs that there have been."""
    return list((cluster / "logs").glob("*_log.out"))
