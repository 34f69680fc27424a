"""Programs that tests need from Debian: installed where possible, missed loudly where not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def missing(commands: Sequence[str], packages: Sequence[str]) -> str | None:
    """Install `packages` if one of `commands` is not there; why that is impossible, or None."""
    if all(shutil.which(name) for name in commands):
        return None
    wanted = " ".join(packages)
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        return f"{wanted}: not installed, and only root on Debian may install them"
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": sys.stderr}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    return (
        f"apt-get could not install {wanted}"
        if subprocess.run(command, **quiet).returncode
        else None
    )


def give_up(what: str, reason: str) -> None:
    """Skip what cannot be tested here and say so; with CI=true that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"no {what} here: {reason}")
    pytest.skip(f"NO {what.upper()}, NOTHING THAT NEEDS IT IS TESTED: {reason}")
