"""The cluster on a faked Slurm: real processes, real signals, real Ray; no root needed."""

import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_slurm
import pytest

from fewscan.slurm import Settings, cancel, launch, slurm_scheduler, status
from fewscan.slurm.doctor import checks
from fewscan.slurm.elastic import Elastic
from fewscan.slurm.folder import Folder, Launch, WorkerReport
from fewscan.slurm.head_recovery import recover_head, submit_head
from fewscan.storage.errors import ClusterError

QUICK = {"poll_s": 1, "idle_s": 60, "signal_delay_s": 30, "time_limit_min": 5}
TOY = Path(__file__).parent / "slurm_lab" / "toy_driver.py"


def until(what: Callable[[], Any], wait_s: float = 150) -> Any:
    deadline = time.monotonic() + wait_s
    while not (value := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def test_a_preempted_worker_returns_and_nothing_is_left(slurm: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "study", tmp_path / "study" / "out"
    options = ["--units", "2", "--steps", "25", "--step-s", "0.1"]
    head = launch([sys.executable, str(TOY), str(out), *options], folder, Settings(**QUICK))
    assert launch(["something", "else"], folder, Settings(**QUICK)) == head  # it runs already
    trace = out / "trace.jsonl"
    until(lambda: trace.exists() and len(trace.read_text().splitlines()) > 2)
    worker = status(folder).workers[0].job
    fake_slurm.preempt(worker)
    until(lambda: (folder / "elastic.json").exists() and worker_phase(folder) == "requeued")
    until(lambda: status(folder).state not in ("starting", "running"))
    now = status(folder)
    assert (now.state, now.generation) == ("done", 1), now
    steps = [(line["unit"], line["step"]) for line in map(json.loads, trace.open())]
    assert sorted(steps) == [(unit, step) for unit in range(2) for step in range(1, 26)]
    until(lambda: {job["state"] for job in fake_slurm.jobs(slurm).values()} == {"COMPLETED"})
    asked = fake_slurm.commands_given(slurm)
    assert f"scontrol update JobId={worker} StartTime=now" in asked
    assert not [*node_folders(folder), *Path("/tmp").glob("toy-*")]


def test_a_worker_whose_time_is_nearly_over_takes_nothing_new(slurm: Path, tmp_path: Path) -> None:
    folder, trace, hold = tmp_path / "study", tmp_path / "trace.jsonl", tmp_path / "hold"
    hold.touch()
    short = {"time_limit_min": 1, "signal_delay_s": 25, "closing_s": 15}  # it closes after 20 s
    settings = Settings(**{**QUICK, **short, "head_time_limit_min": 10})
    driver = [sys.executable, str(Path(__file__).with_name("tune_driver.py"))]
    launch([*driver, str(trace), str(hold)], folder, settings)
    until(lambda: trace.exists() and trace.read_text().endswith("\n"))
    (first,) = [json.loads(line) for line in trace.open()]
    until(lambda: [p for p in node_folders(folder) if list(p.glob("*/closed"))])
    hold.unlink()
    until(lambda: worker_phase(folder) == "requeued")
    assert len(trace.read_text().splitlines()) == 1, "one was begun although its time was over"
    fake_slurm.set_time_limit(slurm, first["job"], limit_min=10)
    until(lambda: status(folder).state not in ("starting", "running"))
    assert status(folder).state == "done", status(folder)
    begun = [json.loads(line) for line in trace.open()]
    assert sorted(line["trial"] for line in begun) == list(range(4)), "none was begun in vain"


def node_folders(folder: Path) -> list[Path]:
    """What the jobs have on their nodes."""
    name = f"{Folder(folder).key[:4]}-*"
    return [*Path("/tmp").glob(name), *Path("/dev/shm").glob(name)]


def worker_phase(folder: Path) -> str | None:
    where = Folder(folder)
    reports = [where.report(file.stem) for file in where.workers.glob("[0-9]*.json")]
    return reports[0].phase if reports and reports[0] else None


def test_a_setup_line_that_fails_ends_in_one_job(slurm: Path, tmp_path: Path) -> None:
    settings = Settings(setup=["true", "no-such-module cuda"], **QUICK)
    launch(["true"], tmp_path / "study", settings)
    until(lambda: status(tmp_path / "study").state == "failed")
    assert "setup line failed: no-such-module cuda" in status(tmp_path / "study").failures[0].text
    assert len(fake_slurm.jobs(slurm)) == 1


def test_a_driver_that_did_what_it_could_has_not_failed(slurm: Path, tmp_path: Path) -> None:
    driver = [sys.executable, "-c", "print('2 runs failed'); raise SystemExit(10)"]
    launch(driver, tmp_path / "study", Settings(**QUICK))
    until(lambda: status(tmp_path / "study").state not in ("pending", "starting", "running"))
    now = status(tmp_path / "study")
    assert now.state == "incomplete"
    assert "2 runs failed" in now.failures[0].text
    assert now.failures[0].log == tmp_path / "study" / "logs" / "driver.log"


SPOILT = {"emptied": "", "halved": '{"a', "another": "[1]", "deleted": None}


def test_files_that_cannot_be_read_are_waited_for_and_written_anew(
    slurm: Path, tmp_path: Path
) -> None:
    folder, out, hold = tmp_path / "study", tmp_path / "study" / "out", tmp_path / "hold"
    hold.touch()
    options = ["--units", "2", "--steps", "20", "--step-s", "0.05", "--hold", str(hold)]
    launch([sys.executable, str(TOY), str(out), *options], folder, Settings(**QUICK))
    until(lambda: worker_phase(folder) == "joined")
    where, token = Folder(folder), Folder(folder).token()
    owned = ["launch.json", "head_job.json", "head.json", "demand.json", "elastic.json", "token"]
    files = [*(folder / name for name in owned), *where.workers.glob("[0-9]*.json")]
    for file, text in zip(files, [*SPOILT.values()] * 2, strict=False):
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
    assert status(folder).state in ("running", "starting")  # and no traceback
    readers = [where.launch, where.head_job, where.rendezvous, where.demand]
    until(lambda: all(read() is not None for read in readers) and where.token() == token, 30)
    until(lambda: worker_phase(folder) == "joined", 30)
    hold.unlink()
    until(lambda: status(folder).state not in ("starting", "running"))
    assert (status(folder).state, status(folder).generation) == ("done", 1), status(folder)
    assert steps_of(out) == sorted((unit, step) for unit in range(2) for step in range(1, 21))


def steps_of(out: Path) -> list[tuple[int, int]]:
    """Every step of every unit that was done, also those that were done again."""
    lines = map(json.loads, (out / "trace.jsonl").read_text().splitlines())
    return sorted((line["unit"], line["step"]) for line in lines)


def test_what_is_cancelled_has_checkpointed_and_leaves_nothing(slurm: Path, tmp_path: Path) -> None:
    folder, out, hold = tmp_path / "study", tmp_path / "study" / "out", tmp_path / "hold"
    hold.touch()
    options = ["--units", "1", "--steps", "18", "--step-s", "0.05", "--hold", str(hold)]
    command = [sys.executable, str(TOY), str(out), *options]
    launch(command, folder, Settings(**QUICK))
    until(lambda: (out / "trace.jsonl").exists() and len(steps_of(out)) > 6)
    cancel(folder)
    until(lambda: not alive(slurm), 40)
    assert status(folder).state == "cancelled"
    assert not node_folders(folder)
    assert "Traceback" not in (folder / "logs" / "driver.log").read_text()
    hold.unlink()
    launch(command, folder, Settings(**QUICK))
    until(lambda: status(folder).state not in ("pending", "starting", "running"))
    assert steps_of(out) == [(0, step) for step in range(1, 19)], "a step was done twice"


DRIVER = """
import os, sys
import neighbour
from fewscan.slurm.session import Session
print(neighbour.__file__, sys.path[0], os.environ.get("PYTHONSAFEPATH"), Session.here())
sys.exit(0 if Session.here().is_on_cluster and "PYTHONSAFEPATH" not in os.environ else 1)
"""


def test_files_where_it_is_launched_do_not_matter_and_a_driver_imports_as_ever(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    program, where = tmp_path / "program", tmp_path / "where"
    program.mkdir()
    where.mkdir()
    (program / "neighbour.py").touch()
    (program / "driver.py").write_text(DRIVER)
    for name in ("json", "slurm", "queue", "submitit", "psutil", "ray", "fewscan"):
        (where / f"{name}.py").write_text(f"raise SystemExit('own {name}.py')")
    monkeypatch.chdir(where)
    folder = tmp_path / "study"
    launch([sys.executable, str(program / "driver.py")], folder, Settings(**QUICK))
    until(lambda: status(folder).state not in ("pending", "starting", "running"))
    assert status(folder).state == "done", status(folder)


def test_a_controller_that_is_busy_is_asked_again_to_requeue(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the job would end, and Slurm would not run it again."""
    monkeypatch.setattr(slurm_scheduler, "REQUEUE_PAUSES_S", (0.0,))
    answers: list[Any] = [ClusterError("busy"), "RUNNING\n", ""]
    asked: list[str] = []

    def run(command: list[str]) -> str:
        asked.append(command[0])
        answer = answers.pop(0)
        if isinstance(answer, ClusterError):
            raise answer
        return str(answer)

    monkeypatch.setattr(slurm_scheduler, "run", run)
    scheduler = slurm_scheduler.Slurm(Folder(slurm), Settings())
    scheduler.requeue("7")
    assert asked == ["squeue", "squeue", "scontrol"]
    answers[:] = [ClusterError("busy"), ClusterError("busy")]
    with pytest.raises(ClusterError, match="busy"):
        scheduler.requeue("7")


def test_slurms_refusal_is_passed_on(slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="invalid partition") as caught:
        launch(["true"], tmp_path / "study", Settings(partition="nonsense", **QUICK))
    assert caught.value.where == "sbatch"


def test_workers_that_die_at_once_end_the_attempts(slurm: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    elastic = Elastic(folder, folder.launch(), tmp_path / "nodes.json")
    for _ in range(2):
        elastic.tick()
        until(lambda: not alive(slurm))
    with pytest.raises(ClusterError, match="ended before they could work"):
        elastic.tick()
    assert len(fake_slurm.jobs(slurm)) <= 4


def prepared(tmp_path: Path, setup: str = "false") -> Folder:
    """A folder as after `launch`, with workers whose setup fails, and without a head."""
    folder = Folder(tmp_path / "study")
    folder.prepare()
    settings = Settings(setup=[setup], max_workers=2, **QUICK)
    folder.write_launch(launch_record(settings))
    return folder


def launch_record(settings: Settings) -> Any:
    return Launch("1", ("true",), "/", settings)


def alive(slurm: Path) -> list[str]:
    """Jobs that are not over."""
    over = ("COMPLETED", "CANCELLED", "FAILED")
    return [job["id"] for job in fake_slurm.jobs(slurm).values() if job["state"] not in over]


def test_a_lost_head_is_replaced_but_not_for_ever(slurm: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    known = folder.launch()
    assert known is not None
    submit_head(folder, known)
    for _ in range(5):
        until(lambda: not alive(slurm))
        folder.recovery_file.unlink(missing_ok=True)
        recover_head(folder, known)
    assert len(fake_slurm.jobs(slurm)) == 3
    assert status(folder.root).state == "failed"
    assert "the 3th within minutes" in status(folder.root).detail


def test_many_workers_look_after_the_head_with_one_query(slurm: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    known = launch_record(Settings(**{**QUICK, "setup": ["false"], "poll_s": 600}))
    submit_head(folder, known)
    for _ in range(5):
        recover_head(folder, known)
    asked = [line for line in fake_slurm.commands_given(slurm) if line.startswith("squeue")]
    assert len(asked) == 1


def test_cancelled_it_stays_cancelled_until_launched_again(slurm: Path, tmp_path: Path) -> None:
    (slurm / "nodes").write_text("0")  # nothing starts
    folder = tmp_path / "study"
    job = launch(["true"], folder, Settings(**QUICK))
    assert status(folder).state == "pending"
    assert cancel(folder) == [job]
    assert status(folder).state == "cancelled"
    assert launch(["true"], folder, Settings(**QUICK)) != job
    assert status(folder).state == "pending"


def test_workers_cancelled_in_the_queue_have_not_died(slurm: Path, tmp_path: Path) -> None:
    (slurm / "nodes").write_text("0")
    folder, settings = tmp_path / "study", Settings(max_workers=4, **QUICK)
    for _ in range(2):
        launch(["true"], folder, settings)
        where = Folder(folder)
        Elastic(where, where.launch(), tmp_path / "nodes.json").tick()
        assert len(status(folder).workers) == 4
        cancel(folder)
    assert not alive(slurm)


def test_a_bad_node_among_good_ones_is_met_with_patience(slurm: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path, 'case "$SLURM_JOB_ID" in 1) sleep 100;; *) false;; esac')
    elastic = Elastic(folder, folder.launch(), tmp_path / "nodes.json")
    elastic.tick()
    report = WorkerReport("1", "fake1", "fake1", "joined", 1, time.time() + 600, time.time())
    folder.write_report(report)
    for _ in range(8):
        elastic.tick()
        until(lambda: len(alive(slurm)) == 1)
    assert len(fake_slurm.jobs(slurm)) <= 5  # not one for every look at the queue


def test_the_token_is_the_owners_alone(slurm: Path, tmp_path: Path) -> None:
    (slurm / "nodes").write_text("0")
    launch(["true"], tmp_path / "study", Settings(**QUICK))
    mode = (tmp_path / "study" / "token").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_the_doctor_names_what_is_wrong(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {check.name: check for check in checks(tmp_path)}
    assert not [check for check in told.values() if not check.ok]
    (slurm / "bin" / "scancel").unlink()
    monkeypatch.setenv("PATH", str(slurm / "bin"))  # this machine may have a real one
    (tmp_path / "file").touch()
    told = {check.name: check for check in checks(tmp_path / "file" / "study")}
    assert not told["scancel"].ok
    assert not told["shared disk"].ok
    assert all(check.ok or check.remedy for check in told.values())


def test_the_doctor_tries_a_node_and_the_disk_before_there_is_a_study_and_leaves_no_trace(
    slurm: Path, tmp_path: Path
) -> None:
    told = {check.name: check for check in checks(tmp_path / "not" / "yet", Settings(**QUICK))}
    assert not (tmp_path / "not").exists()
    node = next(name.partition(":")[0] for name in told if ": " in name)
    assert {"clocks", "disk between nodes", f"{node}: NCCL", f"{node}: /dev/shm"} <= told.keys()
    assert not [check for check in told.values() if not check.ok]
    assert "none missing or torn" in told["disk between nodes"].found
    assert "launch directory" in " ".join(told)
