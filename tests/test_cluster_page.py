"""The page for cluster users: its study files are valid, its table of settings is complete."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fewscan.harness.on_slurm import require_fit, with_room_to_start
from fewscan.harness.study_file import parse_study
from fewscan.slurm import Settings

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
STUDIES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", STUDIES, ids=["gpu", "preemptible", "offline"])
def test_study_files_can_be_launched(text: str) -> None:
    study = parse_study(yaml.safe_load(text), "docs/cluster.md")
    assert study.slurm is not None
    require_fit(study, study.slurm)
    assert with_room_to_start(study, study.slurm).closing_s >= 60


def test_the_table_names_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", PAGE, re.MULTILINE)
    named = {name for row, _ in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {field.name for field in fields(Settings)} - {"job_name"}
    alone = {row.strip("`"): said for row, said in rows if "," not in row}
    for name, said in alone.items():
        if said != "none":
            default = getattr(Settings(), name)
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert shown == said.strip("`"), name
