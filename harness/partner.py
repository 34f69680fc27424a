"""Another study whose networks are averaged with a study's own (`finetune.partner`)."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fewscan.harness.study import Study
from fewscan.harness.study_file import load_study
from fewscan.storage.errors import StudyError, disk_full_explained
from fewscan.storage.runs import RunFolder, StudyFolder
from fewscan.storage.slices import SliceStore

if TYPE_CHECKING:
    from fewscan.harness.plan import Plan, PlannedRun


def partner_of(study: Study, store: SliceStore) -> Study:
    """The study that `finetune.partner` names.

    Raises `StudyError` if its networks cannot be averaged with the study's, cell by cell.
    """
    path = study.finetune.partner
    assert path is not None
    partner = load_study(path)
    data = SliceStore.open(partner.store).manifest.fingerprint
    differences = {
        "data": (data, store.manifest.fingerprint),
        "split.folds": (partner.split.folds, study.split.folds),
        "finetune.selection": (partner.finetune.selection, study.finetune.selection),
        "finetune.partner": (partner.finetune.partner, None),
    }
    for what, (found, expected) in differences.items():
        if found != expected:
            raise StudyError(
                f"the partner has {what} {found}",
                where=f"finetune.partner, {path}",
                expected=f"{expected}, for networks that are averaged",
                remedy="change it there, or name another study",
            )
    if partner.name == study.name:
        raise StudyError(
            f"the partner is called {partner.name}, too",
            where=f"finetune.partner, {path}",
            expected="another name, by which its arms are known",
            remedy="change its name",
        )
    return partner


def finished_elsewhere(plan: "Plan") -> "list[PlannedRun]":
    """The runs of the plan that its partner has finished, and it has not."""
    return [
        run
        for run in plan.runs
        if run.made_in is not None
        and not plan.folder_of(run).path.exists()
        and _there(run.made_in, run).state() == "finished"
    ]


def take_over(plan: "Plan", runs: "Iterable[PlannedRun]") -> None:
    """Copy these finished runs into the plan's folder, each whole or not at all.

    The sweep that calls it has the folder for itself. Raises `DiskFullError`.
    """
    for run in runs:
        assert run.made_in is not None
        place = plan.folder_of(run).path
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with disk_full_explained(place):
            shutil.copytree(_there(run.made_in, run).path, partial)
        partial.rename(place)


def _there(folder: Path, run: "PlannedRun") -> RunFolder:
    return StudyFolder(folder).run(run.run_id)
