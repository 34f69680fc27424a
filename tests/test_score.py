"""Scoring: the numbers are those of the plain formulas, and all of them come from the catalogue."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tiny import run_in_process
from torch import Tensor, nn

from fewscan.experiments import catalogue, measures
from fewscan.experiments import score as score_module
from fewscan.experiments.anomaly import remove_small_components
from fewscan.experiments.cases import mean_over_patients
from fewscan.experiments.catalogue import CATALOGUE, Metric
from fewscan.experiments.devices import Devices, Preempted
from fewscan.experiments.measures import MEASURES, Masks
from fewscan.experiments.postprocess import apply, rules_of
from fewscan.experiments.predictor import Predictor
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.score import score
from fewscan.experiments.spec import Evaluation, Postprocess, Score, ScoredSplit, Target
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

CPU = Devices()
AS_PUBLISHED = Evaluation()
SPACING_MM = (1.0, 20 / 16, 20 / 16)
"""Slices of 20² voxels of 1 mm became 16²."""
VOXEL_MM3 = (20 / 16) ** 2
IDENTITY = {"subject", "patient", "pixels", "lesion_pixels"}
"""Columns of cases.csv that are no metrics."""


class Flair(Predictor):
    """Without a network: how bright FLAIR is, and for classes the second one where it is bright."""

    def __init__(self, target: Target | None) -> None:
        super().__init__((nn.Linear(1, 1),), target)

    def to(self, device: str) -> Predictor:
        return self

    def _of(
        self,
        network: nn.Module,
        images_NCHW: Tensor,
        spacing_mm_HW: tuple[float, float] | None,
    ) -> Tensor:
        assert spacing_mm_HW == SPACING_MM[1:]
        bright_NHW = images_NCHW[:, 0].clamp(0, 1)
        if not self.has_classes:
            return bright_NHW[:, None]
        nothing_NHW = torch.zeros_like(bright_NHW)
        threshold_NHW = torch.full_like(bright_NHW, 0.9)
        return torch.stack([threshold_NHW, nothing_NHW, bright_NHW, nothing_NHW], dim=1)


class Specked(Flair):
    """The same, and a pixel in a corner of all slices."""

    def _of(
        self,
        network: nn.Module,
        images_NCHW: Tensor,
        spacing_mm_HW: tuple[float, float] | None,
    ) -> Tensor:
        images_NCHW = images_NCHW.clone()
        images_NCHW[:, 0, 0, 0] = 1
        return super()._of(network, images_NCHW, spacing_mm_HW)


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "score")


@pytest.fixture
def scored(
    store: SliceStore, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Scores by the brightness of FLAIR."""

    def make(
        evaluation: Evaluation = AS_PUBLISHED,
        target: Target | None = "multiclass",
        devices: Devices = CPU,
        split: ScoredSplit = "test",
        predictor: type[Flair] = Flair,
    ) -> Result:
        monkeypatch.setattr(score_module, "predictor_of_score", lambda *_: predictor(target))
        spec = Score(store.fingerprint, evaluation, (), split)
        format_ = SliceFormat.of_store(store)
        RunRecord(spec, "study", "score", format_, store.path).write(folder)
        return score(spec, folder, devices)

    return make


def read_rows(folder: RunFolder) -> list[dict[str, str]]:
    return list(csv.DictReader(folder.cases.open()))


def pooled(store: SliceStore, ids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    slices = store.read(ids)
    scores = slices.images_NCHW[:, 0].astype(np.float32).clip(0, 1).astype(np.float16)
    return scores, slices.labels_NHW


def test_the_numbers_are_those_of_all_test_pixels_at_once(
    store: SliceStore, folder: RunFolder, scored: Callable[..., Result]
) -> None:
    result = scored()
    scores, labels = pooled(store, store.split.test)
    truth = labels > 0
    ap = average_precision_score(truth.ravel(), scores.ravel())
    assert result.test["pooled_ap"] == pytest.approx(ap, rel=1e-12)
    predicted = scores > np.float16(result.threshold)
    dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert result.test["pooled_dice_at_chosen_threshold"] == pytest.approx(dice, rel=1e-12)
    best_dice, best_threshold = best_by_trying(scores, truth)
    assert result.test["pooled_best_dice"] == pytest.approx(best_dice, rel=1e-12)
    assert result.test["pooled_best_dice_threshold"] == best_threshold
    result.write(folder)
    assert Result.read(folder) == result
    assert json.loads(json.dumps(folder.read_result(), allow_nan=False))["test"] == result.test


def best_by_trying(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    dice = []
    for threshold in np.arange(1000) / 1000:
        predicted = scores > np.float16(threshold)
        dice.append(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))
    return max(dice), float(np.argmax(dice) / 1000)


def test_each_patient_has_its_share_of_the_pooled_numbers(
    store: SliceStore,
    folder: RunFolder,
    scored: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two scans are one patient's: they are left out together, and both say its share."""
    first, second, *others = store.split.test
    patient = {first: "A", second: "A"} | {it: it for it in others}
    monkeypatch.setattr(SliceStore, "patient", lambda self, subject: patient.get(subject, subject))
    result = scored(Evaluation(min_component_mm3=42.4 * VOXEL_MM3), target=None)
    rows = read_rows(folder)
    left_out = {
        out: [pooled(store, (it,)) for it in store.split.test if patient[it] != out]
        for out in dict.fromkeys(patient.values())
    }

    def numbers(parts: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        truth = labels > 0
        ap = float(average_precision_score(truth.ravel(), scores.ravel()))
        specks = np.float16(result.test["pooled_best_dice_threshold"])
        kept = [remove_small_components(scan > specks, 42) for scan, _ in parts]
        return {
            "pooled_ap": ap,
            "pooled_best_dice": best_by_trying(scores, truth)[0],
            "pooled_dice_at_chosen_threshold": plain_dice(
                scores > np.float16(result.threshold), truth
            ),
            "pooled_best_dice_without_specks": plain_dice(np.concatenate(kept), truth),
        }

    without = {out: numbers(parts) for out, parts in left_out.items()}
    assert len(without) == len(rows) - 1
    for key in without["A"]:
        middle = np.mean([it[key] for it in without.values()])
        for row in rows:
            share = result.test[key] + 3 * (middle - without[row["patient"]][key])
            assert float(row[key]) == pytest.approx(share, rel=1e-9), key
        mean = mean_over_patients([{**row} for row in rows], key)
        assert mean == pytest.approx(result.test[key], rel=1e-12)


def plain_dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


def test_the_threshold_is_chosen_without_the_test_split(
    store: SliceStore, scored: Callable[..., Result]
) -> None:
    result = scored()
    scores, labels = pooled(store, store.split.validation)
    dice, threshold = best_by_trying(scores, labels > 0)
    assert result.validation["pooled_best_dice"] == pytest.approx(dice, rel=1e-12)
    assert result.threshold == threshold


def test_a_score_of_the_validation_split_never_reads_the_test_split(
    store: SliceStore,
    folder: RunFolder,
    scored: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = scored()
    folder.cases.unlink()
    read, asked = SliceStore.read_subject, []

    def counting(self: SliceStore, subject: str) -> object:
        asked.append(subject)
        return read(self, subject)

    monkeypatch.setattr(SliceStore, "read_subject", counting)
    result = scored(split="validation")
    assert asked == list(store.split.validation)
    assert result.validation == whole.validation
    assert result.test == {}
    assert not folder.cases.exists()


def test_one_row_a_test_scan(
    store: SliceStore, folder: RunFolder, scored: Callable[..., Result]
) -> None:
    result = scored()
    rows = read_rows(folder)
    assert [row["subject"] for row in rows] == list(store.split.test)
    for row in rows:
        slices = store.read_subject(row["subject"])
        truth = slices.labels_NHW == 2
        predicted = slices.images_NCHW[:, 0].astype(np.float32) > 0.9
        dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
        assert float(row["dice_oedema"]) == pytest.approx(dice, rel=1e-12)
        assert int(row["pixels"]) == slices.labels_NHW.size
        assert int(row["lesion_pixels"]) == (slices.labels_NHW > 0).sum()
        assert float(row["volume_mm3_oedema"]) == pytest.approx(predicted.sum() * VOXEL_MM3)
    mean = np.mean([float(row["dice_oedema"]) for row in rows])
    assert result.test["class_dice/oedema"] == pytest.approx(mean, rel=1e-12)


def test_dice_of_a_patient_is_at_the_threshold_of_validation(
    store: SliceStore, folder: RunFolder, scored: Callable[..., Result]
) -> None:
    """In half precision on both sides, as the pooled one is."""
    result = scored(target=None)
    threshold = np.float16(result.threshold)
    rows = read_rows(folder)
    found, true = 0, 0
    for row in rows:
        scores, labels = pooled(store, (row["subject"],))
        predicted, truth = scores > threshold, labels > 0
        found, true = found + predicted.sum(), true + truth.sum()
        dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
        assert float(row["dice_at_chosen_threshold"]) == pytest.approx(dice, rel=1e-12)
    for name, pixels in (("volume_mm3_lesion", found), ("true_volume_mm3_lesion", true)):
        total_mm3 = sum(float(row[name]) for row in rows)
        assert total_mm3 == pytest.approx(pixels * VOXEL_MM3)
    for name in ("ap", "dice_at_chosen_threshold", "nsd_lesion"):
        mean = np.mean([float(row[name]) for row in rows])
        assert result.test[f"patient_{name}"] == pytest.approx(mean, rel=1e-12)


def test_surfaces_are_those_of_the_masks_in_millimetres(
    store: SliceStore, folder: RunFolder, scored: Callable[..., Result]
) -> None:
    evaluation = Evaluation(nsd_tolerance_mm=1.5)
    scored(evaluation, devices=Devices(threads=2))
    for row in read_rows(folder):
        slices = store.read_subject(row["subject"])
        predicted = slices.images_NCHW[:, 0].astype(np.float32) > 0.9
        masks = Masks(predicted, slices.labels_NHW == 2, SPACING_MM)
        expected = [MEASURES[key](masks, evaluation) for key in ("nsd", "hd95_mm")]
        assert [float(row["nsd_oedema"]), float(row["hd95_mm_oedema"])] == expected
        never_predicted = ("0.0", "inf") if (slices.labels_NHW == 1).any() else ("", "")
        assert (row["nsd_necrotic_core"], row["hd95_mm_necrotic_core"]) == never_predicted


def test_specks_can_be_removed(scored: Callable[..., Result]) -> None:
    """Everything is a speck if specks may be large; then nothing is found."""
    none = scored(Evaluation(min_component_mm3=1e9))
    assert none.test["pooled_best_dice_without_specks"] == 0
    some = scored(Evaluation(min_component_mm3=VOXEL_MM3))
    assert some.test["pooled_best_dice_without_specks"] > 0
    assert none.test["pooled_best_dice"] == some.test["pooled_best_dice"]
    assert "pooled_best_dice_without_specks" not in scored().test


def test_dice_without_specks_is_that_of_what_is_left(
    store: SliceStore, scored: Callable[..., Result]
) -> None:
    """Of all test scans together, at the threshold of the best Dice."""
    result = scored(Evaluation(min_component_mm3=42.4 * VOXEL_MM3))
    threshold = np.float16(result.test["pooled_best_dice_threshold"])
    found, left, true, hits = 0, 0, 0, 0
    for subject in store.split.test:
        scores, labels = pooled(store, (subject,))
        mask, truth = remove_small_components(scores > threshold, 42), labels > 0
        found, left = found + (scores > threshold).sum(), left + mask.sum()
        true, hits = true + truth.sum(), hits + (mask & truth).sum()
    assert 0 < left < found, "some are small, and some are not"
    dice = 2 * hits / (left + true)
    assert result.test["pooled_best_dice_without_specks"] == pytest.approx(dice, rel=1e-12)


@pytest.mark.parametrize("target", [None, "multiclass"])
def test_what_is_not_defined_is_null(
    folder: RunFolder,
    scored: Callable[..., Result],
    target: Target | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A split without lesions has no AP and no threshold."""
    read = SliceStore.read_subject

    def healthy(self: SliceStore, subject: str) -> object:
        slices = read(self, subject)
        slices.labels_NHW[...] = 0
        return slices

    monkeypatch.setattr(SliceStore, "read_subject", healthy)
    result = scored(target=target)
    assert result.test["pooled_ap"] is None
    assert result.test["pooled_dice_at_chosen_threshold"] is None
    assert result.threshold is None
    assert {row["dice_at_chosen_threshold"] for row in read_rows(folder)} == {""}
    result.write(folder)
    assert Result.read(folder) == result


POSTPROCESSED = Evaluation(
    nsd_tolerance_mm=None,
    lesion_wise=True,
    postprocess=Postprocess(largest_component=True, min_lesion_mm3=(5.0, 20.0), fill_holes=True),
)


@pytest.mark.parametrize("target", [None, "multiclass"])
def test_masks_are_postprocessed_and_pixels_are_not(
    store: SliceStore, folder: RunFolder, scored: Callable[..., Result], target: Target | None
) -> None:
    """By the rules that validation chose; what each was before stands beside it."""
    bare = replace(POSTPROCESSED, postprocess=Postprocess())
    plain, rows_before = scored(bare, target, predictor=Specked), read_rows(folder)
    result, rows = scored(POSTPROCESSED, target, predictor=Specked), read_rows(folder)
    rules = rules_of(result.postprocess)
    assert rules
    assert plain.postprocess == {}
    pooled = [key for key in plain.test if key.startswith("pooled")]
    assert [result.test[key] for key in pooled] == [plain.test[key] for key in pooled]
    name = "oedema" if target else "lesion"
    column = "dice_oedema" if target else "dice_at_chosen_threshold"
    changed, unchanged = [], []
    for before, row in zip(rows_before, rows, strict=True):
        slices = store.read_subject(row["subject"])
        scores = slices.images_NCHW[:, 0].astype(np.float32).clip(0, 1)
        scores[:, 0, 0] = 1
        above = scores.astype(np.float16) > np.float16(result.threshold)
        found = 2 * (scores > 0.9) if target else above
        labels = apply(rules, found.astype(np.uint8), SPACING_MM)
        truth = slices.labels_NHW == 2 if target else slices.labels_NHW > 0
        dice = plain_dice(labels == (2 if target else 1), truth)
        assert float(row[column]) == pytest.approx(dice, rel=1e-12)
        changed.append((row[column], row[f"dice_scan_{name}"]))
        unchanged.append((before[column], before[f"dice_scan_{name}"]))
        assert row[f"dice_before_postprocessing_{name}"] == before[column]
        assert row["ap"] == before["ap"]
    for new, old in zip(zip(*changed, strict=True), zip(*unchanged, strict=True), strict=True):
        assert new != old, "on the grid of the slices, and on that of the scan"
    before_, after = (result.validation[f"dice_{it}_postprocessing"] for it in ("before", "after"))
    assert after > before_
    result.write(folder)
    assert Result.read(folder) == result


def test_postprocessing_is_fitted_without_the_test_split(
    store: SliceStore, scored: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the scans that choose the threshold: once for it, once at it."""
    read, asked = SliceStore.read_subject, []

    def counting(self: SliceStore, subject: str) -> object:
        asked.append(subject)
        return read(self, subject)

    monkeypatch.setattr(SliceStore, "read_subject", counting)
    fitted = scored(POSTPROCESSED, None, split="validation", predictor=Specked).postprocess
    assert fitted["rules"]
    assert asked == [*store.split.validation, *store.split.validation]
    assert fitted["scans"] == len(store.split.validation)
    whole = scored(POSTPROCESSED, None, predictor=Specked)
    assert whole.postprocess == fitted


def test_where_no_label_may_choose_nothing_is_postprocessed(
    folder: RunFolder, scored: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "_scans_that_choose", lambda *_: {})
    result = scored(POSTPROCESSED, None)
    assert (result.postprocess["scans"], rules_of(result.postprocess)) == (0, ())
    assert "dice_after_postprocessing" not in result.validation
    for row in read_rows(folder):
        assert row["dice_before_postprocessing_lesion"] == row["dice_at_chosen_threshold"]


def trained_and_scored(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> tuple[Plan, list[PlannedRun]]:
    """The tiny study's pre-training and one cell of each target, run for real, and its scores."""
    finetune = tiny_document["finetune"] | {"label_counts": [2], "inits": ["denoise"]}
    plan = make_plan(
        tiny_study(
            finetune=finetune,
            baselines=["unsupervised"],
            evaluation={"min_component_mm3": 2.0, "nsd_tolerance_mm": 2.0},
        )
    )
    run_in_process(plan, plan.runs)
    return plan, list(plan.scores)


def keys_of(metrics: tuple[Metric, ...], classes: tuple[str, ...]) -> set[str]:
    return {m.result_key(s) for m in metrics for s in (None, "lesion", *classes)}


def columns_of(metrics: tuple[Metric, ...], classes: tuple[str, ...]) -> set[str]:
    return {m.column(s) for m in metrics for s in ("lesion", *classes)}


def test_every_number_comes_from_the_catalogue_and_a_new_metric_needs_no_other_change(
    tiny_study: Callable[..., Study],
    tiny_document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, scores = trained_and_scored(tiny_study, tiny_document)
    classes = plan.store.classes
    assert {run.place.target for run in scores} == {"binary", "multiclass"}
    assert len(scores) == 3
    for run in scores:
        folder = plan.folder_of(run)
        assert set(Result.read(folder).test) <= keys_of(CATALOGUE, classes)
        assert set(read_rows(folder)[0]) <= IDENTITY | columns_of(CATALOGUE, classes)
        assert set(read_rows(folder)[0]) > IDENTITY

    toy = Metric("voxels", "voxels", "structure", "How many.", most=math.inf, compared="difference")
    monkeypatch.setattr(catalogue, "CATALOGUE", (*CATALOGUE, toy))
    monkeypatch.setitem(measures.MEASURES, "voxels", lambda masks, _: float(masks.truth_ZHW.sum()))
    run_again(plan, scores)
    for run in scores:
        folder, multiclass = plan.folder_of(run), run.place.target == "multiclass"
        rows, test = read_rows(folder), Result.read(folder).test
        named = classes if multiclass else ("lesion",)
        for name in named:
            each = [float(row[f"voxels_{name}"]) for row in rows]
            assert test[toy.result_key(name)] == pytest.approx(np.mean(each))
            assert sum(each) > 0
        assert ("class_voxels_mean" in test) is multiclass


def run_again(plan: Plan, scores: list[PlannedRun]) -> None:
    for run in scores:
        plan.folder_of(run).result.unlink()
    run_in_process(plan, scores)


def test_a_score_says_whose_labels_its_networks_learnt_from(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """Those of its parents, each once; a pre-training has learnt from none."""
    plan, scores = trained_and_scored(tiny_study, tiny_document)
    for run in scores:
        (parent,) = (plan.folder.run(run_id) for run_id in run.parents)
        labelled = Result.read(plan.folder_of(run)).labelled
        assert labelled == Result.read(parent).labelled
        assert len(labelled) == (0 if run.place.labels is None else 2)


def test_a_score_needs_monai_before_it_reads_anything(
    scored: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install monai"):
        scored()


def test_a_score_needs_scipy_for_components_alone(
    scored: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install scipy"):
        scored(Evaluation(nsd_tolerance_mm=None, lesion_wise=True))


def test_a_score_is_seen_while_it_runs_and_is_whole_or_not_there(
    folder: RunFolder, scored: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored()
    cases = folder.cases.read_bytes()
    folder.cases.unlink()
    assert folder.state() == "running"
    assert folder.read_progress()["steps"] == 1 + 5, "scans of validation and test"
    assert folder.read_progress()["step"] == 1, "the first heartbeat comes with the first scan"
    (started,) = folder.committed_events()
    assert (started.kind, started.attempt["device"], started.attempt["ranks"]) == (
        "started",
        "cpu",
        1,
    )
    with pytest.raises(Preempted):
        scored(devices=Devices(should_stop=lambda: True))
    assert not folder.cases.exists()
    assert scored() == expected
    assert folder.cases.read_bytes() == cases


def test_a_metric_of_another_version_is_named(
    store: SliceStore, folder: RunFolder, scored: Callable[..., Result]
) -> None:
    scored()
    spec = Score(store.fingerprint, AS_PUBLISHED, (), metrics=("ap", "beauty"))
    with pytest.raises(RunError, match="asks for beauty, which this version"):
        score(spec, folder, CPU)
