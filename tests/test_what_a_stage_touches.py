"""Which scans and slices a stage reads, and what its network is fed: no more than it may.

The store is watched where bytes are read from its shards, and batches where they are handed out, so
that it makes no difference which function was asked for them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewscan.experiments.data import Batch, SliceData
from fewscan.experiments.devices import Devices
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.residency import InMemory
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.settings import Selection
from fewscan.experiments.spec import (
    Augmentation,
    Evaluation,
    Finetune,
    Network,
    Pretrain,
    Residency,
    RunSpec,
    Score,
    ScoredSplit,
    Target,
    Training,
    run_id,
)
from fewscan.experiments.stages import run_stage
from fewscan.storage import stream
from fewscan.storage.manifest import Subject
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

NETWORK = Network(width=4, depth=2)
TRAINING = Training(iterations=5, validate_every=2, batch_size=16, lr=1e-2, precision="fp32")
"""80 slices: more than one epoch of the 54 healthy ones of the 18 scans in training."""
RESIDENCIES: tuple[Residency, ...] = ("stream", "shared")
Place = tuple[str, int]
"""A scan, and a slice's index through it."""


@dataclass
class Touched:
    """What was read of a store, in order, and what was fed to a network."""

    images: list[Place] = field(default_factory=list)
    labels: list[Place] = field(default_factory=list)
    trained: set[Place] = field(default_factory=set)
    """Fed where gradients are computed."""
    validated: set[Place] = field(default_factory=set)
    """Fed where none are."""

    @property
    def scans(self) -> list[str]:
        """Whose images or labels were read, in the order of their first."""
        return [*dict.fromkeys(scan for scan, _ in self.images + self.labels)]


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


@pytest.fixture
def touched(store: SliceStore, monkeypatch: pytest.MonkeyPatch) -> Touched:
    """Watches all reading of stores, and all batches."""
    seen, place_of = Touched(), places_by_content(store)
    read_slice, read_scan, batch = (
        stream._Array.read,
        SliceStore._read_subject_into,
        SliceData.batch,
    )

    def reading_a_slice(
        self: Any, subject: Subject, position: int, out: np.ndarray, mark: str
    ) -> None:
        (seen.labels if out.dtype == np.uint8 else seen.images).append((subject.id, position))
        read_slice(self, subject, position, out, mark)

    def reading_a_scan(self: Any, subject: Subject, positions: list[int], *out: np.ndarray) -> None:
        seen.images.extend((subject.id, position) for position in positions)
        seen.labels.extend((subject.id, position) for position in positions)
        read_scan(self, subject, positions, *out)

    def feeding(self: SliceData, *indices: Any) -> Batch:
        fed = batch(self, *indices)
        places = {place_of[content(image)] for image in fed.images_NCHW.half().numpy()}
        (seen.trained if torch.is_grad_enabled() else seen.validated).update(places)
        return fed

    monkeypatch.setattr(stream._Array, "read", reading_a_slice)
    monkeypatch.setattr(SliceStore, "_read_subject_into", reading_a_scan)
    monkeypatch.setattr(SliceData, "batch", feeding)
    return seen


def content(image_CHW: np.ndarray) -> bytes:
    return np.ascontiguousarray(image_CHW).tobytes()


def places_by_content(store: SliceStore) -> dict[bytes, Place]:
    """Which slice an image is; the tiny scans have no two that are the same."""
    slices = store.read([*store.subjects])
    places = [
        (slices.ids[scan], int(position))
        for scan, position in zip(slices.subjects_N, slices.positions_N, strict=True)
    ]
    found = dict(zip(map(content, slices.images_NCHW), places, strict=True))
    assert len(found) == len(places) == 24 * 6
    return found


def slices_of(scans: Iterable[str], healthy: bool = False) -> set[Place]:
    """All slices of tiny scans, or those without a lesion: see conftest.py."""
    return {(scan, z) for scan in scans for z in ((0, 1, 5) if healthy else range(6))}


@pytest.fixture
def done(store: SliceStore, tmp_path: Path) -> Callable[..., RunFolder]:
    """Runs a stage to its end."""

    def run(spec: RunSpec, residency: Residency = "stream") -> RunFolder:
        folder = RunFolder(tmp_path / run_id(spec))
        format_ = SliceFormat.of_store(store)
        RunRecord(spec, "study", spec.kind, format_, store.path).write(folder)
        run_stage(folder, Devices(residency=residency, node_folders=(tmp_path / "node",)))
        return folder

    return run


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_pretraining_learns_from_healthy_slices_of_the_training_part(
    residency: Residency,
    store: SliceStore,
    touched: Touched,
    done: Callable[..., RunFolder],
) -> None:
    """And is validated on those of the validation part; nobody is tested, no label is looked at."""
    folder = done(Pretrain(store.fingerprint, NETWORK, TRAINING), residency)
    split = store.split
    assert touched.trained == slices_of(split.train, healthy=True)
    assert touched.validated == slices_of(split.validation, healthy=True)
    assert {*touched.scans} == {*split.train, *split.validation}
    if residency == "stream":  # what is shared is decoded scan by scan, for all runs of the node
        assert {*touched.images} == touched.trained | touched.validated
        assert not touched.labels
    assert Result.read(folder).labelled == ()


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize(("target", "count", "seed"), [("binary", 2, 0), ("multiclass", 3, 1)])
def test_finetuning_learns_from_the_scans_whose_labels_were_drawn(
    residency: Residency,
    target: Target,
    count: int,
    seed: int,
    store: SliceStore,
    touched: Touched,
    done: Callable[..., RunFolder],
) -> None:
    """All their slices, and of the others not even the images; validation has a part of its own."""
    spec = Finetune(store.fingerprint, NETWORK, target, count, TRAINING, seed)
    folder = done(spec, residency)
    drawn = Result.read(folder).labelled
    assert drawn == store.labelled_subset(count, seed)
    assert len({*drawn}) == count
    assert {*drawn} < {*store.split.train}
    assert touched.trained == slices_of(drawn)
    assert touched.validated == slices_of(store.split.validation)
    assert {*touched.scans} == {*drawn, *store.split.validation}
    assert {scan for scan, _ in touched.labels} <= {*drawn, *store.split.validation}


def test_labels_are_drawn_from_the_training_part(store: SliceStore) -> None:
    """Whatever the seed, and all of it if all are asked for."""
    train = store.split.train
    for seed in range(20):
        assert {*store.labelled_subset(len(train) // 2, seed)} < {*train}
        assert {*store.labelled_subset(len(train), seed)} == {*train}


def test_a_limit_of_validation_slices_limits_validation_alone(
    store: SliceStore, touched: Touched, done: Callable[..., RunFolder]
) -> None:
    few = Training(5, 2, batch_size=16, precision="fp32", validation_slices=2)
    done(Pretrain(store.fingerprint, NETWORK, few))
    assert touched.trained == slices_of(store.split.train, healthy=True)
    assert len(touched.validated) == 2
    assert touched.validated < slices_of(store.split.validation, healthy=True)
    touched.trained.clear()
    touched.validated.clear()
    spec = Finetune(store.fingerprint, NETWORK, "binary", 2, few, seed=0)
    done(spec)
    assert touched.trained == slices_of(store.labelled_subset(2, 0))
    assert len(touched.validated) == 2
    assert touched.validated < slices_of(store.split.validation)


@pytest.mark.parametrize("target", ["binary", "multiclass"])
def test_a_finetuning_is_asked_for_any_lesion_or_for_the_classes(
    target: Target, store: SliceStore
) -> None:
    """And sees the slices as they are, unless the policy is to augment them."""
    images = torch.from_numpy(store.read(store.split.train[:4]).images_NCHW)
    labels = torch.randint(4, (len(images), 16, 16), dtype=torch.uint8)
    table = SliceTable.unrelated(4, (16, 16), len(images))
    data = SliceData(InMemory(images, labels), table, torch.float32, "cpu")
    spec = Finetune(store.fingerprint, NETWORK, target, 4, TRAINING, seed=0)
    plain = replace(spec, augmentation=Augmentation("none"))
    task = SegmentTask(plain, store.meaning, data, data, Devices())
    indices = task.order.indices(0)
    images_NCHW, targets_NHW = task.batch(0)
    expected_NHW = labels[indices] > 0 if target == "binary" else labels[indices]
    assert torch.equal(targets_NHW, expected_NHW.long())
    assert torch.equal(images_NCHW, images[indices].float())
    augmented_NCHW, _ = SegmentTask(spec, store.meaning, data, data, Devices()).batch(0)
    assert not torch.equal(augmented_NCHW, images_NCHW)


def test_validation_goes_through_all_slices_in_order_32_at_a_time(store: SliceStore) -> None:
    """The number is part of the protocol: what a scheme draws is drawn batch by batch."""
    train = store.split.train
    data = SliceData.load(store, train, Devices(), torch.float32)
    batches = list(data.validation_batches(Devices()))
    assert [number for number, _, _ in batches] == [0, 1, 2, 3]
    assert [len(indices) for _, indices, _ in batches] == [32, 32, 32, 18 * 6 - 96]
    images_NCHW = torch.cat([batch.images_NCHW for _, _, batch in batches])
    assert np.array_equal(images_NCHW.numpy(), store.read(train).images_NCHW)


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_score_chooses_on_validation_before_it_reads_the_test_part(
    supervised: bool,
    split: ScoredSplit,
    store: SliceStore,
    touched: Touched,
    done: Callable[..., RunFolder],
) -> None:
    """And reads that for a test score alone; of the training part it reads nothing."""
    training = Training(iterations=2, validate_every=2, batch_size=2, precision="fp32")
    spec = (
        Finetune(store.fingerprint, NETWORK, "binary", 1, training, seed=0)
        if supervised
        else Pretrain(store.fingerprint, NETWORK, training)
    )
    parent = done(spec)
    touched.images.clear()
    touched.labels.clear()
    evaluation = Evaluation(min_component_mm3=4.0, nsd_tolerance_mm=None)
    result = Result.read(done(Score(store.fingerprint, evaluation, (run_id(spec),), split)))
    validation, test = list(store.split.validation), list(store.split.test)
    assert touched.scans == validation + (test if split == "test" else [])
    assert "threshold" in result.validation
    assert bool(result.test) == (split == "test")
    assert result.labelled == Result.read(parent).labelled


@pytest.mark.parametrize("selection", ["within", "last"])
def test_no_label_but_those_of_the_cell_chooses(
    selection: Selection,
    store: SliceStore,
    touched: Touched,
    done: Callable[..., RunFolder],
) -> None:
    """Within: held-out scans choose model and threshold, and are not learnt from. Last: the losses
    of the validation split are noted, and choose neither; its score does not look at them."""
    spec = Finetune(store.fingerprint, NETWORK, "binary", 10, TRAINING, seed=0, selection=selection)
    trained = Result.read(done(spec))
    drawn, held = store.labelled_subset(10, 0), trained.held_out
    assert trained.labelled == drawn
    assert held == (drawn[-2:] if selection == "within" else ())
    assert touched.trained == slices_of({*drawn} - {*held})
    assert touched.validated == slices_of(held or store.split.validation)
    touched.images.clear()
    touched.labels.clear()
    evaluation = Evaluation(nsd_tolerance_mm=None)
    scored = Result.read(done(Score(store.fingerprint, evaluation, (run_id(spec),))))
    assert touched.scans == [*held, *store.split.test]
    assert (scored.labelled, scored.held_out) == (drawn, held)
    assert scored.validation.keys() > {"threshold"} if held else scored.threshold == 0.5


def test_folds_learn_choose_and_are_scored_within_the_labels_of_the_cell(
    store: SliceStore, touched: Touched, done: Callable[..., RunFolder]
) -> None:
    """Each network without its own part, which chooses its model; no scan of validation is read."""
    drawn, held = store.labelled_subset(5, 0), []
    single = Finetune(store.fingerprint, NETWORK, "binary", 5, TRAINING, 0, selection="within")
    networks = [replace(single, member=member, folds=3) for member in range(3)]
    for spec in networks:
        touched.trained.clear()
        touched.validated.clear()
        trained = Result.read(done(spec))
        assert touched.trained == slices_of({*drawn} - {*trained.held_out})
        assert touched.validated == slices_of(trained.held_out)
        held.append(trained.held_out)
    assert [len(it) for it in held] == [2, 2, 1]
    assert {*touched.scans} == {*drawn}
    touched.images.clear()
    touched.labels.clear()
    parents = tuple(map(run_id, networks))
    done(Score(store.fingerprint, Evaluation(nsd_tolerance_mm=None), parents))
    assert touched.scans == [id_ for part in held for id_ in part] + [*store.split.test]
