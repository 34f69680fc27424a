"""The catalogue of metrics: what is measured on the test split, and in which words.

One row a metric. Scoring, `cases.csv`, the report, its tables, MLflow's names and the study file's
`published` all read this list; how a number is computed stands where `key` is registered
(`metrics`, `cases`, `surface_distance`). No torch in here: a study is looked at without it.

A metric's scope says what one number of it is about, and with that its names:

    scope      one number for                       column of cases.csv   key in result.json
    pooled     all pixels of the split together     KEY: a patient's      KEY
                                                    pseudo-value
    patient    a test scan                          KEY                   patient_KEY
    structure  a test scan and a structure: a       KEY_STRUCTURE         class_KEY/CLASS and
               class, a region of classes, or the                         class_KEY_mean, or
               lesion of a binary run                                     patient_KEY_lesion
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fewscan.experiments.spec import Evaluation, Target
from fewscan.storage.labels import LabelMeaning, Region

Scope = Literal["pooled", "patient", "structure"]
Compared = Literal["difference", "quartiles", "no"]

LESION = "lesion"
"""The structure of a binary run: all classes together."""


@dataclass(frozen=True)
class Metric:
    """One thing that is measured."""

    key: str
    title: str
    """For people; may name a field of `Evaluation` in braces."""
    scope: Scope
    explanation: str
    """One sentence: what it is, by which rule."""
    unit: str = ""
    """mm, mm³; empty for a number without one."""
    least: float = 0.0
    most: float = 1.0
    higher_is_better: bool = True
    compared: Compared = "no"
    """difference: means, paired differences, intervals. quartiles: described by quartiles, as it
    may be infinite or is mostly 0. no: it is recorded and shown."""
    targets: tuple[Target, ...] = ("binary", "multiclass")
    """Of the runs that have it."""
    compared_for: tuple[Target, ...] = ("binary", "multiclass")
    """Of the runs whose arms are compared by it."""
    leads: tuple[Target, ...] = ()
    """The targets whose verdict is about it."""
    panel: Target | None = None
    """The target whose published figure shows it."""
    panel_title: str = ""
    """Above that panel."""
    needs: str | None = None
    """A property of `Evaluation` that says whether the metric is computed; None: always."""
    grid: Literal["slices", "scan"] = "slices"
    """Where prediction and truth are compared. scan: at its own resolution, all slices of it."""
    of_lesions: bool = False
    """Whether it is about lesions: organs have none, and those of all classes together are a
    structure of their own."""
    before_postprocessing: bool = False
    """Whether it is about the prediction before post-processing changed it."""

    def is_computed(self, evaluation: Evaluation, target: Target, scan_labels: bool) -> bool:
        """Whether runs of the target have it under this evaluation.

        `scan_labels`: whether the store keeps the test scans' labels at their own resolution.
        """
        wanted = self.needs is None or bool(getattr(evaluation, self.needs))
        return wanted and target in self.targets and (self.grid == "slices" or scan_labels)

    def title_under(self, evaluation: Evaluation) -> str:
        """ "NSD at 2 mm"."""
        return self.title.format_map(_Plain(vars(evaluation)))

    def explanation_under(self, evaluation: Evaluation) -> str:
        """The explanation, with the numbers of the evaluation in it."""
        return self.explanation.format_map(_Plain(vars(evaluation)))

    def column(self, structure: str = "") -> str:
        """Its name in cases.csv."""
        return f"{self.key}_{structure}" if self.scope == "structure" else self.key

    def result_key(self, structure: str | None = None) -> str:
        """Its name in result.json; of a metric of structures the mean over classes if None."""
        if self.scope == "pooled":
            return self.key
        if self.scope == "patient" or structure == LESION:
            return f"patient_{self.column(structure or '')}"
        return f"class_{self.key}_mean" if structure is None else f"class_{self.key}/{structure}"

    def structures(
        self, target: Target, meaning: LabelMeaning, regions: Sequence[Region] = ()
    ) -> tuple[str, ...]:
        """What it has a number for in a run of the target: see `structures`."""
        if not self.of_lesions or target == "binary":
            return structures(target, meaning.classes, regions)
        classes = _lesion_classes(meaning)
        within = [name for name, members in regions if {*members} <= {*classes}]
        joint = (LESION,) if len(classes) > 1 else ()
        return tuple(dict.fromkeys((*classes, *within, *joint)))

    def averaged(self, meaning: LabelMeaning) -> tuple[str, ...]:
        """The classes that its mean over classes is over."""
        return _lesion_classes(meaning) if self.of_lesions else meaning.classes

    def overall_key(self, target: Target) -> str:
        """The name in result.json of the one number that it has for a run of the target."""
        return self.result_key(LESION if target == "binary" else None)


def _lesion_classes(meaning: LabelMeaning) -> tuple[str, ...]:
    return tuple(meaning.classes[k - 1] for k in meaning.lesion_values)


class _Plain(dict[str, object]):
    """Numbers without trailing zeros."""

    def __getitem__(self, name: str) -> object:
        value = super().__getitem__(name)
        return f"{value:g}" if isinstance(value, float) else value


CATALOGUE: tuple[Metric, ...] = (
    Metric(
        "pooled_ap",
        "average precision",
        "pooled",
        "Average precision of the lesion score over all pixels of all test scans together, scores "
        "in half precision, as published (Kascenas et al., MIDL 2022).",
        compared="difference",
        compared_for=("binary",),
        panel="binary",
        panel_title="pooled average precision",
    ),
    Metric(
        "pooled_best_dice",
        "⌈Dice⌉",
        "pooled",
        "Best Dice over the thresholds 0, 0.001 … 0.999, over all pixels of all test scans "
        "together. As published, its threshold is chosen on the test split itself: an upper bound, "
        "not a performance to expect.",
        compared="difference",
        compared_for=("binary",),
        panel="binary",
        panel_title="pooled ⌈Dice⌉ (best threshold on the test split)",
    ),
    Metric(
        "pooled_best_dice_threshold",
        "threshold of ⌈Dice⌉",
        "pooled",
        "The threshold that ⌈Dice⌉ chose on the test split.",
        most=math.inf,
    ),
    Metric(
        "pooled_dice_at_chosen_threshold",
        "Dice of all pixels at the chosen threshold",
        "pooled",
        "Dice over all pixels of all test scans together, at a threshold chosen without the test "
        "split: on validation, on held-out scans, or 0.5 (finetune.selection).",
        compared="difference",
        compared_for=("binary",),
    ),
    Metric(
        "pooled_best_dice_without_specks",
        "⌈Dice⌉ without specks",
        "pooled",
        "⌈Dice⌉'s mask without 3D components of at most {min_component_mm3} mm³; published are 20 "
        "voxels, 70.3125 mm³ on that grid.",
        compared="difference",
        compared_for=("binary",),
        needs="removes_specks",
    ),
    Metric(
        "dice_at_chosen_threshold",
        "Dice at the chosen threshold",
        "patient",
        "Dice of the lesion in 3D, on the grid of the slices, at a threshold chosen without the "
        "test split. A patient without a lesion does not count, whatever is predicted there.",
        compared="difference",
        compared_for=("binary",),
        leads=("binary",),
    ),
    Metric(
        "ap",
        "AP of each patient",
        "patient",
        "Average precision of the lesion score over the pixels of one test scan; a patient without "
        "a lesion does not count.",
        compared="difference",
        compared_for=("binary",),
    ),
    Metric(
        "dice",
        "Dice",
        "structure",
        "Dice of a class in 3D, on the grid of the slices; the published mean is over patients, "
        "then over classes (Holzschuh et al., MIDL 2023). A patient without the class does not "
        "count, whatever is predicted there.",
        compared="difference",
        targets=("multiclass",),
        leads=("multiclass",),
        panel="multiclass",
        panel_title="multi-class Dice (patients, then classes)",
    ),
    Metric(
        "dice_scan",
        "Dice at the scan's own resolution",
        "structure",
        "The same Dice of the segmentation that `fewscan predict` writes: probabilities or scores "
        "interpolated to the voxels of the scan, the threshold or the largest class afterwards, "
        "against its labels as they are in their file. Slices that are left out at the ends "
        "count as background.",
        compared="difference",
        grid="scan",
    ),
    Metric(
        "volume_mm3",
        "predicted volume",
        "structure",
        "Volume of the prediction.",
        unit="mm³",
        most=math.inf,
    ),
    Metric(
        "true_volume_mm3",
        "true volume",
        "structure",
        "Volume of the truth, on the grid of the slices.",
        unit="mm³",
        most=math.inf,
    ),
    Metric(
        "false_positive_mm3",
        "false positives",
        "structure",
        "Predicted volume in the patients without the structure, who are in no other number of it: "
        "the truth alone decides who counts, for every arm alike.",
        unit="mm³",
        most=math.inf,
        higher_is_better=False,
        compared="quartiles",
    ),
    Metric(
        "nsd",
        "NSD at {nsd_tolerance_mm} mm",
        "structure",
        "Normalised surface Dice: the share of both surfaces, by area, that lies within "
        "{nsd_tolerance_mm} mm of the other, in 3D (Nikolov et al. 2018; computed by MONAI).",
        compared="difference",
        needs="measures_surfaces",
    ),
    Metric(
        "hd95_mm",
        "HD95",
        "structure",
        "The larger of the two directed 95th percentiles of surface distances; infinite where "
        "nothing is predicted of a structure that is there.",
        unit="mm",
        most=math.inf,
        higher_is_better=False,
        compared="quartiles",
        needs="measures_surfaces",
    ),
    Metric(
        "dice_before_postprocessing",
        "Dice before post-processing",
        "structure",
        "Dice of the prediction as the network and its threshold leave it; every other number of a "
        "mask is of what post-processing makes of it.",
        compared="difference",
        needs="postprocesses",
        before_postprocessing=True,
    ),
    Metric(
        "lesion_dice",
        "lesion-wise Dice",
        "structure",
        "Mean Dice over true lesions, as BraTS 2023 has it: lesions whose surroundings of "
        "{lesion_reach_mm} mm touch are one, those of at most {smallest_lesion_mm3} mm³ are not "
        "counted, and predicted components that reach no lesion count as 0. A patient without a "
        "lesion does not count.",
        compared="difference",
        needs="lesion_wise",
        of_lesions=True,
    ),
    Metric(
        "lesion_dice_scan",
        "lesion-wise Dice at the scan's own resolution",
        "structure",
        "The same at the voxels of the scan: where they are 1 mm, the number of BraTS 2023's own "
        "code.",
        compared="difference",
        needs="lesion_wise",
        grid="scan",
        of_lesions=True,
    ),
    Metric(
        "lesion_nsd",
        "lesion-wise NSD at {nsd_tolerance_mm} mm",
        "structure",
        "Mean NSD over the same lesions, with 0 for each predicted component that reaches none.",
        compared="difference",
        needs="measures_lesion_surfaces",
        of_lesions=True,
    ),
    Metric(
        "lesion_f1",
        "F1 of lesions",
        "structure",
        "2 found / (2 found + missed + false) of the same lesions. One is found where its "
        "intersection over union with the components that reach it is at least {lesion_iou} "
        "(nnDetection's threshold, Baumgartner et al., MICCAI 2021).",
        compared="difference",
        needs="lesion_wise",
        of_lesions=True,
    ),
    Metric(
        "lesions_true",
        "true lesions",
        "structure",
        "True lesions that are counted.",
        most=math.inf,
        needs="lesion_wise",
        of_lesions=True,
    ),
    Metric(
        "lesions_found",
        "found lesions",
        "structure",
        "True lesions that are found.",
        most=math.inf,
        needs="lesion_wise",
        of_lesions=True,
    ),
    Metric(
        "lesions_false",
        "false lesions",
        "structure",
        "Predicted components that reach no true lesion, in every patient, one without a lesion "
        "too.",
        most=math.inf,
        higher_is_better=False,
        compared="quartiles",
        needs="lesion_wise",
        of_lesions=True,
    ),
)
METRICS = {metric.key: metric for metric in CATALOGUE}


def computed(evaluation: Evaluation, target: Target, scan_labels: bool) -> list[Metric]:
    """The metrics that runs of the target have, in the order of the catalogue."""
    return [it for it in CATALOGUE if it.is_computed(evaluation, target, scan_labels)]


def leading(target: Target) -> Metric:
    """The metric that the target's verdict is about."""
    return next(metric for metric in CATALOGUE if target in metric.leads)


def panels() -> list[tuple[Target, Metric]]:
    """The panels of the published figure: the target of their runs, and the metric."""
    return [(metric.panel, metric) for metric in CATALOGUE if metric.panel is not None]


def structures(
    target: Target, classes: Sequence[str], regions: Sequence[Region] = ()
) -> tuple[str, ...]:
    """What a run of the target is scored on: the classes of the store and then the regions of them,
    or the lesion. A mean over classes is one without regions."""
    names = [name for name, _ in regions]
    return (*classes, *names) if target == "multiclass" else (LESION,)
