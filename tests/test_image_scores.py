"""Baselines without a network: what they score, how a study names them, where they are shown."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score
from tiny import run_in_process

from fewscan.experiments.anomaly import reconstruction_anomaly
from fewscan.experiments.image_scores import SMOOTHING_MM, ImageScore, smoothed
from fewscan.experiments.predictor import Predictor
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Evaluation, Score, from_json, run_id, to_json
from fewscan.harness.arms import Arm
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.predict import predict
from fewscan.harness.report.results import panel_points, read_results
from fewscan.harness.report.studies import one_study
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Study
from fewscan.harness.tracking.mlflow_run import view_of
from fewscan.storage.errors import StudyError

CHANNELS = ("flair", "t1", "t1ce", "t2")
IMAGES_NCHW = torch.rand(2, 4, 20, 24, generator=torch.Generator().manual_seed(0)) - 0.2
MM_HW = (1.5, 3.0)


def scores_of(name: str) -> torch.Tensor:
    predictor = Predictor((), None, ImageScore.named(name).among(CHANNELS))
    (maps_NKHW,) = predictor.in_batches(IMAGES_NCHW, MM_HW)
    return maps_NKHW[:, 0]


def test_a_channel_is_half_of_its_value_and_never_negative() -> None:
    expected = IMAGES_NCHW[:, 2].clamp(min=0) / 2
    assert torch.equal(scores_of("channel t1ce"), expected)
    assert (IMAGES_NCHW < 0).any()


def test_smoothing_is_a_gaussian_in_millimetres_with_reflected_borders() -> None:
    found = smoothed(IMAGES_NCHW, 3.0, MM_HW)
    for image, smooth in zip(IMAGES_NCHW.flatten(end_dim=1), found.flatten(end_dim=1), strict=True):
        expected = ndimage.gaussian_filter(
            image.numpy().astype(np.float64), (2.0, 1.0), mode="mirror", truncate=3.0
        )
        np.testing.assert_allclose(smooth, expected, atol=1e-5)


def test_the_difference_to_the_smoothed_image_is_scored_as_a_reconstruction_is() -> None:
    images_NCHW = IMAGES_NCHW.clone()
    images_NCHW[:, :, 4:16, 4:20] += 1
    predictor = Predictor((), None, ImageScore.named("smoothed").among(CHANNELS))
    outputs_NCHW = smoothed(images_NCHW, SMOOTHING_MM, MM_HW)
    expected = reconstruction_anomaly(images_NCHW, outputs_NCHW, MM_HW)
    assert torch.equal(predictor.maps(images_NCHW, MM_HW)[:, 0], expected)
    assert expected.any()


def test_a_gaussian_wider_than_the_slice_smooths_it_all_the_same() -> None:
    found = smoothed(IMAGES_NCHW, 200.0, MM_HW)
    assert found.isfinite().all()
    assert found.std(dim=(2, 3)).max() < 0.1 * IMAGES_NCHW.std()


def test_names_are_read_back() -> None:
    for name in ("smoothed", "channel flair", "channel T1 Gd"):
        assert ImageScore.named(name).name == name
    for name in ("", "channel", "channel  ", "smooth", "unsupervised"):
        assert not ImageScore.named(name)
    with pytest.raises(ValueError, match="not both"):
        ImageScore("flair", 6.0)


def test_what_is_scored_is_in_the_spec_and_its_id() -> None:
    """And an older score, which says nothing of it, keeps its id."""
    plain = Score("data", Evaluation(), ())
    specs = [plain, *(replace(plain, image=ImageScore.named(it)) for it in BASELINES)]
    specs.append(replace(plain, image=ImageScore(smoothing_mm=1.0)))
    assert len({run_id(spec) for spec in specs}) == len(specs)
    for spec in specs:
        assert from_json(json.loads(json.dumps(to_json(spec)))) == spec
    without = {k: v for k, v in to_json(plain).items() if k != "image"}
    assert from_json(without) == plain


BASELINES = ["smoothed", "channel flair", "channel t1"]


@pytest.fixture
def plan(tiny_study: Callable[..., Study], tiny_document: dict[str, Any]) -> Plan:
    finetune = tiny_document["finetune"] | {"label_counts": [2], "inits": ["scratch"]}
    return make_plan(tiny_study(pretrain={}, finetune=finetune, baselines=BASELINES))


def test_each_is_one_score_that_waits_for_nothing_and_costs_no_network(plan: Plan) -> None:
    found = [run for run in plan.scores if run.place.arm.kind == "unsupervised"]
    assert [run.place.arm for run in found] == [Arm("unsupervised", it) for it in BASELINES]
    for run in found:
        assert (run.parents, run.flops, run.place.target, run.place.labels) == (
            (),
            0,
            "binary",
            None,
        )


def test_a_channel_that_the_store_lacks_is_named_with_those_that_it_has(
    tiny_study: Callable[..., Study],
) -> None:
    with pytest.raises(StudyError, match="no channel 'ct' for a baseline") as caught:
        make_plan(tiny_study(baselines=["channel ct"]))
    assert "flair, t1, t1ce, t2" in str(caught.value)
    with pytest.raises(StudyError, match=r"baselines\.0: .*channel NAME, found 'flair'"):
        tiny_study(baselines=["flair"])


def test_a_pretraining_of_the_same_name_is_refused(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    pretrain = {"smoothed": tiny_document["pretrain"]["denoise"]}
    finetune = tiny_document["finetune"] | {"inits": ["scratch"]}
    with pytest.raises(StudyError, match="called 'smoothed', as a baseline"):
        make_plan(tiny_study(pretrain=pretrain, finetune=finetune, baselines=["smoothed"]))


def test_they_are_scored_shown_tracked_and_used_on_new_scans(
    plan: Plan, scans: Any, undrawn: None
) -> None:
    run_in_process(plan, plan.runs)
    by_name = {run.place.arm.init: run for run in plan.scores}
    check_channel(plan, by_name["channel flair"])
    studies = one_study(plan)
    points = {it.arm.init: it for it in panel_points(studies, read_results(studies)) if it.values}
    write_report(studies)
    page = (plan.folder.report / "report.html").read_text()
    for name in BASELINES:
        run = by_name[name]
        test = Result.read(plan.folder_of(run)).test
        assert points[name].labels is None
        assert 0 < (test["pooled_ap"] or 0) < 1
        assert Result.read(plan.folder_of(run)).labelled == ()
        assert f"unsupervised: {name}" in page
        view = view_of(plan, run, "finished", "FINISHED")
        assert (view.params["arm"], view.params["init"]) == (f"unsupervised: {name}", name)
        assert view.model is None
        found = predict(plan.folder_of(run).path, scans / plan.store.split.test[0])
        assert found.map_names == ("anomaly",)
        assert found.labels_XYZ is not None
    assert "how bright flair is, no network" in page


def check_channel(plan: Plan, run: Any) -> None:
    """Of all pixels of all test scans, by the plain means."""
    folder, store = plan.folder_of(run), plan.store
    slices = store.read(store.split.test)
    flair = slices.images_NCHW[:, 0].astype(np.float32).clip(0) / 2
    scores, truth = flair.astype(np.float16), slices.labels_NHW > 0
    result = Result.read(folder)
    ap = average_precision_score(truth.ravel(), scores.ravel())
    assert result.test["pooled_ap"] == pytest.approx(ap, rel=1e-12)
    found = scores > np.float16(result.threshold)
    rows = {row["subject"]: row for row in csv.DictReader(folder.cases.open())}
    for k, subject in enumerate(store.split.test):
        here = slices.subjects_N == k
        both = found[here].sum() + truth[here].sum()
        dice = 2 * (found[here] & truth[here]).sum() / both
        assert float(rows[subject]["dice_at_chosen_threshold"]) == pytest.approx(dice)
