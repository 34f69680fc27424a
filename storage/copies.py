"""One scan under two ids: found by the slices that were made of it, whatever the files are called.

A scan that is in two parts of the split is trained on and scored on. Of two copies the one that is
in the store already stays, else the first by id. Scans of one patient may be equal: they are always
in the same part, and `check` lists them.
"""

from collections import Counter
from collections.abc import Mapping, MutableMapping
from hashlib import sha256

from fewscan.storage.errors import ScanError
from fewscan.storage.manifest import Manifest, StoreFolder, Subject


def refuse_copies(
    folder: StoreFolder, subjects: MutableMapping[str, Subject]
) -> dict[str, ScanError]:
    """Take copies out of `subjects`, and their files out of `folder`; return id → what is wrong.

    Subjects are copies if they have equal slices, or equal images with other labels. Those in the
    manifest stay, so that no finished store loses a subject.
    """
    present = Manifest.read(folder.manifest).subjects if folder.manifest.exists() else {}
    images = _equal_images(folder, subjects)
    first: dict[str, Subject] = {}
    problems = {}
    for subject in sorted(subjects.values(), key=lambda s: (s.id not in present, s.id)):
        contents = [subject.sha256, images.get(subject.id, subject.sha256)]
        others = [first[content] for content in contents if content in first]
        copied = next((other for other in others if other.patient != subject.patient), None)
        if copied is None or subject.id in present:
            for content in contents:
                first.setdefault(content, subject)
        else:
            problems[subject.id] = _problem(subject, copied)
            del subjects[subject.id]
            _remove(folder, subject)
    return problems


def _equal_images(folder: StoreFolder, subjects: Mapping[str, Subject]) -> dict[str, str]:
    """SHA-256 of the images' shard, of those subjects whose records leave it possible."""
    outlines = {id_: (s.first, s.last, s.quantiles) for id_, s in subjects.items()}
    counts = Counter(outlines.values())
    return {
        id_: sha256(folder.images_shard(subjects[id_].row).read_bytes()).hexdigest()
        for id_, outline in outlines.items()
        if counts[outline] > 1 and folder.images_shard(subjects[id_].row).exists()
    }


def _problem(subject: Subject, copied: Subject) -> ScanError:
    return ScanError(
        f"the same scan as {copied.id}, under another id: {subject.id} has equal slices "
        f"({subject.files[0]} and {copied.files[0]})",
        expected="each scan under one id",
        remedy="remove one, so that no scan is in two parts of the split",
    )


def _remove(folder: StoreFolder, subject: Subject) -> None:
    """The record first: without it the row is free, and what lies there is written over."""
    folder.record(subject.id).unlink(missing_ok=True)
    folder.images_shard(subject.row).unlink(missing_ok=True)
    folder.labels_shard(subject.row).unlink(missing_ok=True)
    folder.scan_labels(subject.row).unlink(missing_ok=True)
