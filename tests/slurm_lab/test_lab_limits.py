"""The cluster on a real Slurm: time limits, broken set-ups, neighbours, strangers."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import lab
import pytest
from toy_driver import CHECKPOINT_EVERY
from toy_study import Study, until

from slurm import Settings, launch, status
from slurm.doctor import checks
from storage.errors import ClusterError, DiskFullError

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
MakeStudy = Callable[..., Study]


def test_every_job_runs_into_its_time_limit_more_than_once(study: MakeStudy) -> None:
    toy = study(units=2, steps=200, step_s=0.3, time_limit_min=1, max_workers=1)
    toy.launch()
    toy.until(lambda s: s.status().generation >= 3, wait_s=400)
    toy.finish(wait_s=400)
    assert toy.lost_steps() <= 2 * CHECKPOINT_EVERY * toy.status().generation


def test_the_first_worker_may_host_the_head(study: MakeStudy) -> None:
    toy = study(units=4, head="worker", max_workers=2)
    job = toy.launch()
    toy.finish()
    assert job in {line["node"] for line in toy.trace()}


def test_cancelled_and_launched_again_it_goes_on(study: MakeStudy) -> None:
    toy = study(units=6, steps=60)
    job = toy.launch()
    assert toy.launch() == job  # the same command on a running study changes nothing
    toy.until(lambda s: len(s.trace()) > 30)
    toy.cancel()
    lab.await_idle()
    assert toy.status().state == "cancelled"
    before = len(toy.trace())
    assert toy.launch() != job
    toy.finish()
    assert before > 30
    assert toy.lost_steps() <= 6 * CHECKPOINT_EVERY


def test_idle_workers_are_released(study: MakeStudy) -> None:
    toy = study(units=1, steps=300)
    toy.launch()
    (toy.folder / "demand.json").write_text('{"workers": 3}')
    toy.until(lambda s: s.status().wanted == 1 and len(s.status().workers) == 1)
    toy.finish()
    assert toy.lost_steps() == 0


def test_a_setup_line_that_fails_is_named(study: MakeStudy) -> None:
    toy = study(setup=["export FINE=1", "module load nonsense", "echo never reached"])
    toy.launch()
    toy.until(lambda s: s.status().state == "lost")
    assert "setup line failed: module load nonsense" in toy.status().failures[0].text
    assert not lab.slurm("squeue", "--noheader")


def test_workers_that_die_at_once_are_not_resubmitted_for_ever(study: MakeStudy) -> None:
    only_on_workers = 'case "$SLURM_JOB_NAME" in *worker) false;; esac'
    toy = study(setup=[only_on_workers])
    toy.launch()
    toy.until(lambda s: s.status().state == "failed")
    failure = toy.status().failures[0]
    assert "in a row ended before they could work" in failure.text
    assert "setup line failed: false" in failure.text
    assert len(list((toy.folder / "logs").glob("*_log.out"))) <= 1 + 6


def test_a_partition_that_does_not_exist_is_told_at_once(study: MakeStudy) -> None:
    with pytest.raises(ClusterError, match="invalid partition") as caught:
        study(partition="nonsense").launch()
    assert "sbatch" in str(caught.value)


def test_a_driver_that_fails_ends_everything_with_its_last_words(study: MakeStudy) -> None:
    toy = study()
    command = [sys.executable, "-c", "raise SystemExit('no such data')"]
    launch(command, toy.folder, toy.settings)
    toy.until(lambda s: s.status().state == "failed")
    assert "no such data" in toy.status().failures[0].text
    assert toy.status().failures[0].log == toy.folder / "logs" / "driver.log"


def test_the_doctor_finds_the_lab_healthy(study: MakeStudy) -> None:
    toy = study()
    toy.folder.mkdir()
    told = checks(toy.folder, toy.settings)
    assert all(check.ok for check in told), told
    assert {"clocks", "shared disk", "n1: shared disk"} <= {check.name for check in told}


@pytest.fixture
def small_disk(slurm_lab: None) -> Iterator[Path]:
    """A shared disk of a few megabytes, empty again afterwards."""
    yield lab.SMALL
    lab.cancel_everything()
    lab.await_idle()
    for entry in lab.SMALL.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def test_a_disk_that_is_full_is_told_at_once(small_disk: Path) -> None:
    fill(small_disk / "filler")
    with pytest.raises(DiskFullError, match="no space left"):
        launch(["true"], small_disk / "study", Settings())


def test_a_disk_that_fills_up_ends_everything(small_disk: Path) -> None:
    folder = small_disk / "study"
    program = f"open('{small_disk}/filler', 'wb').write(bytes({lab.SMALL_MB} << 20))"
    launch([sys.executable, "-c", program], folder, Settings(poll_s=3, max_workers=2))
    until(lambda: status(folder).state in ("failed", "lost"))
    until(lambda: not lab.slurm("squeue", "--noheader"))
    now = status(folder)
    assert any("disk is full" in each.text for each in now.failures), now
    assert len(list((folder / "logs").glob("*_submission.sh"))) <= 4


def test_a_folder_without_write_permission_is_named(slurm_lab: None, tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from slurm import Settings, launch, status
from slurm.doctor import checks
os.setuid(65534)
launch(["true"], Path("{lab.SHARED}/not/mine"), Settings())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "cannot write here" in done.stderr
    assert f"{lab.SHARED}/not" in done.stderr


def test_two_studies_and_a_strangers_ray_share_the_nodes(study: MakeStudy) -> None:
    stranger = start_strangers_ray("n1")
    try:
        pair = [study(units=4, cpus=1, max_workers=2) for _ in range(2)]
        for each in pair:
            each.launch()
        for each in pair:
            each.finish()
        jobs = [{line["node"] for line in each.trace()} for each in pair]
        assert jobs[0].isdisjoint(jobs[1])
        assert stranger.poll() is None  # nobody ended it
    finally:
        lab.end_tree(stranger)
        subprocess.run(lab.on_node("n1", ["rm", "-rf", "/tmp/ray"]))


def test_a_client_without_the_token_is_refused(study: MakeStudy) -> None:
    toy = study(units=2, steps=100)
    toy.launch()
    toy.until(lambda s: s.trace())
    address = (toy.folder / "head.json").read_text().split('"address": "')[1].split('"')[0]
    node = toy.status().head.node
    without = connect(node, address, {})
    assert "connected" not in without
    assert "token" in without.lower()
    wrong = connect(node, address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64})
    assert "connected" not in wrong
    token = (toy.folder / "token").read_text()
    assert "connected" in connect(
        node, address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    )
    assert (toy.folder / "token").stat().st_mode & 0o777 == 0o600
    toy.finish()


def connect(node: str, address: str, variables: dict[str, str]) -> str:
    """What a client on `node` says that asks the control store for its nodes."""
    program = f"""
import ray
client = ray._raylet.GcsClient(address="{address}")
print(len(client.get_cluster_resource_state()) > 0 and "connected")
"""
    done = subprocess.run(
        lab.on_node(node, [sys.executable, "-c", program]),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    return done.stdout + done.stderr


def start_strangers_ray(node: str) -> subprocess.Popen[bytes]:
    """Somebody else's Ray, on its default ports and in its default folder."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(lab.on_node(node, command), start_new_session=True, **quiet)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open("wb") as file:
        for _ in range(lab.SMALL_MB << 10):
            file.write(bytes(1024))
            file.flush()
