"""The shell lines around a job's command, for any scheduler that runs a script.

Before it: the job's own folder, the user's lines, and Python kept from importing what lies in the
directory of the launch. After it: no process and no file stays on the node.
"""

from collections.abc import Mapping, Sequence

from fewscan.slurm.session import PREFIX, STARTED, TEMPORARY

SAFE_PATH = "PYTHONSAFEPATH"
USERS_SAFE_PATH = f"{PREFIX}{SAFE_PATH}"
"""Keeps the user's own value of it."""
SOCKET_PATH_LIMIT = 45
"""A longer temporary folder would push Ray's socket paths over the kernel's 107 bytes."""


def lines_before(disk: str, name: str, setup: Sequence[str]) -> list[str]:
    """What comes before the command. A line of `setup` that fails ends the job, and is named.

    The job's own folder will be `name` on the node's own `disk`; both may hold shell variables. The
    shell chooses it, for the shell outlives a supervisor that is killed.
    """
    report = 'echo "setup line failed: $BASH_COMMAND" >&2'
    return [
        f'export {TEMPORARY}="{disk}/{name}"',
        f'[ ${{#{TEMPORARY}}} -le {SOCKET_PATH_LIMIT} ] || {TEMPORARY}="/tmp/{name}"',
        f'export {STARTED}="$(date +%s)"',
        f"trap '{report}' ERR",
        "set -e",
        *setup,
        "set +e",
        "trap - ERR",
        f'export {USERS_SAFE_PATH}="${{{SAFE_PATH}-}}" {SAFE_PATH}=1',
    ]


def lines_after() -> list[str]:
    """What a supervisor does itself, unless it was killed; the command's exit code stays."""
    ours = f'$(grep -lsz "^{TEMPORARY}=${TEMPORARY}\\$" /proc/[0-9]*/environ | cut -d/ -f3)'
    return [
        "code=$?",
        f"kill -KILL {ours} 2>/dev/null",
        f'rm -rf "${TEMPORARY}" "/dev/shm/${{{TEMPORARY}##*/}}"',
        "exit $code",
    ]


def with_users_path(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python imports as the user wants it, not as our jobs do."""
    if USERS_SAFE_PATH not in environment:
        return dict(environment)
    kept = {k: v for k, v in environment.items() if k not in (SAFE_PATH, USERS_SAFE_PATH)}
    users = environment[USERS_SAFE_PATH]
    return {**kept, SAFE_PATH: users} if users else kept


def outside_of_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for submitting a job, which may happen in another one: nothing of that."""
    return {k: v for k, v in with_users_path(environment).items() if not k.startswith(PREFIX)}
