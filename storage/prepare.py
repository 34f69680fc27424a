"""NIfTI scans → a slice store: parallel, restartable, and in place only when complete.

Each subject's shards are written first, then its record; the manifest comes when all are done, and
then `STORE.partial` becomes STORE. Killed anywhere, the same command goes on with the subjects that
have no record. A finished store takes in scans that are new or were skipped in the same way; its
readers see them when the manifest is replaced.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fewscan.storage.agreement import agreed_parameters, agreed_split, split_to_keep
from fewscan.storage.atomic import remove_leftovers, sync_folder, write_json
from fewscan.storage.brats import person
from fewscan.storage.catalog import Catalog, ScanFiles
from fewscan.storage.errors import FewscanError, ScanError, StoreError, disk_full_explained
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import Normalisation
from fewscan.storage.jobs import Job, prepare_subject
from fewscan.storage.locks import exclusive
from fewscan.storage.manifest import Manifest, Parameters, StoreFolder, Subject
from fewscan.storage.scans import find_scans
from fewscan.storage.slices import describe_arrays, usable_cpus
from fewscan.storage.splits import Split
from fewscan.storage.workers import in_processes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did."""

    subjects: int
    """in the store now"""
    added: int
    """of them, by this call; 0 = there was nothing to do"""
    skipped: tuple[tuple[str, str], ...]
    """scans that cannot be used: id and reason"""
    left_out: tuple[str, ...]
    """subjects in the store that no part of the given split holds"""
    fingerprint: str
    """of the store"""
    seconds: float
    """that this call took"""


def prepare(
    scans: Path,
    store: Path,
    size: int = 128,
    workers: int | None = None,
    progress: Progress | None = None,
    axis: Axis | None = None,
    normalisation: Normalisation | None = None,
    split: Path | None = None,
) -> PrepareReport:
    """Make a store of all scans under `scans`, or go on with it, or add to it what is new.

    `workers` processes (default: the cores at hand; 1 = this one). `progress` gets subjects done
    and subjects to do. A scan that cannot be used does not stop the others: it is reported.
    `axis` and `normalisation` are by default those of the store if it is there, else what suits
    the scans: in BraTS the third and `quantile`, as published; in others the axis with the largest
    spacing and `percentiles`. `split` is a file for `read_split`, which replaces an earlier one; by
    default the store keeps the one it has.

    Raises `ScanError` if no scan can be used, `StoreError` if the store is of another size, kind or
    protocol or another process is writing it, `StudyError` if the split is wrong, `DiskFullError`.
    """
    started = time.monotonic()
    catalog = find_scans(scans)
    target = StoreFolder.at(store)
    with disk_full_explained(target.path), _locked(target) as folder:
        parameters = agreed_parameters(folder, catalog, size, axis, normalisation)
        before = _finished_subjects(folder)
        known = {*before, *catalog.problems, *(files.id for files in catalog.scans)}
        given = agreed_split(folder, split, known)
        _begin(folder, parameters, given)
        missing, problems = _missing_scans(catalog, before)
        jobs = _jobs(missing, scans, folder, parameters, before)
        problems |= _run(jobs, workers or usable_cpus(), progress)
        subjects = _finished_subjects(folder)
        skipped = {subject: _in_a_line(error) for subject, error in problems.items()}
        if not subjects:
            shutil.rmtree(folder.path)
            raise _nothing_usable(scans, skipped)
        manifest = Manifest(parameters, subjects, skipped, split_to_keep(given, subjects))
        _publish(folder, target, manifest)
    return PrepareReport(
        subjects=len(subjects),
        added=len(subjects) - len(before),
        skipped=tuple(sorted(skipped.items())),
        left_out=manifest.left_out,
        fingerprint=manifest.fingerprint,
        seconds=time.monotonic() - started,
    )


@contextmanager
def _locked(store: StoreFolder) -> Iterator[StoreFolder]:
    """The folder to work in, finished or partial, locked against other processes."""
    folder = store if store.manifest.exists() else store.partial
    if folder != store and store.path.exists() and not _is_empty(store.path):
        expected, remedy = "a slice store, or nothing", "choose another path for the store"
        raise StoreError("no slice store", where=store.path, expected=expected, remedy=remedy)
    folder.path.mkdir(parents=True, exist_ok=True)
    busy = StoreError(
        "another `prepare` is at work on this store",
        where=folder.path,
        expected="one at a time",
        remedy="wait for it to end",
    )
    with exclusive(folder.lock, busy):
        yield folder


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _begin(folder: StoreFolder, parameters: Parameters, split: Split | None) -> None:
    """Make room for the work, and sweep away what a killed process left half-written."""
    arrays = folder.images_shard(0).parent, folder.labels_shard(0).parent
    for subfolder in (folder.path, folder.records, *arrays):
        subfolder.mkdir(exist_ok=True)
        remove_leftovers(subfolder)
    given = {"split": split.to_json()} if split else {}
    write_json(folder.parameters, {**parameters.to_json(), **given})


def _finished_subjects(folder: StoreFolder) -> dict[str, Subject]:
    finished = Manifest.read(folder.manifest).subjects if folder.manifest.exists() else {}
    records = [json.loads(path.read_bytes()) for path in sorted(folder.records.glob("*.json"))]
    return {**finished, **{record["id"]: Subject.from_json(record) for record in records}}


def _missing_scans(
    catalog: Catalog, finished: Mapping[str, Subject]
) -> tuple[list[ScanFiles], dict[str, ScanError]]:
    """The scans that are not in the store yet, and those that cannot come in."""
    ids = {person(subject): subject for subject in finished}
    missing = [files for files in catalog.scans if files.id not in finished]
    problems = {id_: error for id_, error in catalog.problems.items() if id_ not in finished}
    for files in missing:
        if person(files.id) in ids:
            found = f"the same subject twice: it is in the store as {ids[person(files.id)]}"
            problems[files.id] = ScanError(found, where=files.channel_files[0].parent)
    return [files for files in missing if files.id not in problems], problems


def _jobs(
    missing: list[ScanFiles],
    scans: Path,
    folder: StoreFolder,
    parameters: Parameters,
    finished: Mapping[str, Subject],
) -> list[Job]:
    """Give the free rows to the missing scans, in the order of their ids."""
    taken = {subject.row for subject in finished.values()}
    free = (row for row in count() if row not in taken)
    return [Job(files, scans, next(free), folder, parameters) for files in missing]


def _run(jobs: list[Job], workers: int, progress: Progress | None) -> dict[str, ScanError]:
    """Prepare the subjects; return the problems by id."""
    problems = {}
    prepared = in_processes(prepare_subject, jobs, workers)
    for done, (subject, problem) in enumerate(prepared, start=1):
        if problem is not None:
            problems[subject] = problem
        if progress:
            progress(done, len(jobs))
    return problems


def _publish(folder: StoreFolder, store: StoreFolder, manifest: Manifest) -> None:
    """Make the store show `manifest`; put it in place if it was partial."""
    rows = 1 + max(subject.row for subject in manifest.subjects.values())
    describe_arrays(folder, manifest.parameters, rows)
    manifest.write(folder.manifest)
    if folder != store:
        os.replace(folder.path, store.path)
        sync_folder(store.path.parent)
    shutil.rmtree(store.records)
    store.parameters.unlink()


def _in_a_line(error: FewscanError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())


def _nothing_usable(scans: Path, skipped: Mapping[str, str]) -> ScanError:
    reasons = "".join(f"\n    {subject}: {reason}" for subject, reason in sorted(skipped.items()))
    return ScanError(
        f"none of {len(skipped)} scans can be used:{reasons}",
        where=scans,
        expected="at least one good scan",
        remedy="mend what is named above and run the same command again",
    )
