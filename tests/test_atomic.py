import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewscan.storage.atomic import remove_leftovers, replacing, write_bytes, write_json
from fewscan.storage.errors import DiskFullError


def test_a_file_is_old_or_new_never_between(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": [2]})
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.with_name("absent").read_text()
    assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_says_so_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "value"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"(?s)no space left.*value.*remedy: free space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_and_its_leftovers_go(tmp_path: Path) -> None:
    path = tmp_path / "value"
    write_bytes(path, b"old")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fewscan.storage.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
