"""Another study whose networks are averaged with a study's own (`finetune.partner`)."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from fewscan.experiments.spec import Finetune, Score, Target
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.study import Study
from fewscan.harness.study_file import load_study
from fewscan.storage.errors import StudyError, disk_full_explained
from fewscan.storage.runs import RunFolder, StudyFolder
from fewscan.storage.slices import SliceStore


class Partner:
    """Another study of the same store, with the runs that are planned for it."""

    def __init__(self, study: Study, runs: Iterable[PlannedRun]) -> None:
        self.name = study.name
        self._runs: dict[str, PlannedRun] = {}
        self.cells: dict[tuple[Target, Arm, int, int], PlannedRun] = {}
        """Target, arm, labelled scans and seed → the fine-tuning of a single network."""
        self.score_flops: dict[str, float] = {}
        """Run id of a fine-tuning → what the score of it alone costs."""
        for planned in runs:
            run, place = _as_anothers(planned, study), planned.place
            self._runs[run.run_id] = run
            match run.spec:
                case Finetune(member=0, folds=0) if place.is_cell:
                    assert place.target is not None
                    assert place.labels is not None
                    self.cells[place.target, place.arm, place.labels, place.seed] = run
                case Score(parents=(trained,)):
                    self.score_flops[trained] = run.flops

    def with_parents(self, run: PlannedRun) -> Iterator[PlannedRun]:
        """What a run of the partner starts from, directly or not, and the run."""
        for parent in run.parents:
            if parent in self._runs:
                yield from self.with_parents(self._runs[parent])
        yield run


def _as_anothers(run: PlannedRun, study: Study) -> PlannedRun:
    """A run of this study as another plan has it, of whose grid it is no cell."""
    arm = run.place.arm.of_study(study.name)
    if arm.kind == "fine-tuning":
        arm = replace(arm, kind="partner")
    return replace(
        run,
        place=replace(run.place, arm=arm),
        name=f"{study.name}: {run.name}",
        made_in=study.folder,
    )


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


def finished_elsewhere(plan: Plan) -> list[PlannedRun]:
    """The runs of the plan that its partner has finished, and it has not."""
    return [
        run
        for run in plan.runs
        if run.made_in is not None
        and not plan.folder_of(run).path.exists()
        and _there(run.made_in, run).state() == "finished"
    ]


def take_over(plan: Plan, runs: Iterable[PlannedRun]) -> None:
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


def _there(folder: Path, run: PlannedRun) -> RunFolder:
    return StudyFolder(folder).run(run.run_id)
