"""What became of the scans: what a store has lost of them, and what was assumed about them.

`prepare` ends with it, and `check` says it again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod

from fewscan.storage.errors import StudyError, named
from fewscan.storage.manifest import Subject
from fewscan.storage.slices import SliceStore


def account(store: SliceStore) -> tuple[str, ...]:
    """A line for each kind of loss and each assumption; none if there was none."""
    subjects = list(store.subjects.values())
    parts: tuple[Callable[[SliceStore, Sequence[Subject]], Iterable[str]], ...] = (
        _empty,
        _unlabelled,
        _windows,
        _lost_lesions,
        _without_lesion,
        _healthy,
        _several_scans,
        _assumed,
        _not_taken,
    )
    return tuple(line for part in parts for line in part(store, subjects))


def _unlabelled(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    count = len(store.manifest.unlabelled)
    if not count:
        return
    try:
        usable = len(store.unlabelled)
    except StudyError:
        usable = count
    kept = f"; {count - usable} of them are of patients who are validated or tested, and not used"
    yield f"unlabelled: {count} scans, for pre-training alone{kept if usable < count else ''}"


def _empty(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    count = sum(store.slices_of(it) for it in subjects)
    kept = sum(len(it.positions) for it in subjects)
    if kept < count:
        yield f"slices: {kept} of {count} are kept; in the others there is nothing"


def _windows(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    parameters = store.manifest.parameters
    if parameters.windows:
        pairs = zip(parameters.channels, parameters.windows, strict=True)
        shown = "; ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in pairs)
        masks = parameters.window_masks
        learnt = f", learnt from the masks of {masks} scans, which counts as labels"
        yield f"windows: {shown}{learnt if masks else ''}"
    ct = [name for name in parameters.channels if name.casefold() == "ct"]
    if ct and parameters.normalisation == "percentiles":
        yield (
            "CT: each scan is scaled from its air to its bone, which leaves soft tissue little "
            "contrast; --normalisation window --window LOW HIGH, or labelled-percentiles, is better"
        )


def _lost_lesions(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    labelled = [it for it in subjects if it.labelled]
    hidden = sum(len(it.hidden_lesions) for it in labelled)
    if hidden:
        shown = sum(it.lesion_slices(store.meaning) for it in labelled)
        yield (
            f"lost: {hidden} of {hidden + shown} slices with a lesion show none at {store.size} "
            "pixels; they do not count as healthy (a larger --size keeps more)"
        )
    dropped = [it for it in labelled if it.dropped_lesion_slices]
    if dropped:
        count = sum(it.dropped_lesion_slices for it in dropped)
        yield f"lost: {count} slices with a lesion, in which nothing else is: {_ids(dropped)}"
    gone = [it for it in labelled if _lesion_mm3(store, it) and not _pixels(store, it)]
    if gone:
        yield f"lost: all lesions of {len(gone)} scans: {_ids(gone)}"
    if hidden or dropped:
        before = sum(_lesion_mm3(store, it) for it in labelled)
        after = sum(_pixels(store, it) * prod(store.spacing_mm_ZHW(it.id)) for it in labelled)
        ml = f"{after / 1000:.1f} ml in the store, {before / 1000:.1f} ml in the scans"
        yield f"lesion volume: {ml}"


def _without_lesion(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    found = [it for it in subjects if it.labelled and not _lesion_mm3(store, it)]
    if found:
        yield f"without a lesion: {len(found)} labelled scans: {_ids(found)}"


def _healthy(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    known = [it for it in subjects if it.healthy]
    if known:
        yield f"known to be healthy: {len(known)} scans; no mask had to tell"
    if store.meaning.lesion:
        organs = [name for name in store.classes if name not in store.meaning.lesion]
        yield f"lesions: {', '.join(store.meaning.lesion)}; organs: {', '.join(organs)}"
    if not any(it.healthy_positions(store.meaning) for it in subjects):
        yield "no healthy slice: pre-training needs `slices: all`, or scans known to be healthy"


def _several_scans(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    shared = store.manifest.shared_patients
    if shared:
        yield f"patients with several scans: {len(shared)}, each in one part: {named(shared)}"


def _assumed(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    by_note: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        for note in subject.notes:
            by_note[note].append(subject)
    for note, found in sorted(by_note.items()):
        yield f"{note}: {len(found)} scans: {_ids(found)}"


def _not_taken(store: SliceStore, subjects: Sequence[Subject]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in store.manifest.not_taken.items():
        by_reason[reason].append(name)
    for reason, names in sorted(by_reason.items()):
        yield f"left out: {reason}: {named(names)}"


def _ids(subjects: Iterable[Subject]) -> str:
    return named(subject.id for subject in subjects)


def _lesion_mm3(store: SliceStore, subject: Subject) -> float:
    return sum(subject.lesion_mm3[k - 1] for k in store.meaning.lesion_values)


def _pixels(store: SliceStore, subject: Subject) -> int:
    found = subject.lesion_pixels_NK[:, [k - 1 for k in store.meaning.lesion_values]]
    return int(found.sum())
