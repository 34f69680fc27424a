"""One scan's way into a store, and the processes that take many of them there.

The shards are written first, the record last: a subject with a record is done.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from storage.atomic import write_bytes
from storage.errors import ScanError, StoreError
from storage.manifest import Parameters, StoreFolder, Subject
from storage.preprocess import ScanSlices, preprocess
from storage.scans import Scan, ScanFiles, read_scan
from storage.shards import encode_shard
from storage.slices import slices_sha256


@dataclass(frozen=True)
class Job:
    """One subject to prepare; goes to a worker process."""

    files: ScanFiles
    scans: Path
    """the folder that file names are told relative to"""
    row: int
    """where the subject goes in the store"""
    folder: StoreFolder
    parameters: Parameters


def run_jobs(jobs: list[Job], workers: int) -> Iterator[tuple[str, ScanError | None]]:
    """Prepare the subjects in `workers` processes; yield what `prepare_subject` returns.

    Raises `DiskFullError`, or `StoreError` if a process dies.
    """
    if min(workers, len(jobs)) <= 1:
        yield from map(prepare_subject, jobs)
        return
    # Spawned, not forked: the parent may hold threads and libraries that do not survive a fork.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), initializer=_end_with_parent
    )
    try:
        for future in as_completed([pool.submit(prepare_subject, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise StoreError(
            "a worker process died, perhaps for lack of memory",
            where=jobs[0].folder.path,
            remedy="run the same command again with fewer workers; finished subjects are kept",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: end when the parent is killed; leave Ctrl-C to the parent."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def prepare_subject(job: Job) -> tuple[str, ScanError | None]:
    """Write one subject's shards, then its record; return its id and what is wrong with it."""
    try:
        files, parameters = job.files, job.parameters
        _require_labels(files)
        scan = read_scan(files)
        _require_room(scan, files, parameters)
        slices = preprocess(scan, parameters.size)
    except ScanError as error:
        return job.files.id, error
    assert slices.labels_NHW is not None
    folder, row = job.folder, job.row
    _write_shard(folder.images_shard(row), slices.images_NCHW, slices.first, parameters.depth)
    _write_shard(folder.labels_shard(row), slices.labels_NHW, slices.first, parameters.depth)
    record = json.dumps(_subject(job, scan, slices).to_json())
    write_bytes(folder.record(files.id), record.encode())
    return files.id, None


def _require_labels(files: ScanFiles) -> None:
    if files.label_file is None:
        raise ScanError(
            "no segmentation",
            where=files.channel_files[0].parent,
            expected="a seg file beside the channels",
            remedy="add it; a store holds labelled scans only",
        )


def _require_room(scan: Scan, files: ScanFiles, parameters: Parameters) -> None:
    slices = scan.channels_XYZ[0].shape[2]
    if slices > parameters.depth:
        raise ScanError(
            f"{slices} slices",
            where=files.channel_files[0],
            expected=f"at most {parameters.depth}, the most when this store was begun",
            remedy="prepare all scans into a new store",
        )


def _write_shard(path: Path, slices_N: np.ndarray, first: int, depth: int) -> None:
    shard = encode_shard(slices_N, first, depth)
    if shard is None:  # nor one left by a killed run that gave this row to another subject
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, shard)


def _subject(job: Job, scan: Scan, slices: ScanSlices) -> Subject:
    labels_NHW = slices.labels_NHW
    assert labels_NHW is not None
    assert scan.labels_XYZ is not None
    assert job.files.label_file is not None
    classes = range(1, len(job.parameters.classes) + 1)
    voxel_mm3 = abs(float(np.linalg.det(scan.affine[:3, :3])))
    pixels_NK = np.stack([(labels_NHW == k).sum(axis=(1, 2)) for k in classes], axis=1)
    x, y, z = scan.labels_XYZ.shape
    files = (*job.files.channel_files, job.files.label_file)
    return Subject(
        id=job.files.id,
        row=job.row,
        first=slices.first,
        last=slices.first + len(labels_NHW) - 1,
        lesion_pixels_NK=pixels_NK.astype(np.int32),
        shape_XYZ=(x, y, z),
        affine=tuple(map(tuple, scan.affine.tolist())),
        spacing_mm=scan.spacing_mm,
        quantiles=slices.quantiles,
        naming=job.files.naming,
        label_values=job.files.label_values,
        files=tuple(path.relative_to(job.scans).as_posix() for path in files),
        lesion_mm3=tuple(np.count_nonzero(scan.labels_XYZ == k) * voxel_mm3 for k in classes),
        sha256=slices_sha256(slices.first, slices.images_NCHW, labels_NHW),
    )
