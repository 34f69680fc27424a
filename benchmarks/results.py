"""Results as JSON, a file a subject, and the table of them for `benchmarks/README.md`.

Nothing in the table is typed by hand. Needs nothing but Python, so that a bare GPU machine can
write results too.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
_PACKAGES = ("numpy", "torch", "zarr", "numcodecs", "isal", "scikit-learn", "nibabel", "ray")


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    what: str
    values: tuple[float, ...]
    """one a round: the median is the result, least and greatest are its range"""
    unit: str
    """"×" for a ratio, else the unit of `values`"""
    at_least: float | None = None
    """the target, in the unit of `values`"""
    at_most: float | None = None
    published: str = ""
    """what the published way takes, with its unit"""
    here: str = ""
    """what the fast way takes"""
    core_ratios: tuple[float, ...] = ()
    """the ratio in core-seconds, if `values` are in wall time: less true, and less shaken"""
    note: str = ""

    @property
    def result(self) -> float:
        """The median over the rounds."""
        return median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the result is on the right side of the target; None without a target."""
        if self.at_least is not None:
            return self.result >= self.at_least
        return None if self.at_most is None else self.result <= self.at_most

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_least is not None:
            return f"≥ {in_unit(self.at_least, self.unit)}"
        return "" if self.at_most is None else f"≤ {in_unit(self.at_most, self.unit)}"


def write(
    subject: str,
    findings: Sequence[Finding],
    device: str | None = None,
    path: Path | None = None,
    **more: Any,
) -> Path:
    """Write the findings of a subject with date, machine, versions and commit, and `more`.

    `device` names what computed, if it was not this machine's CPU.
    """
    value = {
        "subject": subject,
        "measured": circumstances(device),
        "findings": [
            {**asdict(f), "result": f.result, "reached": f.reached, "target": f.target}
            for f in findings
        ],
        **more,
    }
    path = path or FOLDER / f"{subject}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def circumstances(device: str | None = None) -> dict[str, Any]:
    """Date, machine, versions and commit; no name of a host or a person."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device or "cpu",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def table() -> str:
    """All results as a table in Markdown, and under it what each was measured on."""
    results = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    results = [result for result in results if result["findings"]]  # others have a page of theirs
    lines = [
        "| what | target | measured (range) | in core-seconds | published way | here | reached |",
        "|---|---|---|---|---|---|---|",
        *(_line(f) for result in results for f in result["findings"]),
    ]
    notes = [f"- *{f['what']}*: {f['note']}" for r in results for f in r["findings"] if f["note"]]
    return "\n".join([*lines, "", *notes, "", *map(measured_on, results)]) + "\n"


def write_between_marks(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + text + END + rest.partition(END)[2])


def in_unit(value: float, unit: str) -> str:
    """A number with three digits and its unit: 0.357×, 12.0×, 10,000 slices/s."""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return digits + ("×" if unit == "×" else f" {unit}")


def _line(finding: dict[str, Any]) -> str:
    values, unit = finding["values"], finding["unit"]
    measured = in_unit(finding["result"], unit)
    if len(values) > 1:
        measured += f" ({in_unit(min(values), '').strip()}–{in_unit(max(values), '').strip()})"
    reached = {True: "yes", False: "**no**", None: ""}[finding["reached"]]
    core = in_unit(median(cores), "×") if (cores := finding.get("core_ratios")) else ""
    ways = finding["published"], finding["here"]
    cells = [finding["what"], finding["target"], measured, core, *ways]
    return "| " + " | ".join([*cells, reached]) + " |"


def measured_on(result: dict[str, Any]) -> str:
    """When and on what results were measured, in Markdown."""
    on = result["measured"]
    device = "" if on["device"] == "cpu" else f"{on['device']}, "
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    return (
        f"`{result['subject']}`: {on['date']}, {device}{on['cpu']} ({on['cores']} cores, load "
        f"{on['load_before']} before it), commit {on['commit']}, Python {on['python']}, "
        f"{versions}.  "
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit that was measured, with a + if files differed from it."""
    command = ["git", "-C", str(FOLDER.parent), "describe", "--always", "--dirty=+", "--abbrev=9"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
