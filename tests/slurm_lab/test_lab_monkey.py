"""Ten random disturbances of a real study on a real Slurm: nothing is lost, and nobody has to help.

`python -m tests.slurm_lab.monkey` does more of it; docs/reliability.md has what came of that.
"""

from pathlib import Path

import pytest
from conftest import MakeStudy
from monkey import SETTINGS, Monkey, chosen, table

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
SEED = 1
KINDS = (
    "preempt head",
    "kill head supervisor",
    "requeue worker",
    "power off",
    "kill driver",
    "kill run",
    "cut network",
    "full disk",
    "empty file",
    "spoil file",
)


def test_ten_disturbances_change_no_bit_and_need_no_person(
    make_study: MakeStudy, small_disk: Path, figures: list[str], tmp_path: Path
) -> None:
    monkey = Monkey(
        lambda: make_study(disk=small_disk, **SETTINGS), chosen(KINDS), SEED, tmp_path / "evidence"
    )
    monkey.run(len(KINDS))
    figures.append("disturbances\n" + table(monkey.records))
    assert not monkey.all_faults()
    assert {record.kind for record in monkey.records} == set(KINDS)
