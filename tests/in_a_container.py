"""Build the image that docs/containers.md prints, and go from scans to a report in it.

    python tests/in_a_container.py [--engine podman] [--build OPTIONS] [--run OPTIONS]

As a user whom the image does not know, and with the 64 MB of shared memory that an engine gives by
default. Nothing of the clone is in the image: what the wheel or the recipe lacks is missed here.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from scans_to_report import PAGE, commands

ROOT = Path(__file__).resolve().parents[1]
TAG = "fewscan-as-printed"
NOBODY = "1234:1234"


def printed(first_word: str) -> str:
    """The recipe of docs/containers.md that begins so."""
    _, *blocks = (ROOT / "docs" / "containers.md").read_text().split("\n```")
    bodies = [block.partition("\n")[2] for block in blocks]
    (recipe,) = [body for body in bodies if body.startswith(first_word)]
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=shlex.split, default=["docker"], help="and its options")
    parser.add_argument("--build", type=shlex.split, default=[], help="options of its build")
    parser.add_argument("--run", type=shlex.split, default=[], help="options of its run")
    asked = parser.parse_args()

    def run(*command: object) -> None:
        print("$", *command, flush=True)
        subprocess.run(list(map(str, command)), check=True)

    with tempfile.TemporaryDirectory() as name:
        context, work = Path(name, "context"), Path(name, "work")
        context.mkdir()
        work.mkdir()
        for folder in (Path(name), work):
            folder.chmod(0o777)
        wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        run(*wheel, "--wheel-dir", context / "dist", ROOT)
        (context / "Dockerfile").write_text(printed("FROM"))
        run(*asked.engine, "build", *asked.build, "--tag", TAG, context)
        options = ["--rm", "--user", NOBODY, "--volume", f"{work}:/work", "--workdir", "/work"]
        for words in commands():
            run(*asked.engine, "run", *options, *asked.run, TAG, *words)
        assert (work / PAGE).stat().st_size > 100_000, work / PAGE
    print("the image that docs/containers.md prints goes from scans to the report")


if __name__ == "__main__":
    main()
