"""One predictor for all who predict: what scoring counted, alone, mirrored or as several."""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tiny import run_in_process, tiny_values
from torch import Tensor, nn

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.devices import Devices
from fewscan.experiments.measures import MEASURES, Masks
from fewscan.experiments.predictor import (
    PREDICTION_BATCH,
    Predictor,
    above,
    lesion_score,
    load_predictor,
)
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.spec import Evaluation, Score, Target, run_id
from fewscan.experiments.stages import run_stage
from fewscan.experiments.unet import UNet
from fewscan.harness.plan import Plan, PlannedRun, slice_format
from fewscan.harness.planner import make_plan
from fewscan.harness.study_file import parse_study
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder


def network(seed: int, outputs: int = 3) -> UNet:
    torch.manual_seed(seed)
    model = UNet(2, outputs, width=4, depth=2)
    with torch.no_grad():
        model.last.weight *= 5
    return model


IMAGES_NCHW = torch.rand(5, 2, 16, 16, generator=torch.Generator().manual_seed(0))
EVALUATION = Evaluation(nsd_tolerance_mm=None)


def predictor_of(*networks: UNet, target: Target | None = "multiclass", mirror: bool = False):
    scheme = None if target is not None else Denoise()
    return Predictor(networks, target, scheme, mirror).to("cpu")


def test_a_network_says_how_probable_background_and_classes_are() -> None:
    model = network(0)
    logits = model(IMAGES_NCHW).detach()
    maps_NKHW = predictor_of(model).maps(IMAGES_NCHW)
    expected_NKHW = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(maps_NKHW, expected_NKHW, rtol=1e-5, atol=1e-6)
    assert not maps_NKHW.requires_grad


@pytest.mark.parametrize(
    ("target", "classes"), [("binary", 1), ("multiclass", 1), ("multiclass", 3)]
)
def test_the_score_is_the_probability_of_any_lesion(target: Target, classes: int) -> None:
    logits = torch.randn((2, 1 + classes, 4, 4), generator=torch.Generator().manual_seed(0))
    maps_NKHW = logits.softmax(dim=1)
    background_NHW = logits.exp()[:, 0] / logits.exp().sum(dim=1)
    torch.testing.assert_close(lesion_score(maps_NKHW), 1 - background_NHW, rtol=0, atol=1e-6)
    found = predictor_of(network(0), target=target).labels(maps_NKHW, None)
    assert (found is None) == (target == "binary")


def test_of_one_map_it_is_the_score() -> None:
    maps_N1HW = torch.rand(2, 1, 4, 4)
    assert torch.equal(lesion_score(maps_N1HW), maps_N1HW[:, 0])


def test_mirroring_averages_the_four_views_turned_back() -> None:
    model = network(0)
    alone = predictor_of(model)
    flips: list[tuple[int, ...]] = [(), (2,), (3,), (2, 3)]
    views = [
        alone.maps(IMAGES_NCHW.flip(f)).flip(f) if f else alone.maps(IMAGES_NCHW) for f in flips
    ]
    mirrored = predictor_of(model, mirror=True)
    found = mirrored.maps(IMAGES_NCHW)
    torch.testing.assert_close(found, sum(views) / 4)
    assert not torch.allclose(found, views[0], atol=1e-4)
    for flip in flips[1:]:  # so a mirrored scan has the mirrored answer
        turned = mirrored.maps(IMAGES_NCHW.flip(flip)).flip(flip)
        torch.testing.assert_close(turned, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["multiclass", "binary", None])
def test_several_networks_are_averaged(target: Target | None) -> None:
    """Their probabilities, not their labels; of anomaly scores the mean."""
    outputs = 3 if target == "multiclass" else 2
    networks = [network(seed, outputs) for seed in range(3)]
    given = (IMAGES_NCHW, (1.0, 1.0))
    each = [predictor_of(model, target=target).maps(*given) for model in networks]
    together = predictor_of(*networks, target=target).maps(*given)
    torch.testing.assert_close(together, (each[0] + each[1] + each[2]) / 3)
    mirrored = predictor_of(*networks, target=target, mirror=True).maps(*given)
    each = [predictor_of(m, target=target, mirror=True).maps(*given) for m in networks]
    torch.testing.assert_close(mirrored, (each[0] + each[1] + each[2]) / 3)


class OfAWholeScan(Predictor):
    """Its first network sees all slices of a scan at once, and says of each how bright the scan is;
    the others see slices."""

    def _through(
        self,
        network: nn.Module,
        images_NCHW: Tensor,
        spacing_mm_HW: tuple[float, float] | None,
    ) -> Iterator[Tensor]:
        if network is not self.networks[0]:
            yield from super()._through(network, images_NCHW, spacing_mm_HW)
            return
        lesion_NHW = images_NCHW.float().mean().expand(len(images_NCHW), *images_NCHW.shape[2:])
        yield from torch.stack([1 - lesion_NHW, lesion_NHW], dim=1).split(PREDICTION_BATCH)


def test_networks_of_different_shapes_meet_in_their_maps() -> None:
    """Each goes through the scan in its own way."""
    torch.manual_seed(2)
    networks = (nn.Identity(), network(0, 2), UNet(2, 2, width=6, depth=3))
    many_NCHW = torch.rand(PREDICTION_BATCH + 3, 2, 8, 8)
    together = OfAWholeScan(networks, "binary").to("cpu")
    batches = list(together.in_batches(many_NCHW))
    assert [len(batch) for batch in batches] == [PREDICTION_BATCH, 3]
    each = [
        torch.cat([*predictor_of(it, target="binary").in_batches(many_NCHW)]) for it in networks[1:]
    ]
    lesion = many_NCHW.mean()
    expected_NKHW = (each[0] + each[1] + torch.stack([1 - lesion, lesion])[:, None, None]) / 3
    torch.testing.assert_close(torch.cat(batches), expected_NKHW)


def test_predictions_are_float32_whatever_was_trained_or_stored() -> None:
    predictor = predictor_of(network(0).double(), network(1).bfloat16())
    (maps_NKHW,) = predictor.in_batches(IMAGES_NCHW.half())
    assert maps_NKHW.dtype == torch.float32
    assert {p.dtype for n in predictor.networks for p in n.parameters()} == {torch.float32}
    assert not any(n.training for n in predictor.networks)


def test_batches_have_one_size_and_come_in_order() -> None:
    """Fixed, because a convolution's last bits depend on it."""
    many_NCHW = torch.rand(2 * PREDICTION_BATCH + 3, 2, 8, 8)
    predictor = predictor_of(network(0))
    parts = list(predictor.in_batches(many_NCHW))
    assert [len(part) for part in parts] == [PREDICTION_BATCH, PREDICTION_BATCH, 3]
    starts = range(0, len(many_NCHW), PREDICTION_BATCH)
    expected = [predictor.maps(many_NCHW[at : at + PREDICTION_BATCH]) for at in starts]
    assert all(map(torch.equal, parts, expected))


def test_above_compares_in_half_precision() -> None:
    """In which thresholds were chosen: what rounds to the threshold does not exceed it."""
    scores = torch.tensor([0.1, 0.100004, 0.1001, 0.0999])
    assert (scores > torch.tensor(0.1, dtype=torch.float16).float()).tolist()[1]
    assert above(scores, 0.1).tolist() == [False, False, True, False]
    assert above(scores.half(), 0.1).tolist() == [False, False, True, False]
    halves = torch.arange(0, 1, 1e-4).half()
    for threshold in (0.0, 0.001, 0.5, 0.999):
        expected = halves.numpy() > np.float16(threshold)
        assert np.array_equal(above(halves.float(), threshold).numpy(), expected)


def test_labels_are_the_most_probable_classes_or_what_is_above_the_threshold() -> None:
    maps_NKHW = torch.tensor([[0.4, 0.35, 0.25], [0.2, 0.3, 0.5]]).T.reshape(1, 3, 1, 2)
    classes = predictor_of(network(0))
    found = classes.labels(maps_NKHW, 0.1)
    assert found is not None
    assert (found.tolist(), found.dtype) == ([[[0, 2]]], torch.uint8)
    binary = predictor_of(network(0, 2), target="binary")
    found = binary.labels(maps_NKHW, 0.7)
    assert found is not None
    assert (found.tolist(), found.dtype) == ([[[0, 1]]], torch.uint8)


@pytest.fixture(scope="module")
def plan(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Finished; not to be changed."""
    values = tiny_values(store_path, tmp_path_factory.mktemp("predictor"))
    values["finetune"] |= {"label_counts": [2], "seeds": [0, 1]}
    values |= {"baselines": ["unsupervised"], "evaluation": {"nsd_tolerance_mm": None}}
    plan = make_plan(parse_study(values, "tiny"))
    run_in_process(plan, plan.runs)
    return plan


def rows_of(folder: RunFolder) -> dict[str, dict[str, str]]:
    return {row["subject"]: row for row in csv.DictReader(folder.cases.open())}


def labels_of(
    predictor: Predictor,
    images_NCHW: np.ndarray,
    spacing_mm_HW: tuple[float, float],
    threshold: float | None,
) -> Tensor:
    found = []
    for maps_NKHW in predictor.in_batches(torch.from_numpy(images_NCHW), spacing_mm_HW):
        labels_NHW = predictor.labels(maps_NKHW, threshold)
        assert labels_NHW is not None
        found.append(labels_NHW)
    return torch.cat(found)


def check_labels(plan: Plan, folder: RunFolder, parents: list[RunFolder]) -> None:
    """What the predictor finds in the test scans has the Dice and the volumes that were scored."""
    predictor, threshold = load_predictor(parents), Result.read(folder).threshold
    rows = rows_of(folder)
    assert list(rows) == list(plan.store.split.test)
    for subject, row in rows.items():
        slices = plan.store.read_subject(subject)
        spacing = plan.store.spacing_mm_ZHW(subject)
        labels = labels_of(predictor, slices.images_NCHW, spacing[1:], threshold).numpy()
        truth = slices.labels_NHW if predictor.has_classes else slices.labels_NHW > 0
        names = plan.store.classes if predictor.has_classes else ("lesion",)
        for k, name in enumerate(names, start=1):
            masks = Masks(labels == k, truth == k, spacing)
            column = f"dice_{name}" if predictor.has_classes else "dice_at_chosen_threshold"
            dice = MEASURES["dice"](masks, EVALUATION)
            assert float(row[column] or "nan") == pytest.approx(dice, nan_ok=True)
            volume = MEASURES["volume_mm3"](masks, EVALUATION)
            assert float(row[f"volume_mm3_{name}"]) == volume


def test_the_labels_are_those_that_scoring_counted(plan: Plan) -> None:
    for run in plan.scores:
        parents = [plan.folder.run(run_id) for run_id in run.parents]
        check_labels(plan, plan.folder_of(run), parents)
    assert {run.place.target for run in plan.scores} == {"binary", "multiclass"}
    assert any(run.place.labels is None for run in plan.scores)


def ensemble(plan: Plan, target: Target) -> tuple[RunFolder, list[PlannedRun]]:
    """The two seeds of an arm, scored together."""
    members = [
        run
        for run in plan.runs
        if run.kind == "finetune" and run.place.target == target and run.place.arm.is_scratch
    ]
    assert len(members) == 2
    spec = Score(plan.store.fingerprint, EVALUATION, tuple(run.run_id for run in members))
    folder = plan.folder.run(run_id(spec))
    RunRecord(spec, "tiny", "together", slice_format(plan.store), plan.store.path).write(folder)
    run_stage(folder, Devices())
    return folder, members


@pytest.mark.parametrize("target", ["binary", "multiclass"])
def test_a_score_of_several_networks_is_of_their_mean(plan: Plan, target: Target) -> None:
    folder, members = ensemble(plan, target)
    parents = [plan.folder_of(run) for run in members]
    check_labels(plan, folder, parents)
    networks = [load_model(parent.model) for parent in parents]
    slices = plan.store.read(plan.store.split.test)
    with torch.no_grad():
        images_NCHW = torch.from_numpy(slices.images_NCHW).float()
        each = [model(images_NCHW).softmax(dim=1) for model in networks]
    scores_NHW = 1 - (each[0] + each[1])[:, 0] / 2
    ap = average_precision_score(
        (slices.labels_NHW > 0).ravel(), scores_NHW.numpy().astype(np.float16).ravel()
    )
    result = Result.read(folder)
    assert result.test["pooled_ap"] == pytest.approx(ap, rel=2e-3)
    learnt = [scan for parent in parents for scan in Result.read(parent).labelled]
    assert result.labelled == tuple(dict.fromkeys(learnt))


def test_networks_that_were_taught_different_things_are_not_averaged(
    plan: Plan, tmp_path: Path
) -> None:
    def first(kind: str, target: Target | None) -> RunFolder:
        runs = (r for r in plan.runs if r.kind == kind and target in (None, r.place.target))
        return plan.folder_of(next(runs))

    binary, classes = first("finetune", "binary"), first("finetune", "multiclass")
    pretrained = first("pretrain", None)
    for pair in ([binary, classes], [pretrained, binary]):
        with pytest.raises(RunError, match=r"(?s)different things.*one target"):
            load_predictor(pair)
    with pytest.raises(RunError, match="a score has no network"):
        load_predictor([first("score", "binary")])
    without_model = RunFolder(shutil.copytree(binary.path, tmp_path / binary.run_id))
    without_model.model.unlink()
    with pytest.raises(RunError, match=r"(?s)model of a run is missing.*model\.pt"):
        load_predictor([without_model])


def test_the_most_probable_class_is_the_first_of_equal_ones() -> None:
    """As argmax has it, also where a network broke."""
    predictor = predictor_of(network(0, 4), target="multiclass")
    maps_NKHW = torch.randint(0, 3, (5, 4, 9, 7), generator=torch.Generator().manual_seed(0)) / 3
    maps_NKHW[0, 2, :3] = torch.nan
    found_NHW = predictor.labels(maps_NKHW, None)
    assert found_NHW is not None
    assert torch.equal(found_NHW, maps_NKHW.argmax(dim=1).to(torch.uint8))


def test_moving_a_predictor_keeps_what_it_is() -> None:
    predictor = replace(predictor_of(network(0, 2), target=None), mirror=True)
    moved = predictor.to("cpu")
    assert (moved.target, moved.scheme, moved.mirror) == (None, Denoise(), True)
    given = (IMAGES_NCHW, (1.0, 1.0))
    assert torch.equal(moved.maps(*given), predictor.maps(*given))
