"""Scoring: what trained networks are worth on a split. No training waits for it.

Letters in names: N slices, C channels, Z slices of a scan, H and W rows and columns.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import torch

from fewscan.experiments.anomaly import remove_small_components, voxels_in
from fewscan.experiments.cases import Case, OnScan, Row, case_row, means, to_csv
from fewscan.experiments.catalogue import LESION, METRICS
from fewscan.experiments.components import require_components
from fewscan.experiments.data import open_store
from fewscan.experiments.devices import Devices, Preempted
from fewscan.experiments.metrics import PixelScores, PooledScores, pseudo_values
from fewscan.experiments.postprocess import Dice, Example, Fitted, Rule, apply, fit
from fewscan.experiments.predictor import (
    PREDICTION_BATCH,
    Predictor,
    above,
    lesion_score,
    predictor_of_score,
)
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.scan_grid import labelled_on_the_scan, spacing_on_the_scan
from fewscan.experiments.spec import Evaluation, Finetune, Score, Target
from fewscan.experiments.surface_distance import require_surface_distances
from fewscan.storage.atomic import write_bytes
from fewscan.storage.errors import RunError
from fewscan.storage.labels import LabelMeaning, Region
from fewscan.storage.runs import HEARTBEAT_EVERY_S, RunFolder
from fewscan.storage.slices import Slices, SliceStore

PATIENTS_WAITING = 8
"""Whose masks are in memory at most, until a thread has compared them."""


def score(spec: Score, folder: RunFolder, devices: Devices) -> Result:
    """The stage of `Score`: leaves `cases.csv` in the folder and returns the result.

    Raises `RunError` if a parent's model cannot be used, or MONAI or scipy is needed and missing.
    """
    require_surface_distances(spec.evaluation)
    require_components(spec.evaluation)
    _require_known(spec.metrics)
    store = open_store(folder, spec.data)
    parents = [folder.sibling(run_id) for run_id in spec.parents]
    predictor = predictor_of_score(spec, parents, store.channels).to(devices.device)
    trained = [Result.read(parent) for parent in parents]
    chooses = _scans_that_choose(parents, trained, store)
    scans = _scans_to_choose(spec, chooses) + _scans_to_score(spec, store)
    scorer = _Scorer(predictor, store, devices, _Clock(folder, devices, scans))
    folder.append_event("started", 0, attempt=devices.description())
    _require_scan_labels(spec, store)
    validation, threshold = _choose_threshold(scorer, chooses)
    fitted = _fit_postprocessing(scorer, spec.evaluation, chooses, threshold)
    if fitted is not None and fitted.scans:
        validation["dice_before_postprocessing"] = Dice(fitted.before).mean
        validation["dice_after_postprocessing"] = Dice(fitted.after).mean
    rules = () if fitted is None else fitted.rules
    test: dict[str, float] = {}
    if spec.split == "test":
        test, rows = score_test_split(scorer, spec.evaluation, threshold, spec.regions, rules)
        write_bytes(folder.cases, to_csv(rows))
    return Result(
        spec.kind,
        labelled=tuple(dict.fromkeys(id_ for it in trained for id_ in it.labelled)),
        held_out=tuple(dict.fromkeys(id_ for it in trained for id_ in it.held_out)),
        validation=_defined(validation),
        test=_defined(test),
        postprocess={} if fitted is None else fitted.to_json(),
    )


def _require_known(metrics: Sequence[str]) -> None:
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise RunError(
            f"the score asks for {', '.join(unknown)}, which this version of fewscan does not know",
            expected=", ".join(METRICS),
            remedy="use the version of fewscan that planned it, or plan it anew: sweep again",
        )


def _require_scan_labels(spec: Score, store: SliceStore) -> None:
    wanted = [key for key in spec.metrics if METRICS[key].grid == "scan"]
    if wanted and not store.keeps_scan_labels:
        raise RunError(
            f"the score asks for {', '.join(wanted)}, and the store keeps no labels at the scans' "
            "own resolution",
            where=store.path,
            expected="the store that it was planned with",
            remedy="plan it anew for this store: sweep again",
        )


@dataclass(frozen=True)
class Scored:
    """What the networks say of one scan."""

    subject: str
    pixels: PixelScores
    """Of all kept slices."""
    scores_ZHW: torch.Tensor
    """float16, on the CPU."""
    labels_ZHW: np.ndarray | None
    """uint8; from networks that know classes."""
    truth_ZHW: np.ndarray
    """uint8."""
    true_lesion_ZHW: np.ndarray
    """bool: the classes that are lesions."""
    spacing_mm_ZHW: tuple[float, float, float]
    scan: OnScan | None = None


@dataclass
class _Clock:
    """Heartbeats of a score; whether its place is being taken away."""

    folder: RunFolder
    devices: Devices
    scans: int
    """To be scored in all, those that are scored twice twice."""
    done: int = 0
    last_beat: float = -math.inf

    def scored_one(self) -> None:
        """Leave a heartbeat if it is time. Raises `Preempted`: a score begins anew afterwards."""
        self.done += 1
        now = time.monotonic()
        if now - self.last_beat >= HEARTBEAT_EVERY_S:
            self.last_beat = now
            self.folder.beat(self.done, self.scans)
            if self.devices.should_stop():
                raise Preempted


@dataclass(frozen=True)
class _Scorer:
    """Runs the networks over the slices of one scan after the other."""

    predictor: Predictor
    store: SliceStore
    devices: Devices
    clock: "_Clock"

    def each(self, subjects: Sequence[str], threshold: float | None = None) -> Iterator[Scored]:
        """One scan after the other; the next one is read while this one is scored.

        With a threshold at the scan's own resolution, too, if the store keeps labels there; where
        validation could choose none it is nan.
        """
        wants_scan = threshold is not None and self.store.keeps_scan_labels
        with ThreadPoolExecutor(1) as reader:
            coming: list[Future[_Read]] = []
            for subject, following in zip_longest(subjects, subjects[1:]):
                read = coming.pop().result() if coming else self._read(subject, wants_scan)
                if following is not None:
                    coming.append(reader.submit(self._read, following, wants_scan))
                yield self._scored(subject, *read, threshold)
                self.clock.scored_one()

    def each_that_chooses(self, chooses: Mapping[str, tuple[int, ...]]) -> Iterator[Scored]:
        """The scans that choose, each as the networks of these numbers see it; as all, if none."""
        for numbers in dict.fromkeys(chooses.values()):
            predictor = self.predictor.among(numbers) if numbers else self.predictor
            asked = replace(self, predictor=predictor)
            yield from asked.each([id_ for id_, own in chooses.items() if own == numbers])

    def _read(self, subject: str, wants_scan: bool) -> "_Read":
        """Slices, and the labels on the scan's own grid if they are wanted."""
        labels_ZHW = self.store.read_scan_labels(subject) if wants_scan else None
        return self.store.read_subject(subject), labels_ZHW

    def _scored(
        self,
        subject: str,
        slices: Slices,
        scan_truth_ZHW: np.ndarray | None,
        threshold: float | None,
    ) -> Scored:
        """All slices of a scan, a batch at a time.

        Where the truth is not known nothing is found and nothing is there, for all that follows.
        """
        pixels, scores, labels = PixelScores(), [], []
        meaning, truth_ZHW = self.store.meaning, slices.labels_NHW
        spacing_mm_ZHW = self.store.spacing_mm_ZHW(subject)
        lesion = meaning.lesion_values if self.predictor.has_classes else None
        truth_NHW = torch.from_numpy(truth_ZHW).split(PREDICTION_BATCH)
        frame, on_scan = self.store.frame(subject), list[np.ndarray]()
        images = torch.from_numpy(slices.images_NCHW)
        batches = self.predictor.in_batches(images, spacing_mm_ZHW)
        for maps_NKHW, true_NHW in zip(batches, truth_NHW, strict=True):
            scores_NHW = lesion_score(maps_NKHW, lesion)
            true_NHW = true_NHW.to(scores_NHW.device)
            found_NHW = self.predictor.labels(maps_NKHW, None)
            if meaning.has_ignored:
                known_NHW = meaning.is_known(true_NHW)
                pixels.update(scores_NHW[known_NHW], meaning.is_lesion(true_NHW)[known_NHW])
                scores_NHW = scores_NHW * known_NHW
                found_NHW = None if found_NHW is None else found_NHW * known_NHW
            else:
                pixels.update(scores_NHW, meaning.is_lesion(true_NHW))
            if scan_truth_ZHW is not None and not self._lacks(threshold):
                _, back_NHW = labelled_on_the_scan(self.predictor, maps_NKHW, frame, threshold)
                assert back_NHW is not None
                on_scan.append(back_NHW.cpu().numpy())
            scores.append(scores_NHW.half().cpu())
            if found_NHW is not None:
                labels.append(found_NHW.cpu().numpy())
        return Scored(
            subject,
            pixels,
            torch.cat(scores),
            np.concatenate(labels) if labels else None,
            truth_ZHW,
            meaning.is_lesion(truth_ZHW),
            spacing_mm_ZHW,
            None if scan_truth_ZHW is None else self._on_scan(subject, on_scan, scan_truth_ZHW),
        )

    def _lacks(self, threshold: float | None) -> bool:
        """Whether a mask needs a threshold that is not there."""
        return not self.predictor.has_classes and (threshold is None or math.isnan(threshold))

    def _on_scan(self, subject: str, found: Sequence[np.ndarray], truth_ZHW: np.ndarray) -> OnScan:
        """Nothing is found in the slices that are not kept, nor where the truth is not known."""
        meaning, scan = self.store.meaning, self.store.subject(subject)
        found_ZHW = None
        if found:
            found_ZHW = np.zeros_like(truth_ZHW)
            found_ZHW[scan.positions.start : scan.positions.stop] = np.concatenate(found)
            if meaning.has_ignored:
                found_ZHW *= meaning.is_known(truth_ZHW)
        true_lesion_ZHW = meaning.is_lesion(truth_ZHW)
        spacing_mm_ZHW = spacing_on_the_scan(scan.spacing_mm, self.store.frame(subject))
        return OnScan(found_ZHW, truth_ZHW, true_lesion_ZHW, spacing_mm_ZHW)


_Read = tuple[Slices, np.ndarray | None]


def _scans_to_choose(spec: Score, chooses: Collection[str]) -> int:
    """Those that choose, again for post-processing: it takes masks, hence the threshold."""
    return (2 if spec.evaluation.postprocesses else 1) * len(chooses)


def _scans_to_score(spec: Score, store: SliceStore) -> int:
    """Of the test split, each as often as it is gone through."""
    tested = len(store.split.test) if spec.split == "test" else 0
    return 2 * tested if spec.evaluation.removes_specks else tested


MIDDLE = 0.5
"""The threshold of a probability that no label has chosen."""


def _scans_that_choose(
    parents: Sequence[RunFolder], trained: Sequence[Result], store: SliceStore
) -> dict[str, tuple[int, ...]]:
    """The scans whose labels choose the threshold, each with the networks, by number, that say
    where it has a lesion: the scans that chose the models, and the networks that held it out.
    Without numbers all do.

    So of several folds each labelled scan is seen by the one network that has not learnt from it,
    as nnU-Net's cross-validation has it, and no other label is needed. What was pre-trained alone
    has no probability, so the validation split tells its threshold.
    """
    specs = [RunRecord.read(parent).spec for parent in parents]
    if specs and all(isinstance(it, Finetune) and it.selection != "validation" for it in specs):
        held_out = dict.fromkeys(id_ for it in trained for id_ in it.held_out)
        return {
            id_: tuple(n for n, it in enumerate(trained) if id_ in it.held_out) for id_ in held_out
        }
    return dict.fromkeys(store.split.validation, ())


def _choose_threshold(
    scorer: _Scorer, chooses: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, float], float]:
    """The threshold that is best on these scans, with its numbers there; without any the middle."""
    if not chooses:
        return {"threshold": MIDDLE}, MIDDLE
    pooled = _pooled(scored.pixels for scored in scorer.each_that_chooses(chooses))
    dice, threshold = pooled.best_dice()
    numbers = {
        "pooled_ap": pooled.average_precision(),
        "pooled_best_dice": dice,
        "threshold": threshold,
    }
    return numbers, threshold


def _fit_postprocessing(
    scorer: _Scorer,
    evaluation: Evaluation,
    chooses: Mapping[str, tuple[int, ...]],
    threshold: float,
) -> Fitted | None:
    """What raises Dice on the scans that chose the threshold; without any of them no rule.

    None: it is not asked for.
    """
    if not evaluation.postprocesses:
        return None
    store, meaning = scorer.store, scorer.store.meaning
    multiclass = scorer.predictor.has_classes
    examples = []
    for scored in scorer.each_that_chooses(chooses):
        case = _case(scored, store, threshold)
        if case.found_ZHW is not None:
            truth_ZHW = case.truth_ZHW * meaning.is_known(case.truth_ZHW)
            truth_ZHW = truth_ZHW if multiclass else case.true_lesion_ZHW.view(np.uint8)
            spacing_mm_ZHW = case.spacing_mm_ZHW
            example = Example(case.patient, case.found_ZHW, truth_ZHW, spacing_mm_ZHW)
            examples.append(example.cropped())
    if not examples:
        return Fitted()
    names = meaning.classes if multiclass else (LESION,)
    lesion = meaning.lesion_values if multiclass else (1,)
    return fit(evaluation.postprocess, examples, names, lesion, scorer.devices.threads)


def score_test_split(
    scorer: _Scorer,
    evaluation: Evaluation,
    threshold: float,
    regions: Sequence[Region] = (),
    rules: Sequence[Rule] = (),
) -> tuple[dict[str, float], list[Row]]:
    """All numbers of the catalogue, and a row a scan; masks are changed and compared in threads."""
    store, target = scorer.store, scorer.predictor.target or "binary"
    pooled = PooledScores()
    rows: list[Future[Row]] = []
    with ThreadPoolExecutor(scorer.devices.threads) as threads:
        for scored in scorer.each(store.split.test, threshold):
            pooled.add(store.patient(scored.subject), scored.pixels)
            case = _case(scored, store, threshold)
            wanted = (target, store.meaning, evaluation, regions)
            rows.append(threads.submit(_row, case, rules, *wanted))
            if len(rows) > PATIENTS_WAITING:
                rows[-PATIENTS_WAITING].result()
    found = [row.result() for row in rows]
    numbers, shares = _pooled_numbers(scorer, evaluation, pooled, threshold)
    for key, of_patients in shares.items():
        for it in found:
            it[key] = of_patients[str(it["patient"])]
    of_scans = means(found, target, store.meaning, evaluation, regions, store.keeps_scan_labels)
    return numbers | of_scans, found


def _row(
    case: Case,
    rules: Sequence[Rule],
    target: Target,
    meaning: LabelMeaning,
    evaluation: Evaluation,
    regions: Sequence[Region],
) -> Row:
    if evaluation.postprocesses:
        case = _postprocessed(case, rules, target, meaning)
    return case_row(case, target, meaning, evaluation, regions)


def _postprocessed(
    case: Case, rules: Sequence[Rule], target: Target, meaning: LabelMeaning
) -> Case:
    """With what was found after the rules, on both grids; nothing is found where no truth is."""
    if case.found_ZHW is None:
        return case
    found_ZHW, scan = _changed(case, rules, meaning), case.scan
    if scan is not None and scan.found_ZHW is not None:
        scan = replace(scan, found_ZHW=_changed(scan, rules, meaning))
    lesion_ZHW = found_ZHW > 0 if target == "binary" else case.lesion_ZHW
    return replace(
        case, found_ZHW=found_ZHW, lesion_ZHW=lesion_ZHW, scan=scan, before_ZHW=case.found_ZHW
    )


def _changed(grid: Case | OnScan, rules: Sequence[Rule], meaning: LabelMeaning) -> np.ndarray:
    assert grid.found_ZHW is not None
    found_ZHW = apply(rules, grid.found_ZHW, grid.spacing_mm_ZHW)
    if meaning.has_ignored and rules:  # a hole may have been filled there
        found_ZHW = found_ZHW * meaning.is_known(grid.truth_ZHW)
    return found_ZHW


def _pooled_numbers(
    scorer: _Scorer, evaluation: Evaluation, pooled: PooledScores, threshold: float
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Of all pixels of all scans at once, as published; and metric → patient → pseudo-value.

    ⌈Dice⌉'s threshold is chosen on the test split itself; "…_at_chosen_threshold" is what can
    be had without looking. Without a patient ⌈Dice⌉ chooses anew, and specks are those of the
    threshold of all.
    """
    statistics: dict[str, Callable[[PixelScores], float]] = {
        "pooled_ap": PixelScores.average_precision,
        "pooled_best_dice": lambda it: it.best_dice()[0],
        "pooled_dice_at_chosen_threshold": lambda it: dice_at(it, threshold),
    }
    numbers = {key: statistic(pooled.whole) for key, statistic in statistics.items()}
    shares = {key: pooled.pseudo_values(statistic) for key, statistic in statistics.items()}
    _, best_threshold = pooled.whole.best_dice()
    numbers["pooled_best_dice_threshold"] = best_threshold
    if evaluation.removes_specks:
        key = "pooled_best_dice_without_specks"
        sums: dict[str, np.ndarray] = {}
        for scored in scorer.each(scorer.store.split.test):
            patient = scorer.store.patient(scored.subject)
            own = without_specks(scored, best_threshold, evaluation.min_component_mm3)
            sums[patient] = sums.get(patient, 0) + np.array(own)
        whole = np.sum([*sums.values()], axis=0)
        numbers[key] = _ratio(whole)
        without = {patient: _ratio(whole - own) for patient, own in sums.items()}
        shares[key] = pseudo_values(numbers[key], without)
    return numbers, shares


def _ratio(sums: np.ndarray) -> float:
    """nan for 0 / 0."""
    above_, below = sums.tolist()
    return above_ / below if below else math.nan


def _case(scored: Scored, store: SliceStore, threshold: float) -> Case:
    lesion_ZHW = None if math.isnan(threshold) else above(scored.scores_ZHW, threshold).numpy()
    found_ZHW = lesion_ZHW.view(np.uint8) if lesion_ZHW is not None else None
    return Case(
        scored.subject,
        store.patient(scored.subject),
        scored.pixels,
        found_ZHW if scored.labels_ZHW is None else scored.labels_ZHW,
        scored.truth_ZHW,
        scored.true_lesion_ZHW,
        lesion_ZHW,
        scored.spacing_mm_ZHW,
        scored.scan,
    )


def without_specks(scored: Scored, threshold: float, max_mm3: float) -> tuple[int, int]:
    """Twice the hits, and predicted plus true pixels, without small components."""
    max_voxels = voxels_in(max_mm3, scored.spacing_mm_ZHW)
    mask_ZHW = remove_small_components(above(scored.scores_ZHW, threshold).numpy(), max_voxels)
    truth_ZHW = scored.true_lesion_ZHW
    return 2 * int((mask_ZHW & truth_ZHW).sum()), int(mask_ZHW.sum() + truth_ZHW.sum())


def dice_at(scores: PixelScores, threshold: float) -> float:
    """Dice at a threshold that another split chose; nan if that split had no lesion."""
    return math.nan if math.isnan(threshold) else scores.dice_at(threshold)


def _pooled(parts: Iterable[PixelScores]) -> PixelScores:
    return sum(parts, PixelScores())


def _defined(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}
