"""Run the benchmarks: `python -m benchmarks`, or `--only NAME`. Results go into JSON and the table.

Each subject has a process of its own, so that none finds the memory or the threads of another.
"""

import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from benchmarks import answers, arithmetic, results, sequential, statistics
from benchmarks.setting import SUBJECTS, Setting
from fewscan.storage.manifest import STORE_PROTOCOL
from fewscan.storage.phantom.write import GENERATOR, write_phantoms

NAMES = ("preparation", "reading", "metrics", "anomaly", "training", "sweep", "makespan")
"""Modules of this package with a `measure(setting: Setting) -> list[Finding]`."""
CACHE = (
    Path(tempfile.gettempdir()) / f"fewscan-benchmarks-{os.getuid()}-{GENERATOR}.{STORE_PROTOCOL}"
)
"""Scans and stores of these versions, made once."""


@click.command()
@click.option(
    "--only",
    type=click.Choice([*NAMES, "statistics", "sequential"]),
    help="One subject, in this process.",
)
@click.option(
    "--studies",
    default=400,
    show_default=True,
    help="Simulated, for `statistics` and `sequential`.",
)
@click.option("--rounds", default=5, show_default=True, help="Pairs of measurements.")
@click.option("--runs", default=60, show_default=True, help="Runs of the sweep of nothing.")
@click.option("--folder", default=CACHE, show_default=True, type=click.Path(path_type=Path))
@click.option("--table", is_flag=True, help="Measure nothing; write the table from the results.")
def main(only: str | None, studies: int, rounds: int, runs: int, folder: Path, table: bool) -> None:
    """Measure the fast paths against the published way, side by side.

    `--only statistics` and `--only sequential` measure no time: they simulate studies with a known
    truth.

    Example: python -m benchmarks --only anomaly
    """
    failed = []
    if only == "statistics":
        more: dict[str, Any] = answers.measure(studies)
        statistics.run(studies, **more)
    elif only == "sequential":
        sequential.run(studies)
    elif only:
        run(only, Setting(folder / "scans", folder, rounds=rounds, noop_runs=runs))
    elif not table:
        write_phantoms(folder / "scans", SUBJECTS)
        failed = [name for name in NAMES if not _run_apart(name, sys.argv[1:])]
    results.write_between_marks(results.README, results.table())
    results.write_between_marks(arithmetic.PAGE, arithmetic.table())
    results.write_between_marks(statistics.PAGE, statistics.table())
    results.write_between_marks(sequential.PAGE, sequential.table())
    if not only:
        click.echo(results.table())
    if failed:
        raise click.ClickException(f"no result for {', '.join(failed)}; the reason is above")


def run(name: str, setting: Setting) -> None:
    """Measure one subject and write its results."""
    write_phantoms(setting.scans, SUBJECTS)
    findings = import_module(f"benchmarks.{name}").measure(setting)
    click.echo(f"{results.write(name, findings)}")
    for finding in findings:
        measured = results.in_unit(finding.result, finding.unit)
        click.echo(f"  {finding.what}: {measured} (target {finding.target or 'none'})")


def _run_apart(name: str, arguments: list[str]) -> bool:
    command = [sys.executable, "-m", "benchmarks", "--only", name, *arguments]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    main()
