"""The disk between two nodes: a good one is found good, and each fault of a bad one is seen."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewscan.slurm import shared_disk_check


def crossed(folder: Path) -> shared_disk_check.SharedDiskReport:
    """Both sides on this machine."""
    other = threading.Thread(target=shared_disk_check.answer, args=(folder,))
    other.start()
    seen = shared_disk_check.ask(folder)
    other.join()
    return seen


def test_a_good_disk_is_found_good(tmp_path: Path) -> None:
    seen = crossed(tmp_path)
    assert (seen.rounds, seen.faults) == (shared_disk_check.ROUNDS, ())
    assert seen.there_and_back_s > 0


def in_two_parts(path: Path, value: Any) -> None:
    """A disk that shows a file while it is being written."""
    text = json.dumps(value)
    with path.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        time.sleep(0.02)
        file.write(text[len(text) // 2 :])


def deleted_first(path: Path, value: Any) -> None:
    """A disk on which a rename first removes what is there."""
    path.unlink(missing_ok=True)
    time.sleep(0.02)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("write", "fault"), [(in_two_parts, "half a file"), (deleted_first, "no file")]
)
def test_a_disk_without_atomic_renames_is_caught(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, Any], None],
    fault: str,
) -> None:
    monkeypatch.setattr(shared_disk_check, "write_json", write)
    assert any(fault in said for said in crossed(tmp_path).faults)


def test_a_file_that_never_arrives_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_disk_check, "PATIENCE_S", 0.1)
    seen = shared_disk_check.ask(tmp_path)
    assert seen.rounds == 0
    assert "file 0 did not arrive" in seen.faults[0]
