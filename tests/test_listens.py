"""What listens during a sweep is what docs/security.md says, and nothing else."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)`[^|]*\| `([\w.:]+)`", re.MULTILINE)


def said(command: str) -> set[tuple[str, str]]:
    """Process and address, as the document has them."""
    rows = ROW.findall(DOCUMENT.read_text())
    return {(process, address) for of, process, address in rows if of == command}


def listening(root: int) -> set[tuple[str, str]]:
    """Process and address of everything that listens, as `ss -ltnp` shows it."""
    found = set()
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            for it in process.net_connections("inet"):
                if it.status == psutil.CONN_LISTEN or it.type == 2:
                    found.add((_name(process), it.laddr.ip.removeprefix("::ffff:")))
        except psutil.Error:
            continue
    return found


def _name(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if "ray::" in words:
        return words.split()[0].removeprefix("ray::").partition(".")[0].partition("(")[0]
    for name in (
        "gcs_server",
        "raylet",
        "dashboard.py",
        "agent.py",
        "log_monitor.py",
        "monitor.py",
    ):
        if name in process.name() or f"/{name}" in words:
            return name.removesuffix(".py")
    return "fewscan"


def test_a_sweep(tiny_document: dict[str, Any], tmp_path: Path) -> None:
    for training in (
        tiny_document["pretrain"]["denoise"]["training"],
        tiny_document["finetune"]["training"],
    ):
        training |= {"iterations": 120, "validate_every": 60}
    tiny_document["finetune"] |= {"label_counts": [1], "targets": ["binary"]}
    tiny_document["baselines"] = []
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_document))
    command = [sys.executable, "-m", "fewscan.harness.cli", "sweep", str(path)]
    sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found: set[tuple[str, str]] = set()
    while sweep.poll() is None:
        found |= listening(sweep.pid)
        time.sleep(0.3)
    assert sweep.returncode == 0
    assert found == said("sweep")
