"""The Ray that a sweep runs on: one of its own on this machine, or that of Slurm's jobs."""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from fewscan.storage.runs import StudyFolder
from fewscan.storage.system import node_folder


@contextlib.contextmanager
def local_ray(folder: StudyFolder) -> Iterator[Path]:
    """A Ray of our own on this machine, for the block; yields its scratch folder.

    Its address is its own (a bare `ray.init()` would join any cluster it finds), its folder is
    short (sockets allow 107 bytes), and only holders of the study's token may use it
    (`harness.ray_environment`). The caller holds the study's lock, so folders that a killed sweep
    of this study has left are nobody's, and are removed.
    """
    digest = hashlib.sha256(str(folder.path).encode()).hexdigest()[:8]
    prefix = f"fewscan-{os.getuid()}-{digest}-"
    for leftover in Path("/tmp").glob(f"{prefix}*"):
        _remove(leftover)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(scratch),
        )
        yield scratch
    finally:
        ray.shutdown()
        _remove(scratch)


def _remove(scratch: Path) -> None:
    for folder in node_folder.candidates(scratch):
        node_folder.remove(folder)
    shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def cluster_ray() -> Iterator[Path]:
    """The Ray cluster that Slurm's jobs make, as its driver; yields a scratch folder."""
    with tempfile.TemporaryDirectory(prefix="fewscan-") as scratch:
        ray.init(
            address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR
        )
        try:
            yield Path(scratch)
        finally:
            ray.shutdown()
