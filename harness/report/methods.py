"""What a reviewer asks first, from what was run: network, budget, data, labels, versions.

Every value comes from the plan, the store's manifest or the results; none is typed.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from fewscan.experiments.cost import parameter_count
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune, Pretrain, Training
from fewscan.harness.listing import spans
from fewscan.harness.networks import median_spacing_mm
from fewscan.harness.plan import Plan, slices_a_scan
from fewscan.harness.report.bootstrap import RESAMPLES
from fewscan.harness.report.studies import Studies
from fewscan.storage.errors import RunError
from fewscan.storage.geometry import Axis
from fewscan.storage.intensity import HIGH, LOW, QUANTILE
from fewscan.storage.splits import FEWEST_TO_HOLD_OUT, PARTS

OPTIMISERS = {
    "adam": "Adam (amsgrad)",
    "adamw": "AdamW (amsgrad)",
    "sgd": "SGD (Nesterov momentum)",
}
NORMALISATIONS = {
    "quantile": f"divided by the {QUANTILE:g} quantile of the foreground",
    "percentiles": f"clipped to the {100 * LOW:g} and {100 * HIGH:g} percentiles of the foreground",
    "window": "clipped to a fixed window",
    "labelled-percentiles": "clipped to percentiles of the labelled voxels of the training scans",
}
AXES: dict[Axis, str] = {
    0: "Along the first axis",
    1: "Along the second axis",
    2: "Along the third axis",
}
SELECTIONS = {
    "validation": "the lowest loss on the labelled scans of the validation split, which choose the "
    "threshold of a mask, too",
    "within": "the lowest loss on a fifth of the cell's own labelled scans, held out (from "
    f"{FEWEST_TO_HOLD_OUT} scans on; below, the last model at probability 0.5)",
    "last": "none: the last model is kept, and a mask is where the probability is above 0.5",
}
AUGMENTATIONS = {
    "nnunet": "nnU-Net's (rotation, scaling, mirroring, noise, blur, brightness, contrast, gamma, "
    "low resolution)",
    "none": "none",
}
COMPUTED = ("fewscan", "code", "torch", "numpy", "device", "precision", "ranks", "threads")


def methods(studies: Studies) -> list[tuple[str, str]]:
    """Terms, and a paragraph for each; of two studies those that they share, from the first."""
    plan = studies.first
    return [
        ("Data", _data(plan)),
        ("Slices", _slices(plan)),
        ("Network", _network(plan)),
        *(("Pre-training" if n == 0 else "", text) for n, text in enumerate(_pretrainings(plan))),
        ("Fine-tuning", _finetuning(plan)),
        ("Model and threshold", SELECTIONS[plan.study.finetune.selection].capitalize() + "."),
        ("Statistics", _statistics(studies)),
        ("Computed with", _computed(studies)),
    ]


def _data(plan: Plan) -> str:
    store, split = plan.store, plan.split
    parts = [f"{len(getattr(split, name))} {name}" for name in PARTS]
    text = f"{len(store.subjects)} scans: {', '.join(parts)}"
    if plan.folds:
        sizes = [
            f"{spans({len(getattr(it.split, name)) for it in plan.folds})} {name}" for name in PARTS
        ]
        text = (
            f"{len(store.subjects)} scans; cross-validation in {len(plan.folds)} outer folds of "
            f"{', '.join(sizes)}, in which each labelled scan is tested once, by networks that "
            "have not seen it, pre-training included"
        )
    if store.unlabelled:
        text += f", {len(store.unlabelled)} without labels"
    patients = {store.patient(it) for it in plan.tested}
    whose = "the published lists" if split.published else "ours"
    text += (
        f"; {len(patients)} test patients. Split: {whose}, no patient in two parts. "
        f"Channels: {', '.join(store.channels)}. Classes: {', '.join(store.classes)}. "
        f"Fingerprint {store.manifest.fingerprint}."
    )
    return text


def _slices(plan: Plan) -> str:
    store = plan.store
    parameters = store.manifest.parameters
    through, *plane = median_spacing_mm(store)
    axis = AXES.get(parameters.axis, str(parameters.axis).capitalize())
    text = (
        f"{axis}, {store.size} × {store.size} pixels of {plane[0]:.3g} × "
        f"{plane[1]:.3g} mm, {through:.3g} mm apart (medians), padded to a square. Voxels: "
        f"{NORMALISATIONS[parameters.normalisation]}."
    )
    if parameters.windows:
        windows = "; ".join(f"{low:g} to {high:g}" for low, high in parameters.windows)
        text += f" Windows: {windows}."
    return text


def _network(plan: Plan) -> str:
    it, channels = plan.network, len(plan.store.channels)
    kind = f"{it.dims}D U-Net"
    count = parameter_count(it, channels, 1)
    text = f"{kind}, width {it.width}, {it.depth} levels, {count:,} parameters with one output"
    if it.patch is not None:
        text += (
            f"; patches of {' × '.join(map(str, it.patch))} voxels, {it.flat_levels} flat levels"
        )
    return f"{text}; the same for all arms."


def _training(it: Training, rate: str) -> str:
    """Batch, optimiser, rate and what else is the same for all its runs."""
    course = "one cosine to 0"
    if it.lr_half_period is not None:
        course = f"cosine of half period {it.lr_half_period} updates"
    return (
        f"batch {it.batch_size}, {OPTIMISERS[it.optimiser]}, rate {rate} ({course}), weight decay "
        f"{it.weight_decay:g}{'' if it.decay_norms else ' (not of norms)'}, gradients clipped to "
        f"norm {it.clip_norm:g}, precision {it.precision}, validated every "
        f"{it.validate_every:,} updates"
    )


def _pretrainings(plan: Plan) -> Iterator[str]:
    """What each learns, and how it is trained; once, if that is the same for all."""
    how: dict[str, list[str]] = {}
    for name, wish in plan.study.pretrain.items():
        specs = [
            run.spec
            for run in plan.runs
            if isinstance(run.spec, Pretrain)
            and run.name.partition(" · seed ")[0] == f"pre-train {name}"
        ]
        if not specs:
            continue
        rate = f"{wish.training.lr:g}"
        if wish.tune is not None:
            rate = f"the best of {', '.join(f'{lr:g}' for lr in wish.tune.lr)} by validation"
        store = plan.store_of(name)
        what = "slices without a lesion" if wish.slices == "healthy" else "all slices"
        whose = "training and unlabelled scans" if store.unlabelled else "training scans"
        if store is not plan.store:  # which the first fold has, if there are some
            whose += f" of another store ({store.fingerprint[:12]})"
        seeds = len(specs)
        start = "" if wish.init == "scratch" else f", from {wish.init}"
        kind = f"{wish.scheme.kind} ({settings(wish.scheme)})"
        trained = (
            f"on {what} of the {whose}, {wish.training.iterations:,} updates, "
            f"{_training(wish.training, rate)}, {seeds} seed{'' if seeds == 1 else 's'}"
        )
        how.setdefault(trained, []).append(f"{name}: {kind}{start}")
    for trained, names in how.items():
        yield f"{'; '.join(names)}. {'Each' if len(names) > 1 else 'It is'} trained {trained}."


def settings(value: Any) -> str:
    """A scheme's settings: "resolution 16, std 0.2"."""
    return ", ".join(
        settings(found) if hasattr(found, "__dataclass_fields__") else f"{name} {_word(found)}"
        for name, found in vars(value).items()
        if found is not None
    )


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finetuning(plan: Plan) -> str:
    wish, each = plan.study.finetune, slices_a_scan(plan.store)
    trained = {
        run.spec.label_count: run.spec.training
        for run in plan.runs
        if isinstance(run.spec, Finetune) and run.place.is_cell and run.place.arm.is_ranked
    }
    updates: dict[int, list[int]] = {}
    for count, it in sorted(trained.items()):
        updates.setdefault(it.iterations, []).append(count)
    budget = "; ".join(
        f"{iterations:,} updates at {', '.join(map(str, counts))} labelled scans"
        for iterations, counts in updates.items()
    )
    epochs = ", ".join(
        f"{it.iterations * it.batch_size / count / each:.3g} at {count}"
        for count, it in sorted(trained.items())
    )
    rate = f"{wish.training.lr:g}"
    if wish.tune is not None:
        rates = ", ".join(f"{lr:g}" for lr in wish.tune.lr)
        rate = f"for each arm the best of {rates}, tried at {wish.tune.on.labels} labelled scans"
    seeds = len({run.place.seed for run in plan.grid})
    return (
        f"{budget} ({epochs} epochs), the same for all arms; {_training(wish.training, rate)}. "
        f"Schedule: {wish.schedule}. Augmentation: {AUGMENTATIONS[wish.augmentation.policy]}. "
        f"{seeds} seeds: each draws labelled scans (nested over label counts), order, augmentation "
        "and initial head, the same for all arms."
    )


def _statistics(studies: Studies) -> str:
    return (
        "Primary endpoint: the area under the label-efficiency curve over the logarithmic axis, "
        f"paired. Bootstrap over seeds and patients, crossed, {RESAMPLES:,} resamples, widened to "
        "Student's t; pre-trainings that seeds share are one unit. The family-wise error of all "
        f"comparisons is {studies.error:.2g}."
    )


def _computed(studies: Studies) -> str:
    """As the results record it: what is not the same for all runs is given with numbers of runs."""
    found: dict[str, Counter[str]] = {}
    for plan in studies.plans:
        for run in plan.runs:
            folder = plan.folder_of(run)
            if folder.result.exists():
                with suppress(RunError):  # the run's log names it
                    for key, value in Result.read(folder).computed.items():
                        found.setdefault(key, Counter())[str(value)] += 1
    texts = [f"{key} {_counted(found[key])}" for key in COMPUTED if key in found]
    return f"{', '.join(texts)}." if texts else "Not recorded."


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return " and ".join(f"{value} ({count} runs)" for value, count in values.most_common())
