"""What Ray must find in the environment before it is imported: a token, quiet, and no ballast.

Ray reads most of its environment once, at import, so `prepare_environment` must come before.
"""

import os
import secrets
import sys
from pathlib import Path

from fewscan.storage.errors import ClusterError

DEFAULTS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; ours say what a study's people ask
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a CSV, a JSON and a TensorBoard file a run
    "RAY_USAGE_STATS_ENABLED": "0",  # compute nodes have no internet, and nobody was asked
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # all trials as JSON, again and again; nobody reads it
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # else Tune starts the actors one after the other
}


def prepare_environment(token: Path) -> None:
    """Make this process, and the Ray processes it starts, show the token in the file `token`.

    Creates the file, readable by its owner alone, on first use: without it nobody may run code on
    the study's Ray. Raises `ClusterError` if Ray has been imported without a token already.
    """
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
        raise ClusterError(
            "Ray was imported without a token in this process",
            where="RAY_AUTH_MODE",
            expected="that nothing imports ray before the sweep does",
            remedy="sweep from a process of its own, or set RAY_AUTH_MODE=token for this one",
        )
    if not token.exists():
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    set_defaults()


def set_defaults() -> None:
    """Keep Ray from saying what nobody asked, and from writing down what nobody reads."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
