"""Install the wheel on another Python, and go from scans to a report with what is installed.

    python3.13 tests/on_another_python.py [ENVIRONMENT]

The environment is made with the Python that runs this, below build/ if none is named; what it has
already is kept. Nothing of the clone is imported: what the wheel lacks is missed here.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from scans_to_report import PAGE, commands

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    version = sysconfig.get_python_version()
    environment = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / f"python{version}")
    if not (environment / "bin" / "python").exists():
        venv.create(environment, with_pip=True)
    python, fewscan = (environment / "bin" / name for name in ("python", "fewscan"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)

        def run(*command: object) -> None:
            print("$", *command, flush=True)
            subprocess.run(list(map(str, command)), check=True)

        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", ".", ROOT)
        (wheel,) = Path().glob("fewscan-*.whl")
        run(python, "-m", "pip", "install", "--quiet", wheel)
        for words in commands():
            run(fewscan, *words)
        page = Path(PAGE)
        assert page.stat().st_size > 100_000, page
    print(f"fewscan works on Python {sys.version.partition(' ')[0]}")


if __name__ == "__main__":
    main()
