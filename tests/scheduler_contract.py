"""The contract of `Scheduler` as tests; every implementation's test file inherits them.

    class TestMine(SchedulerContract):
        @pytest.fixture
        def make(self, tmp_path) -> Iterator[MakeScheduler]:
            ...  # jobs run for real, here; each call makes one for a folder of its own

Jobs are short Python programs. What they see they write into `seen` files.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewscan.slurm.folder import Folder
from fewscan.slurm.scheduler import PENDING, RUNNING, ClusterJob, Scheduler
from fewscan.slurm.settings import Settings
from fewscan.storage.errors import ClusterError

MakeScheduler = Callable[[Folder, Settings], Scheduler]
QUICK: dict[str, Any] = {"signal_delay_s": 30, "time_limit_min": 5}
LOOK = """
import json, os, signal, sys, time
from dataclasses import asdict
from pathlib import Path
from fewscan.slurm.folder import Folder
from fewscan.slurm.processes import become_supervisor, stop_signal
from fewscan.slurm.schedulers import SCHEDULERS
from fewscan.slurm.settings import Settings
from fewscan.storage.atomic import write_json
become_supervisor()
root, name, seen, wait_s = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
print("a job was here", flush=True)
scheduler = SCHEDULERS[name](Folder(root), Settings(**json.loads(sys.argv[5])))
share = asdict(scheduler.allocation("worker"))
write_json(seen, {"variables": dict(os.environ), "share": share, "path": sys.path})
if wait_s:
    received = stop_signal(wait_s)
    write_json(seen.with_suffix(".signal"), received and received.name)
    if received and "requeue" in sys.argv:
        scheduler.requeue(share["job"])
"""


def until(what: Callable[[], Any], wait_s: float = 60) -> Any:
    deadline = time.monotonic() + wait_s
    while not (value := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


class SchedulerContract:
    """Inherit it; give `make` and `name`."""

    name: str
    """In the registry; the jobs look it up there."""

    @pytest.fixture
    def make(self) -> MakeScheduler:
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Folder:
        folder = Folder(tmp_path / "cluster")
        folder.prepare()
        return folder

    def program(self, folder: Folder, seen: Path, wait_s: float = 0, *words: str) -> list[str]:
        values = [str(folder.root), self.name, str(seen), f"{wait_s}", json.dumps(QUICK), *words]
        return [sys.executable, "-P", "-c", LOOK, *values]

    def test_a_job_runs_its_command_with_a_folder_of_its_own_and_leaves_nothing(
        self, make: MakeScheduler, folder: Folder, tmp_path: Path
    ) -> None:
        scheduler, seen = make(folder, Settings(**QUICK)), tmp_path / "seen"
        job = scheduler.submit("worker", self.program(folder, seen))
        until(seen.exists)
        until(lambda: gone(scheduler, job))
        variables = json.loads(seen.read_text())["variables"]
        temporary = Path(variables["ELASTIC_TEMPORARY"])
        assert len(str(temporary)) <= 45
        assert not temporary.exists()
        assert abs(float(variables["ELASTIC_JOB_STARTED"]) - time.time()) < 120
        assert scheduler.log_of(job).parent == folder.logs
        assert "a job was here" in scheduler.log_of(job).read_text()

    def test_a_job_knows_what_it_was_given(
        self, make: MakeScheduler, folder: Folder, tmp_path: Path
    ) -> None:
        scheduler, seen = make(folder, Settings(**QUICK)), tmp_path / "seen"
        job = scheduler.submit("worker", self.program(folder, seen))
        until(seen.exists)
        share = json.loads(seen.read_text())["share"]
        assert (share["job"], share["cpus"], share["gpus"]) == (job, 1, 0)
        assert share["node"]
        assert min(share["memory"], share["object_store"]) > 0
        left_s = share["ends_unix"] - time.time()
        assert 0 < left_s <= 60 * QUICK["time_limit_min"]

    def test_it_sees_the_jobs_of_its_cluster_and_their_roles_and_no_others(
        self, make: MakeScheduler, folder: Folder, tmp_path: Path
    ) -> None:
        ours, other = make(folder, Settings(**QUICK)), Folder(tmp_path / "other")
        other.prepare()
        theirs = make(other, Settings(**QUICK))
        jobs = {
            ours.submit("head", self.program(folder, tmp_path / "head", 60)): "head",
            ours.submit("worker", self.program(folder, tmp_path / "worker", 60)): "worker",
        }
        stranger = theirs.submit("worker", self.program(other, tmp_path / "stranger", 60))
        assert {job.id: job.role for job in ours.look()} == jobs
        assert [job.id for job in theirs.look()] == [stranger]
        until(lambda: all(job.state == RUNNING and job.node for job in ours.look()))
        assert not any(job.over or job.held for job in ours.look())
        ours.cancel(jobs)
        until(lambda: not ours.look())
        assert theirs.look()
        theirs.cancel([stranger])

    def test_a_cancelled_job_is_asked_to_end_first_and_stays_ended(
        self, make: MakeScheduler, folder: Folder, tmp_path: Path
    ) -> None:
        scheduler, seen = make(folder, Settings(**QUICK)), tmp_path / "seen"
        job = scheduler.submit("worker", self.program(folder, seen, 60, "requeue"))
        until(seen.exists)
        scheduler.cancel([job])
        until(lambda: gone(scheduler, job))
        assert json.loads(seen.with_suffix(".signal").read_text()) == "SIGTERM"
        assert all(each.over for each in scheduler.look(also_over=True))
        scheduler.cancel([job])  # nothing happens
        scheduler.cancel([])

    def test_a_job_that_requeues_itself_is_run_again_under_its_number(
        self, make: MakeScheduler, folder: Folder, tmp_path: Path
    ) -> None:
        scheduler, seen = make(folder, Settings(**QUICK)), tmp_path / "seen"
        program = self.program(folder, seen, 60)
        job = scheduler.submit("worker", program)
        until(seen.exists)
        seen.unlink()
        scheduler.requeue(job)

        def again() -> bool:
            (now,) = scheduler.look()
            if now.held:
                assert now.state == PENDING
                scheduler.start_now([now.id])
            return seen.exists()

        until(again)
        assert json.loads(seen.read_text())["share"]["job"] == job
        scheduler.cancel([job])
        until(lambda: gone(scheduler, job))

    def test_a_job_that_is_to_run_no_more_is_not_run_again(
        self, make: MakeScheduler, folder: Folder, tmp_path: Path
    ) -> None:
        scheduler, seen = make(folder, Settings(**QUICK)), tmp_path / "seen"
        job = scheduler.submit("worker", self.program(folder, seen, 60))
        until(seen.exists)
        scheduler.run_no_more([job])
        scheduler.run_no_more([])
        assert [it.state for it in scheduler.look()] == [RUNNING]
        with pytest.raises(ClusterError, match="disabled"):
            scheduler.requeue(job)
        scheduler.cancel([job])
        until(lambda: gone(scheduler, job))

    def test_a_job_submitted_from_a_job_has_nothing_of_it_but_what_the_user_set(
        self,
        make: MakeScheduler,
        folder: Folder,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        scheduler, seen = make(folder, Settings(**QUICK)), tmp_path / "seen"
        monkeypatch.setenv("ELASTIC_STOP_FILE", "of another job")
        monkeypatch.setenv("ELASTIC_PYTHONSAFEPATH", "")  # as in a job
        monkeypatch.setenv("PYTHONSAFEPATH", "1")
        monkeypatch.setenv("OF_THE_USER", "kept")
        before = dict(os.environ)
        scheduler.submit("worker", self.program(folder, seen))
        assert dict(os.environ) == before
        until(seen.exists)
        variables = json.loads(seen.read_text())["variables"]
        assert "ELASTIC_STOP_FILE" not in variables
        assert (variables["OF_THE_USER"], variables["ELASTIC_PYTHONSAFEPATH"]) == ("kept", "")

    def test_files_where_it_was_submitted_are_not_imported(
        self,
        make: MakeScheduler,
        folder: Folder,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        scheduler, seen = make(folder, Settings(**QUICK)), tmp_path / "seen"
        for name in ("json", "slurm", "submitit", "psutil", "fewscan"):
            (tmp_path / f"{name}.py").write_text(f"raise SystemExit('own {name}.py')")
        monkeypatch.chdir(tmp_path)
        job = scheduler.submit("worker", self.program(folder, seen))
        until(lambda: gone(scheduler, job))
        assert seen.exists(), scheduler.log_of(job).read_text()
        found = json.loads(seen.read_text())
        assert not {"", str(tmp_path)} & set(found["path"])
        assert found["variables"]["PYTHONSAFEPATH"] == "1"

    def test_a_line_of_the_setup_that_fails_is_named_and_ends_the_job(
        self, make: MakeScheduler, folder: Folder, tmp_path: Path
    ) -> None:
        scheduler = make(folder, Settings(setup=["true", "no-such-module cuda"], **QUICK))
        job = scheduler.submit("worker", self.program(folder, tmp_path / "seen"))
        until(lambda: gone(scheduler, job))
        log = scheduler.log_of(job).read_text()
        assert "setup line failed: no-such-module cuda" in log
        assert not (tmp_path / "seen").exists()

    def test_what_works_is_checked(self, make: MakeScheduler, folder: Folder) -> None:
        checks = make(folder, Settings(**QUICK)).checks()
        assert checks
        assert all(check.ok for check in checks)


def gone(scheduler: Scheduler, job: str) -> bool:
    """Whether the job is over; `look` and `also_over` must agree on that."""
    alive: list[ClusterJob] = scheduler.look()
    assert not any(each.over for each in alive)
    return job not in {each.id for each in alive}
