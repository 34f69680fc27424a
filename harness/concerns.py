"""What of a study cannot run on its stores, and what a person should know before it does.

Both are found before anything runs: `require_possible` refuses, `concerns` tells.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

from fewscan.experiments.schemes import SCHEMES
from fewscan.experiments.spec import Network
from fewscan.harness.networks import median_spacing_mm, most_levels, network_of
from fewscan.harness.partner import finished_elsewhere
from fewscan.harness.plan import Plan
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError, named
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import FEWEST_TO_HOLD_OUT

SHOWN = 3
"""Seeds that are named."""
PREPARE_A_SPLIT = "give the store another split: `fewscan prepare SCANS STORE --split FILE`"


def require_possible(study: Study, store: SliceStore) -> None:
    """Raise `StudyError` if every run of the study would fail, or no score would mean anything."""
    _require_size(study, store)
    _require_scans_to_fit_on(study)
    for part in ("validation", "test"):
        ids: tuple[str, ...] = getattr(store.split, part)
        if not any(store.subjects[i].lesion_slices(store.meaning) for i in ids):
            raise StudyError(
                f"no lesion in the {part} split: {named(ids)} have none",
                where=store.path,
                expected=f"a lesion in some of the {len(ids)} {part} scans, to score against",
                remedy=PREPARE_A_SPLIT,
            )


def require_pretraining_possible(
    study: Study, name: str, store: SliceStore, network: Network
) -> None:
    """Raise `StudyError` if a pre-training has no slices to learn from or to be validated on, or
    its scheme cannot teach such a network."""
    which, scheme = study.pretrain[name].slices, study.pretrain[name].scheme
    if network.dims not in scheme.dims:
        raise StudyError(
            f"scheme {scheme.kind} teaches networks of {_in_dims(scheme.dims)} alone",
            where=f"pretrain.{name}.scheme",
            expected=f"a scheme of {network.dims}D: {', '.join(_schemes_of(network.dims))}",
            remedy=f"take one of them, or set pretrain.{name}.dims to 2 and fine-tune with "
            "transfer: inflate"
            if network.dims == 3
            else "take one of them",
        )
    depth = network.slices_a_patch
    parts = zip(("learn from", "be validated on"), store.pretraining(which, depth), strict=True)
    for what, ids in parts:
        if not ids:
            kind = "healthy slice" if which == "healthy" else "slice"
            if depth > 1:
                kind = f"patch of {depth} {kind}s"
            raise StudyError(
                f"no {kind} to {what}",
                where=f"pretrain.{name}, store {store.path}",
                expected="slices without a lesion in the training and in the validation split",
                remedy=f"set pretrain.{name}.slices to all, or leave the pre-training out "
                "(finetune.inits: [scratch], baselines: [supervised])",
            )


def require_fitting_store(study: Study, name: str, own: SliceStore, store: SliceStore) -> None:
    """Raise `StudyError` unless weights learnt on `own`, the pre-training's, fit the study's store.

    And unless no scan of it is validated or tested there.
    """
    facts = {
        "channels": (len(own.channels), len(store.channels)),
        "size": (own.size, store.size),
        "normalisation": (own.manifest.parameters.normalisation, normalisation_of(store)),
        "windows": (own.manifest.parameters.windows, store.manifest.parameters.windows),
    }
    for what, (found, expected) in facts.items():
        if found != expected:
            raise StudyError(
                f"the store of a pre-training has {what} {found}",
                where=f"pretrain.{name}.store, {own.path}",
                expected=f"{what} {expected}, as {store.path}",
                remedy="prepare the scans anew, as those of the study",
            )
    kept = {_outline(store, i) for i in (*store.split.validation, *store.split.test)}
    seen = chain(*own.pretraining(study.pretrain[name].slices))
    same = [i for i in seen if _outline(own, i) in kept]
    if same:
        raise StudyError(
            f"{len(same)} scans that the study validates or tests are in the store of a "
            f"pre-training: {named(same)}",
            where=f"pretrain.{name}.store, {own.path}",
            expected="other scans",
            remedy="prepare that store without them",
        )


def _outline(store: SliceStore, subject: str) -> tuple[object, ...]:
    """The same for the same images, whether they are labelled or not."""
    found = store.subjects[subject]
    return found.first, found.last, found.shape_XYZ, found.quantiles


def normalisation_of(store: SliceStore) -> str:
    """How voxel values of a store became comparable."""
    return store.manifest.parameters.normalisation


def concerns(plan: Plan) -> Iterator[str]:
    """Sentences on what a person may not expect of the study, without a full stop."""
    yield from plan.left_out
    if taken := len(finished_elsewhere(plan)):
        yield f"{taken} runs of the partner are finished, and are taken over by the next sweep"
    yield from _who_chooses(plan)
    yield from _masks_of_pretrainings(plan)
    for store in plan.folds or [plan.store]:
        where = f", {store.fold}" if store.fold else ""
        yield from _labels_without_lesion(plan, store, where)
        yield from _absent_classes(store, where)
    yield from _of_patches(plan)
    yield from _common_patients(plan)
    if not plan.store.keeps_scan_labels:
        yield (
            "the store was made before labels were kept at the scans' own resolution: there is no "
            "Dice there, only on the grid of the slices; prepare the scans into a new store for it"
        )


def _in_dims(dims: Sequence[int]) -> str:
    return " and ".join(f"{n}D" for n in dims)


def _schemes_of(dims: int) -> list[str]:
    """Our own that teach such networks."""
    return [kind for kind, scheme in SCHEMES.items() if dims in scheme.dims]


def _require_size(study: Study, store: SliceStore) -> None:
    if study.network.dims == 3:
        network_of(study, store)
        if all(it.dims != 2 for it in study.pretrain.values()):
            return
    halvings = study.network.depth - 1
    unit, most = 2**halvings, most_levels(store.size)
    if study.network.depth <= most:
        return
    smaller = max(store.size // unit, 2) * unit
    larger = smaller + unit
    raise StudyError(
        f"slices of {store.size} × {store.size} pixels cannot be halved {halvings} times",
        where="network.depth",
        expected=f"at most {most} levels for them, or a multiple of {unit} pixels",
        remedy=f"prepare slices of {smaller} or {larger} pixels (--size), or set network.depth to "
        f"{max(most, 2)}",
    )


def _require_scans_to_fit_on(study: Study) -> None:
    if study.evaluation.postprocesses and study.finetune.selection == "last":
        raise StudyError(
            "post-processing is fitted on the scans that choose the threshold, and no fine-tuning "
            "has any",
            where="evaluation.postprocess, finetune.selection: last",
            expected="finetune.selection: validation, or within",
            remedy="set finetune.selection to within, which holds out a fifth of the labelled "
            "scans, or leave evaluation.postprocess out",
        )


def _who_chooses(plan: Plan) -> Iterator[str]:
    """Labels that are none of the label count, and yet decide the numbers."""
    selection, validation = plan.study.finetune.selection, len(plan.split.validation)
    if selection == "validation":
        yield (
            f"the labels of {validation} validation scans choose model and threshold: a network of "
            f"1 labelled scan depends on those of {1 + validation}; finetune.selection: within or "
            "last needs none of them"
        )
    few = sorted({n for n in _label_counts(plan) if n < FEWEST_TO_HOLD_OUT})
    if plan.study.evaluation.postprocesses and selection == "within" and few:
        yield (
            f"fine-tunings with label counts {', '.join(map(str, few))} are not post-processed: of "
            f"fewer than {FEWEST_TO_HOLD_OUT} labelled scans none is held out to fit it on"
        )
    tune = plan.study.finetune.tune
    if tune is not None and selection != "within":
        yield f"the labels of {validation} validation scans choose the learning rates"
    elif tune is not None and tune.on.labels < FEWEST_TO_HOLD_OUT:
        yield (
            f"of {tune.on.labels} labelled scans none can be held out, so that the labels of "
            f"{validation} validation scans choose the learning rates; "
            f"finetune.tune.on.labels: {FEWEST_TO_HOLD_OUT} needs none of them"
        )


def _masks_of_pretrainings(plan: Plan) -> Iterator[str]:
    for name, wish in plan.study.pretrain.items():
        if wish.slices == "healthy":
            store = plan.store_of(name)
            learnt, validated = (
                sum(mask_told(store, i) for i in ids) for ids in store.pretraining("healthy")
            )
            if learnt or validated:
                yield (
                    f"pre-training {name} learns from healthy slices, which the masks of {learnt} "
                    f"training and {validated} validation scans tell: weak supervision"
                )


def mask_told(store: SliceStore, subject: str) -> bool:
    """Whether the mask of a scan tells which of its slices are healthy."""
    found = store.subjects[subject]
    return found.labelled and not found.healthy


def _labels_without_lesion(plan: Plan, store: SliceStore, where: str) -> Iterator[str]:
    """Cells whose labelled scans teach nothing of a lesion, or of some class."""
    bare: dict[str, dict[int, list[int]]] = {}
    counts = sorted(_label_counts(plan))
    for seed in plan.study.finetune.seeds:
        for count in counts:
            for name in _lacking(store, store.labelled_subset(count, seed)):
                bare.setdefault(name, {}).setdefault(seed, []).append(count)
    for name, cells in bare.items():
        seeds = [f"seed {seed} at {', '.join(map(str, found))}" for seed, found in cells.items()]
        first = next(iter(cells))
        ids = named(store.labelled_subset(cells[first][0], first))
        yield f"labelled scans show no {name}: {_first(seeds)} (seed {first}: {ids}){where}"


def _label_counts(plan: Plan) -> set[int]:
    """Of the grid and its baselines."""
    return {run.place.labels for run in plan.grid if run.place.labels is not None}


def _first(parts: Sequence[str]) -> str:
    more = len(parts) - SHOWN
    return "; ".join(parts[:SHOWN]) + (f"; and {more} more seeds" if more > 0 else "")


def _lacking(store: SliceStore, ids: Sequence[str]) -> tuple[str, ...]:
    """What none of the scans shows: a lesion, or some of the classes."""
    subjects = [store.subjects[i] for i in ids]
    if not any(subject.lesion_slices(store.meaning) for subject in subjects):
        return ("lesion",)
    pixels_K = sum(subject.lesion_pixels_NK.sum(axis=0) for subject in subjects)
    return tuple(name for name, n in zip(store.classes, pixels_K, strict=True) if not n)


def _absent_classes(store: SliceStore, where: str) -> Iterator[str]:
    for part in ("validation", "test"):
        lacking = _lacking(store, getattr(store.split, part))
        if lacking:
            what = " or ".join(lacking)
            yield f"no scan of the {part} split has {what}: not defined there{where}"


def _of_patches(plan: Plan) -> Iterator[str]:
    """What a 3D study sees of its scans."""
    network, store = plan.network, plan.store
    if network.patch is None:
        return
    through, *plane_mm = median_spacing_mm(store)
    mm = " × ".join(f"{it:.3g}" for it in (through, *plane_mm))
    patch = " × ".join(map(str, network.patch))
    flat = f"; {network.flat_levels} flat levels" if network.flat_levels else ""
    yield f"patches of {patch} voxels of {mm} mm, slices first{flat}"
    small = [i for i, it in store.subjects.items() if len(it.positions) < network.patch[0]]
    if small:
        yield (
            f"{len(small)} of {len(store.subjects)} scans have fewer kept slices than a patch; "
            "the rest of it is zeros"
        )
    for name, wish in plan.study.pretrain.items():
        own = plan.store_of(name)
        if wish.slices == "healthy" and wish.dims != 2:
            slices, patches = (
                sum(len(own.positions(own.subjects[i], "healthy", depth)) for i in ids)
                for depth in (1, network.patch[0])
                for ids in [own.pretraining("healthy")[0]]
            )
            yield (
                f"pre-training {name} learns from patches that are healthy throughout: {patches:,} "
                f"of {slices:,} healthy slices lie in the middle of one"
            )
    if 2 * through <= min(plane_mm):
        yield (
            "slices are less than half as far apart as pixels, and all axes are pooled alike; "
            "prepare larger slices (--size) for pixels of the size of voxels"
        )
    if network.patch[1:] != (store.size, store.size) and any(
        getattr(run.spec, "oversample_foreground", 0) for run in plan.runs
    ):
        yield (
            "oversample_foreground chooses slices with a lesion, and patches are narrower than "
            "slices: some of theirs show none"
        )


def _common_patients(plan: Plan) -> Iterator[str]:
    split = plan.store.split
    kept = {plan.store.patient(i) for i in (*split.validation, *split.test)}
    for name in plan.study.pretrain:
        store = plan.store_of(name)
        if store is not plan.store:
            learnt, _ = store.pretraining(plan.study.pretrain[name].slices)
            common = kept & {store.patient(i) for i in learnt}
            if common:
                yield (
                    f"pre-training {name} has patients of the same names as patients who are "
                    f"validated or tested: {named(common)}; make sure that they are others"
                )
