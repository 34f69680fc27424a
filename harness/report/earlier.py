"""A study that grows keeps its earlier reports: what was concluded from fewer runs stays readable.

A report of another grid than that of the one to be written moves to `reports/DATE-GRID`; one
of the same grid is written over, as its runs finish.
"""

import hashlib
import time
from pathlib import Path

from fewscan.harness.report.studies import Studies

GRID = "grid.txt"
"""In a report's folder: which grid it is of."""


def grid_of(studies: Studies) -> str:
    """A digest of the runs that are asked for: other seeds, counts or arms have another."""
    ids = sorted(run.run_id for plan in studies.plans for run in plan.scores)
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]


def keep_earlier(studies: Studies) -> None:
    """Move the report that is there out of the way, if it is of another grid."""
    folder = studies.report_folder
    said, page = folder / GRID, folder / "report.html"
    if studies.are_compared or not page.exists() or not said.exists():
        return
    grid = said.read_text().strip()
    if not grid or grid == grid_of(studies):
        return
    day = time.strftime("%Y-%m-%d", time.localtime(page.stat().st_mtime))
    place = studies.first.folder.earlier_reports / f"{day}-{grid}"
    place.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("[!.]*"):
        file.replace(place / file.name)


def earlier(studies: Studies) -> list[Path]:
    """The pages of the earlier reports, oldest first, as one goes to them from the new one."""
    if studies.are_compared:
        return []
    folders = studies.first.folder.earlier_reports.glob("*")
    return [Path("..", it.parent.name, it.name, "report.html") for it in sorted(folders)]
