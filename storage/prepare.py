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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from fewscan.storage.account import account
from fewscan.storage.atomic import remove_leftovers, sync_folder, write_json
from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.registry import patient_of, same_scan
from fewscan.storage.copies import refuse_copies
from fewscan.storage.errors import (
    NAMED_AT_MOST,
    FewscanError,
    ScanError,
    StoreError,
    StudyError,
    disk_full_explained,
    named,
)
from fewscan.storage.find import ALL_LABELLED, find_scans
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import Normalisation, Window
from fewscan.storage.locks import exclusive
from fewscan.storage.manifest import Manifest, Parameters, StoreFolder, Subject
from fewscan.storage.prepare_scan import ScanToPrepare, killed_at, prepare_scan
from fewscan.storage.slices import SliceStore, describe_arrays
from fewscan.storage.splits import Split, read_ids
from fewscan.storage.store_settings import (
    settled_parameters,
    settled_split,
    split_to_keep,
    windows_learnt,
)
from fewscan.storage.system.workers import in_processes, usable_cpus

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did."""

    subjects: int
    """in the store now"""
    patients: int
    """whose scans they are"""
    skipped: tuple[tuple[str, str], ...]
    """scans that cannot be used: id and reason"""
    left_out: tuple[str, ...]
    """labelled subjects in the store that no part of the given split holds"""
    account: tuple[str, ...]
    """what was lost and what was assumed, a line each"""
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
    selection: Selection = ALL_LABELLED,
    healthy: Path | None = None,
    windows: Sequence[Window] = (),
    validation: int | None = None,
) -> PrepareReport:
    """Make a store of all scans under `scans`, or go on with it, or add to it what is new.

    `workers` processes (default: the cores at hand; 1 = this one). `progress` gets subjects done
    and subjects to do. A scan that cannot be used, or is there under another id, does not stop the
    others: it is reported. `axis` and `normalisation` are by default those of the store if it is
    there, else those of the scans' convention; if it has no axis, that with the largest spacing.
    `split` is a file for `read_split`, which replaces an earlier one; by default the store keeps
    the one it has. `validation`, instead, asks for the rule and is the least number of patients in
    validation and in the test: in a new store `FEWEST_VALIDATED`. `selection` says what is wanted
    of the data set. `healthy` is a file of the ids of scans that are known to have no lesion, one a
    line: no mask has to tell. `windows` are for the normalisation `window`: one for all channels,
    or one for each.

    Raises `ScanError` if no scan can be used, `StoreError` if the store is of another size, kind or
    protocol or another process is writing it, `StudyError` if the split is wrong, `DiskFullError`.
    """
    started = time.monotonic()
    catalog = find_scans(scans, selection)
    target = StoreFolder.at(store)
    with disk_full_explained(target.path), _locked(target) as folder:
        parameters = settled_parameters(
            folder, catalog, size, axis, normalisation, windows, validation
        )
        before = _finished_subjects(folder)
        patients = _patients(before, catalog)
        known = {*patients, *catalog.problems}
        by_rule = validation is not None
        given = settled_split(folder, split, catalog, known, patients, by_rule)
        known_healthy = read_ids(healthy, known) if healthy else frozenset()
        parameters = windows_learnt(parameters, catalog, given, workers or usable_cpus())
        _begin(folder, parameters, given)
        missing, problems = _missing_scans(catalog, before)
        base = scans if scans.is_dir() else scans.parent
        work = _with_rows(missing, base, folder, parameters, before)
        problems |= _run(work, workers or usable_cpus(), progress)
        subjects = {
            id_: replace(
                subject, patient=patients[id_], healthy=subject.healthy or id_ in known_healthy
            )
            for id_, subject in _finished_subjects(folder).items()
        }
        _require_healthy(subjects, parameters, healthy)
        problems |= refuse_copies(folder, subjects)
        skipped = {subject: _in_a_line(error) for subject, error in problems.items()}
        if not subjects:
            shutil.rmtree(folder.path)
            raise _nothing_usable(scans, {**catalog.left_out, **skipped})
        kept = split_to_keep(given, subjects, parameters.fewest_validated)
        manifest = Manifest(parameters, subjects, skipped, kept, catalog.left_out)
        _publish(folder, target, manifest)
    return PrepareReport(
        subjects=len(subjects),
        patients=len(set(manifest.patient_of.values())),
        skipped=tuple(sorted(skipped.items())),
        left_out=manifest.left_out,
        account=account(SliceStore(target, manifest)),
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
    for subfolder in _folders_of(folder):
        subfolder.mkdir(exist_ok=True)
        remove_leftovers(subfolder)
    given = {"split": split.to_json()} if split else {}
    write_json(folder.parameters, {**parameters.to_json(), **given})


def _folders_of(folder: StoreFolder) -> tuple[Path, ...]:
    shards = folder.images_shard(0), folder.labels_shard(0), folder.scan_labels(0)
    return folder.path, folder.records, *(shard.parent for shard in shards)


def _finished_subjects(folder: StoreFolder) -> dict[str, Subject]:
    finished = Manifest.read(folder.manifest).subjects if folder.manifest.exists() else {}
    records = [json.loads(path.read_bytes()) for path in sorted(folder.records.glob("*.json"))]
    return {**finished, **{record["id"]: Subject.from_json(record) for record in records}}


def _patients(finished: Mapping[str, Subject], catalog: Catalog) -> dict[str, str]:
    """Whose each scan is, as the scans at hand say it, else as the store does.

    A scan of an older edition is of the patient who has others in a newer one.
    """
    patients = {id_: subject.patient for id_, subject in finished.items()}
    patients |= {files.id: files.patient for files in catalog.scans}
    known = set(patients.values())
    newest = {id_: patient_of(same_scan(id_)) for id_ in patients if same_scan(id_) != id_}
    return {
        id_: newest[id_] if newest.get(id_) in known else patient
        for id_, patient in patients.items()
    }


def _missing_scans(
    catalog: Catalog, finished: Mapping[str, Subject]
) -> tuple[list[ScanFiles], dict[str, ScanError]]:
    """The scans that are not in the store yet, and those that cannot come in."""
    ids = {same_scan(subject): subject for subject in finished}
    missing = [
        files
        for files in catalog.scans
        if files.id not in finished
        or (files.label_file is not None and not finished[files.id].labelled)
    ]
    problems = {id_: error for id_, error in catalog.problems.items() if id_ not in finished}
    for files in missing:
        if ids.get(same_scan(files.id), files.id) != files.id:
            found = f"the same subject twice: it is in the store as {ids[same_scan(files.id)]}"
            problems[files.id] = ScanError(found, where=files.channel_files[0].parent)
    return [files for files in missing if files.id not in problems], problems


def _with_rows(
    missing: list[ScanFiles],
    scans: Path,
    folder: StoreFolder,
    parameters: Parameters,
    finished: Mapping[str, Subject],
) -> list[ScanToPrepare]:
    """Give the free rows to the missing scans, in the order of their ids."""
    taken = {subject.row for subject in finished.values()}
    free = (row for row in count() if row not in taken)
    return [ScanToPrepare(files, scans, next(free), folder, parameters) for files in missing]


def _run(
    work: list[ScanToPrepare], workers: int, progress: Progress | None
) -> dict[str, ScanError]:
    """Prepare the scans; return the problems by id."""
    problems = {}
    prepared = in_processes(prepare_scan, work, workers, killed_at)
    for done, (subject, problem) in enumerate(prepared, start=1):
        if problem is not None:
            problems[subject] = problem
        if progress:
            progress(done, len(work))
    return problems


def _publish(folder: StoreFolder, store: StoreFolder, manifest: Manifest) -> None:
    """Make the store show `manifest`; put it in place if it was partial."""
    for subfolder in _folders_of(folder):  # a killed worker leaves something, too
        remove_leftovers(subfolder)
    rows = 1 + max(subject.row for subject in manifest.subjects.values())
    describe_arrays(folder, manifest.parameters, rows)
    manifest.write(folder.manifest)
    if folder != store:
        os.replace(folder.path, store.path)
        sync_folder(store.path.parent)
    shutil.rmtree(store.records)
    store.parameters.unlink()


def _require_healthy(
    subjects: Mapping[str, Subject], parameters: Parameters, where: Path | None
) -> None:
    lesion = parameters.meaning.lesion_values
    ill = [
        it.id
        for it in subjects.values()
        if it.healthy and any(it.lesion_mm3[k - 1] for k in lesion)
    ]
    if ill:
        raise StudyError(
            f"{len(ill)} scans are said to be healthy, and their masks show a lesion: {named(ill)}",
            where=where,
            expected="scans without any lesion",
            remedy="take them out of the list, or correct the masks; what is prepared is kept",
        )


def _in_a_line(error: FewscanError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())


def _nothing_usable(scans: Path, reasons: Mapping[str, str]) -> ScanError:
    shown = sorted(reasons.items())[:NAMED_AT_MOST]
    lines = "".join(f"\n    {subject}: {reason}" for subject, reason in shown)
    more = len(reasons) - len(shown)
    return ScanError(
        f"none of {len(reasons)} scans can be used:{lines}"
        + (f"\n    and {more} more" if more else ""),
        where=scans,
        expected="at least one good scan",
        remedy="fix what is named above and run the same command again",
    )
