"""The token of a cluster that became unreadable is written anew before a Ray needs it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewscan.slurm import Settings
from fewscan.slurm import head as head_module
from fewscan.slurm import worker as worker_module
from fewscan.slurm.allocation import Allocation
from fewscan.slurm.folder import Folder, Launch, Rendezvous
from fewscan.slurm.head import HeadJob
from fewscan.slurm.worker import Worker
from fewscan.storage.errors import ClusterError

SHARE = Allocation("1", "n1", None, 1, 0, 0, 0, 0.0, 30, 30)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    scheduler = SimpleNamespace(
        allocation=lambda role: SHARE,
        look=list,
        cancel=lambda jobs: None,
        run_no_more=lambda jobs: None,
        log_of=lambda job: tmp_path / "log",
    )
    for module in (head_module, worker_module):
        monkeypatch.setattr(module, "scheduler_for", lambda *given: scheduler)
    folder = Folder(tmp_path / "cluster")
    folder.prepare()
    return folder


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch("1", ("true",), str(tmp_path), Settings(early_deaths=1))


def spoil(folder: Folder) -> None:
    folder.token_file.write_text("")


@pytest.mark.parametrize("spoilt_before_the_job", [False, True])
def test_no_head_starts_without_a_token(
    folder: Folder, launch: Launch, spoilt_before_the_job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own, which others know, if it has read one."""
    known = folder.token()
    if spoilt_before_the_job:
        spoil(folder)
    job = HeadJob(folder, launch)
    spoil(folder)
    seen = []

    def start_head(folder: Folder, *rest: Any, **named: Any) -> None:
        seen.append(folder.token())
        raise ClusterError("that is all")

    monkeypatch.setattr(head_module.ray_node, "start_head", start_head)
    with pytest.raises(ClusterError, match="that is all"):
        job.run()
    (found,) = seen
    assert found is not None
    assert (found == known) == (not spoilt_before_the_job)


def test_a_worker_waits_for_a_token_as_for_a_head(
    folder: Folder, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not count as a start that failed."""
    folder.write_rendezvous(Rendezvous(1, "127.0.0.1:1", "1", open=True))
    token = folder.token()
    assert token is not None
    worker = Worker(folder, launch)
    spoil(folder)
    waited: list[str | None] = []

    def wait(self: Worker, since: float) -> bool:
        waited.append(folder.token())
        if len(waited) == 3:
            head_module.write_token(folder.token_file, token)
        return False

    def start_worker(folder: Folder, *rest: Any) -> None:
        assert folder.token() == token
        raise ClusterError("that is all")

    patch: Callable[..., None] = monkeypatch.setattr
    patch(worker_module, "is_reachable", lambda address: True)
    patch(worker_module, "START_FAILURES", 1)
    patch(worker_module.ray_node, "start_worker", start_worker)
    patch(Worker, "_wait_for_head", wait)
    with pytest.raises(ClusterError, match="that is all"):
        worker.run()
    assert waited == [None, None, None]
