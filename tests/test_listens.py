"""What listens during a sweep is what docs/security.md says, and nothing else."""

import re
import shutil
from pathlib import Path

from whole_sweep import WholeSweep

DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)`[^|]*\| `([\w.:]+)`", re.MULTILINE)


def said(command: str) -> set[tuple[str, str]]:
    """Process and address, as the document has them."""
    rows = ROW.findall(DOCUMENT.read_text())
    return {(process, address) for of, process, address in rows if of == command}


def test_a_sweep(whole_sweep: WholeSweep) -> None:
    assert whole_sweep.listening == said("sweep")


def test_ss_shows_the_same(whole_sweep: WholeSweep) -> None:
    """It asks the kernel by another way than psutil. Where there is no `ss`, psutil is alone."""
    if shutil.which("ss") is not None:
        assert whole_sweep.listening_by_ss == said("sweep")
