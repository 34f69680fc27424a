"""The shell lines around a job's command, for any scheduler that runs a script.

Before it: the job's own folder, the user's lines, and Python kept from importing what lies in the
directory of the launch. After it: no process and no file stays on the node.
"""

from collections.abc import Mapping, Sequence

from fewscan.slurm.session import PREFIX, STARTED, TEMPORARY

SAFE_PATH = "PYTHONSAFEPATH"
DISK = f"{PREFIX}DISK"
USERS_SAFE_PATH = f"{PREFIX}{SAFE_PATH}"
"""Keeps the user's own value of it."""
DISK_PATH_LIMIT = 20
"""With a longer path of the disk Ray's socket paths would be over the kernel's 107 bytes."""


def lines_before(disk: str, name: str, setup: Sequence[str]) -> list[str]:
    """What comes before the command. A line of `setup` that fails ends the job, and is named.

    The job's own folder will be on the node's own `disk`, its name beginning with `name`; both may
    hold shell variables. The shell makes it, for the shell outlives a supervisor that is killed:
    with a name that nobody can guess, closed to all others. What an earlier run of the job, on a
    node that died, has left is removed.
    """
    report = f'echo "setup line failed: $BASH_COMMAND" >&2; rm -rf "${{{TEMPORARY}-}}"'
    return [
        "trap : TERM",  # so that the lines after the command come, whoever ends the job
        f'{DISK}="{disk}"',
        f"[ ${{#{DISK}}} -le {DISK_PATH_LIMIT} ] || {DISK}=/tmp",
        f'find "${DISK}" /dev/shm -maxdepth 1 -name "{name}-*" -user "$(id -u)" '
        "-exec rm -rf {} + 2>/dev/null",
        f"trap '{report}' ERR",
        "set -e",
        f'{TEMPORARY}="$(mktemp -d "${DISK}/{name}-XXXXXX")"',  # `export` would hide that it failed
        f"export {TEMPORARY}",
        f'export {STARTED}="$(date +%s)"',
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
        "trap '' TERM",  # which Slurm sends to every process, also to those that clear up here
        f"kill -KILL {ours} 2>/dev/null",
        f'[ -z "${TEMPORARY}" ] || rm -rf "${TEMPORARY}" "/dev/shm/${{{TEMPORARY}##*/}}"',
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
