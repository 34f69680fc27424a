"""A disk that is full for a while: runs wait for room, output that is lost ends nobody."""

import subprocess
import sys
from pathlib import Path

import pytest

from fewscan.harness import trial
from fewscan.storage.errors import DiskFullError

PRINTING = """
from fewscan.storage.system.forgiving import forgive_output
if {forgive}: forgive_output()
import sys
for _ in range(1000): print("a line", flush=True)
print("an error", file=sys.stderr)
"""


@pytest.mark.parametrize("forgive", [True, False])
def test_a_log_on_a_full_disk_ends_no_program_that_forgives(forgive: bool) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", PRINTING.format(forgive=forgive)]
        code = subprocess.run(command, stdout=full, stderr=full, check=False).returncode
    assert (code == 0) == forgive


@pytest.mark.parametrize(("full", "goes_on"), [(3, True), (1000, False)])
def test_room_is_waited_for_but_not_for_ever_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int, goes_on: bool
) -> None:
    tries: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        tries.append(path)
        if len(tries) <= full:
            raise DiskFullError("no space left")
        path.write_bytes(data)

    monkeypatch.setattr(trial, "write_bytes", write)
    monkeypatch.setattr(trial, "ROOM_EVERY_S", 0.01)
    monkeypatch.setattr(trial, "ROOM_WAIT_S", 0.3)
    assert trial.await_room(tmp_path, should_stop=lambda: False) is goes_on
    assert len(tries) > 3
    assert not list(tmp_path.iterdir()), "what was written to find out is gone"
