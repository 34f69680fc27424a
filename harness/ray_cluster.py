"""The Ray that a sweep runs on: one of its own on this machine, or that of Slurm's jobs.

Ray reads its environment once, at import, so nothing here imports it before `prepare_environment`.
"""

import contextlib
import gc
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fewscan.harness.repeated import repeated
from fewscan.slurm import processes
from fewscan.slurm.folder import ensure_token
from fewscan.slurm.ray_start import leave_out_dashboard, listen_here_alone
from fewscan.storage.code_digest import code_digest, package_version
from fewscan.storage.errors import ClusterError
from fewscan.storage.runs import StudyFolder
from fewscan.storage.system import node_folder
from fewscan.storage.system.private import is_ours, make_private_folder

DEFAULTS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; ours say what a study's people ask
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a CSV, a JSON and a TensorBoard file a run
    "RAY_USAGE_STATS_ENABLED": "0",  # compute nodes have no internet, and nobody was asked
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # all trials as JSON, again and again; nobody reads it
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # else Tune starts the actors one after the other
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a page for each process that died; ours is a line
    "RAY_worker_niceness": "0",  # not Ray's 15: how nice runs are, `resources.niceness` says
}
LOOK_EVERY_S = 1.0
DAEMONS = ("raylet", "gcs_server")
"""Without them a driver waits for ever, and says nothing."""


def prepare_environment(token: Path) -> None:
    """Make this process, and the Ray processes it starts, show the token in the file `token`.

    Creates it, readable by its owner alone, if there is none: without it nobody may run code on the
    study's Ray. Raises `ClusterError` if Ray has been imported without a token already.
    """
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise ClusterError(
            "Ray was imported without a token in this process",
            where="RAY_AUTH_MODE",
            expected="that nothing imports ray before the sweep does",
            remedy="sweep from a process of its own, or set RAY_AUTH_MODE=token for this one",
        )
    ensure_token(token)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def set_defaults() -> None:
    """Keep Ray from saying what nobody asked, and from writing down what nobody reads."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def local_ray(folder: StudyFolder, on_lost: Callable[[str], object]) -> Iterator[Path]:
    """A Ray of our own on this machine, for the block; yields its scratch folder.

    It listens on 127.0.0.1 alone, and only holders of the study's token may use it. Its address is
    its own (a bare `ray.init()` would join any cluster it finds), its folder is short (sockets
    allow 107 bytes). The caller holds the study's lock, so folders that a killed sweep of this
    study has left are nobody's, and are removed. `on_lost` receives the name of a process of Ray's
    that has died, in another thread: what the block waits for then will never come.
    """
    prepare_environment(folder.ray_token)
    digest = hashlib.sha256(str(folder.path).encode()).hexdigest()[:8]
    prefix = f"fewscan-{digest}-"
    for leftover in Path("/tmp").glob(f"{prefix}*"):
        if is_ours(leftover):
            _remove(leftover)
    scratch = make_private_folder(prefix, Path("/tmp"))
    # Ray opens its folder to everybody; inside this one that lets nobody in.
    options = {"include_dashboard": False, "_temp_dir": str(scratch / "ray")}
    try:
        with (
            _connected(scratch, listen_here_alone, address="local", **options),
            _guarded(on_lost),
        ):
            yield scratch
    finally:
        _remove(scratch)


@contextlib.contextmanager
def _guarded(on_lost: Callable[[str], object]) -> Iterator[None]:
    children = processes.descendants(os.getpid())
    daemons = {child: child.name() for child in children if child.name() in DAEMONS}

    def look() -> None:
        for process in [it for it in daemons if not processes.is_alive(it)]:
            on_lost(daemons.pop(process))  # once

    with repeated(look, LOOK_EVERY_S):
        yield


@contextlib.contextmanager
def cluster_ray() -> Iterator[Path]:
    """The Ray cluster that Slurm's jobs make, as its driver; yields a scratch folder.

    The token is in the environment already.
    """
    address = os.environ["RAY_ADDRESS"]
    with (
        tempfile.TemporaryDirectory(prefix="fewscan-") as scratch,
        _connected(Path(scratch), leave_out_dashboard, address=address),
    ):
        yield Path(scratch)


@contextlib.contextmanager
def _connected(
    scratch: Path, prepare_ray: Callable[[], object], **options: object
) -> Iterator[None]:
    set_defaults()
    import ray

    prepare_ray()
    with _no_code_of_this_place(scratch):
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield
    finally:
        # Tune leaves references to Ray's objects in cycles. Freed while Ray goes down, by whichever
        # thread allocates, one makes Ray end this process on the spot, with exit code 1.
        gc.collect()
        ray.shutdown()


@contextlib.contextmanager
def _no_code_of_this_place(empty: Path) -> Iterator[None]:
    """Ray puts the driver's working directory and script on the path of its workers, in front.

    There they would find somebody's `json.py`, or another copy of this package.
    """
    script = sys.argv[0]
    sys.argv[0] = str(empty / Path(script).name)
    try:
        with contextlib.chdir(empty):
            yield
    finally:
        sys.argv[0] = script


def require_same_code(driver: str) -> None:
    """Raise `ClusterError` if a worker's code is not the driver's, whose digest is given."""
    here = code_digest()
    if here != driver:
        raise ClusterError(
            f"a worker runs other code than the driver: digest {here} (fewscan "
            f"{package_version()}) on {os.uname().nodename}",
            where=str(Path(__file__).parent),
            expected=f"digest {driver}",
            remedy="install the same fewscan for driver and workers: on the shared disk, or anew "
            "on each node; after a change of the sources, sweep again",
        )


def _remove(scratch: Path) -> None:
    # A worker of a killed Ray that was just starting would make its part of the folder anew.
    processes.end_users_of(scratch)
    for folder in node_folder.candidates(scratch):
        node_folder.remove(folder)
    shutil.rmtree(scratch, ignore_errors=True)
