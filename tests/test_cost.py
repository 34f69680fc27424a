"""How much arithmetic a run is counted as: what is passed through the network, and how often."""

from dataclasses import replace
from pathlib import Path

import pytest
from toy_schemes import Contrast, Masked

from fewscan.experiments.cost import flops_by_part, forward_flops, run_flops
from fewscan.experiments.schemes.contrast import Contrast as PositionalContrast
from fewscan.experiments.spec import (
    Evaluation,
    Finetune,
    Imported,
    Network,
    Pretrain,
    Score,
    Training,
)
from fewscan.storage.slices import SliceStore

NETWORK = Network(4, 2)
TRAINING = Training(iterations=10, validate_every=4, batch_size=2, validation_slices=3)
SLICE = forward_flops(NETWORK, 4, 4, 16)


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


def count(store: SliceStore, ids: tuple[str, ...]) -> int:
    return len(store.read(ids).images_NCHW)


def test_a_training_is_its_steps_and_its_validations(store: SliceStore) -> None:
    """Ten steps of two slices, forward and back; three validations of three slices."""
    for spec in (
        Pretrain("data", NETWORK, TRAINING),
        Finetune("data", NETWORK, "binary", 4, TRAINING, seed=0),
    ):
        found = flops_by_part(spec, NETWORK, store)
        assert found == pytest.approx((20 * 3 * SLICE, 3 * 3 * SLICE, 0))
        assert run_flops(spec, NETWORK, store) == sum(found)


def test_without_a_limit_all_validation_slices_are_seen(store: SliceStore) -> None:
    training = replace(TRAINING, validation_slices=None)
    found = flops_by_part(Finetune("data", NETWORK, "binary", 4, training, 0), NETWORK, store)
    assert found.validation == pytest.approx(3 * count(store, store.split.validation) * SLICE)


def test_two_views_of_a_slice_are_two_passes(store: SliceStore) -> None:
    """A step has half as many slices for it, a validation has not."""
    one, two = (
        flops_by_part(Pretrain("data", NETWORK, TRAINING, scheme), NETWORK, store)
        for scheme in (Masked(), Contrast())
    )
    assert two.training == one.training
    assert two.validation == 2 * one.validation


def test_an_encoder_alone_is_a_third_of_the_network(store: SliceStore) -> None:
    """Of the published one 36.5 %, and that is what a scheme without a decoder costs."""
    whole, encoder = (forward_flops(Network(), 4, 4, 128, only) for only in (False, True))
    assert encoder / whole == pytest.approx(0.365, abs=0.0005)
    parts = {
        views: flops_by_part(Pretrain("data", NETWORK, TRAINING, scheme), NETWORK, store)
        for views, scheme in (("toy", Contrast()), ("encoder", PositionalContrast()))
    }
    share = forward_flops(NETWORK, 4, 4, 16, True) / SLICE
    assert share < 0.6
    assert parts["encoder"].training == pytest.approx(share * parts["toy"].training)
    assert parts["encoder"].validation == pytest.approx(share * parts["toy"].validation)


def test_a_score_passes_both_splits_through_each_network(store: SliceStore) -> None:
    """And the test split again, once the threshold is known at which specks are removed."""
    validation, test = (count(store, ids) for ids in (store.split.validation, store.split.test))
    spec = Score("data", Evaluation(), ("a", "b"))
    scoring = flops_by_part(spec, NETWORK, store).scoring
    assert scoring == pytest.approx(2 * (validation + test) * SLICE)
    specks = replace(spec, evaluation=Evaluation(20))
    scoring = flops_by_part(specks, NETWORK, store).scoring
    assert scoring == pytest.approx(2 * (validation + 2 * test) * SLICE)
    half = replace(specks, split="validation")
    assert flops_by_part(half, NETWORK, store) == pytest.approx((0, 0, 2 * validation * SLICE))


def test_what_was_trained_elsewhere_costs_nothing(store: SliceStore) -> None:
    assert run_flops(Imported("0123"), NETWORK, store) == 0
