"""How much arithmetic a run is counted as: what is passed through the network, and how often."""

from dataclasses import replace
from pathlib import Path

import pytest
from toy_schemes import Contrast, Masked

from fewscan.experiments.cost import (
    flops_by_part,
    forward_flops,
    forward_flops_by_part,
    run_flops,
)
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
    encoder = share_of_the_encoder(NETWORK, 16)
    assert two.training == pytest.approx(encoder * one.training)
    assert two.validation == pytest.approx(encoder * 2 * one.validation)


def share_of_the_encoder(network: Network, size: int) -> float:
    parts = forward_flops_by_part(network, 4, 4, size)
    return sum(parts.encoder) / forward_flops(network, 4, 4, size)


def test_the_encoder_is_a_third_of_the_published_network() -> None:
    """18.4 GFLOP, of which 36.5 % are in the encoder: counted by hand from its layers."""
    assert share_of_the_encoder(Network(), 128) == pytest.approx(0.365, abs=0.002)


def test_what_does_not_learn_costs_no_backward_pass(store: SliceStore) -> None:
    encoder = share_of_the_encoder(NETWORK, 16)
    plain = Finetune("data", NETWORK, "binary", 4, TRAINING, 0)
    whole = flops_by_part(plain, NETWORK, store)
    frozen, head, deep = (
        flops_by_part(replace(plain, **changes), NETWORK, store)  # type: ignore[arg-type]
        for changes in (
            {"schedule": "frozen"},
            {"schedule": "probe"},
            {"schedule": "probe", "probe_level": 2},
        )
    )
    assert frozen.training == pytest.approx(whole.training * (1 - 2 / 3 * encoder))
    assert head.training == pytest.approx(whole.training / 3)
    assert deep.training == pytest.approx(whole.training / 3 * encoder)
    assert frozen.validation == head.validation == whole.validation
    assert deep.validation == pytest.approx(whole.validation * encoder)
    for schedule in ("warmup", "sawtooth"):
        assert flops_by_part(replace(plain, schedule=schedule), NETWORK, store) == whole


def test_contrast_by_position_costs_the_encoder_alone(store: SliceStore) -> None:
    toy, positional = (
        flops_by_part(Pretrain("data", NETWORK, TRAINING, scheme), NETWORK, store)
        for scheme in (Contrast(), PositionalContrast())
    )
    assert positional == toy


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
