import json
import multiprocessing
import time
from pathlib import Path

import pytest

import fewscan.storage.runs
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder, StudyFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = StudyFolder(tmp_path).run("abc")
    folder.create({"id": "abc"})
    return folder


def test_states_follow_the_files(folder: RunFolder) -> None:
    assert folder.sibling("other").state() == "missing"
    assert folder.state() == "missing"
    folder.append_event("started", step=0)
    assert folder.state() == "interrupted"
    folder.beat(3, 10)
    assert folder.state() == "running"
    assert folder.read_progress()["step"] == 3
    folder.fail(ValueError("no"))
    assert folder.state() == "failed"
    folder.result.write_text("{}")
    assert folder.state() == "finished"


def test_an_old_heartbeat_is_no_heartbeat(folder: RunFolder) -> None:
    folder.append_event("started", step=0)
    folder.beat(3, 10)
    beat = folder.read_progress()
    beat["time"] -= fewscan.storage.runs.RUNNING_IF_SEEN_WITHIN_S + 1
    folder.progress.write_text(json.dumps(beat))
    assert folder.state() == "interrupted"


def test_only_events_that_a_checkpoint_covers_count(folder: RunFolder) -> None:
    folder.append_event("started", step=0)
    size = folder.append_event("metrics", step=1, values={"loss": 1.0})
    assert [e.kind for e in folder.committed_events()] == ["started"]
    folder.append_event("checkpoint", step=1)
    folder.append_event("metrics", step=2, values={"loss": 0.5})
    with folder.events.open("ab") as file:
        file.write(b'{"kind": "metr')  # killed while writing
    assert [e.kind for e in folder.committed_events()] == ["started", "metrics", "checkpoint"]
    folder.truncate_events(size)
    folder.append_event("started", step=1)
    kinds = [(e.kind, e.step) for e in folder.committed_events()]
    assert kinds == [("started", 0), ("metrics", 1), ("started", 1)]


def test_an_error_is_recorded_and_forgotten_at_the_next_attempt(folder: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), folder.owned():
        1 / 0  # noqa: B018
    assert folder.state() == "failed"
    assert "ZeroDivisionError" in folder.read_error()["traceback"]
    with folder.owned():
        assert not folder.error.exists()


def _own(path: Path, seconds: float) -> None:
    with RunFolder(path).owned():
        (path / "held").touch()
        time.sleep(seconds)


def test_a_folder_has_one_owner(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    other = multiprocessing.get_context("spawn").Process(target=_own, args=(folder.path, 60))
    other.start()
    while not (folder.path / "held").exists():
        time.sleep(0.01)
    monkeypatch.setattr(fewscan.storage.runs, "OWNER_WAIT_S", 0.2)
    with pytest.raises(RunError, match="being run by another process"), folder.owned():
        pass
    assert not folder.error.exists()
    other.kill()
    other.join()
    with folder.owned():
        pass


def test_a_damaged_file_is_named(folder: RunFolder) -> None:
    folder.spec.write_text('{"id": ')
    with pytest.raises(RunError, match=r"(?s)not JSON.*spec\.json.*remedy"):
        folder.read_spec()
