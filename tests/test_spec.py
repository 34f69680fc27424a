import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewscan.experiments.spec import (
    Anomaly,
    Augmentation,
    Denoise,
    Evaluation,
    Imported,
    Network,
    Noise,
    RunSpec,
    Segment,
    Training,
    from_json,
    run_id,
    seed_for,
    to_json,
)
from fewscan.storage.errors import RunError

TRAINING = Training(iterations=10, validate_every=5)
SEGMENT = Segment(
    "data", Network(), "binary", 4, TRAINING, Augmentation(), Evaluation(), seed=0, init="abc"
)
SPECS: list[RunSpec] = [
    SEGMENT,
    Denoise("data", Network(), Noise(), TRAINING),
    Anomaly("data", Evaluation(20), "abc"),
    Imported("0123"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
def test_a_spec_survives_json(spec: RunSpec) -> None:
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
def test_the_id_is_the_hash_of_the_canonical_json(spec: RunSpec) -> None:
    canonical = json.dumps(to_json(spec), sort_keys=True, separators=(",", ":"))
    assert run_id(spec) == hashlib.sha256(canonical.encode()).hexdigest()[:12]


def test_the_id_is_the_spec() -> None:
    """A stored id: if it changes, finished runs of all users are not found again."""
    assert run_id(SEGMENT) == run_id(replace(SEGMENT)) == "7631be7c3749"
    others = [
        replace(SEGMENT, seed=1),
        replace(SEGMENT, init=None),
        replace(SEGMENT, data="other"),
        replace(SEGMENT, training=replace(TRAINING, lr=2e-4)),
    ]
    assert len({run_id(spec) for spec in [SEGMENT, *others]}) == 5


def test_another_protocol_is_refused() -> None:
    with pytest.raises(RunError, match=r"(?s)protocol 99.*protocol 1.*remedy"):
        from_json(to_json(SEGMENT) | {"protocol": 99})


@given(a=st.tuples(st.text(), st.text(), st.integers(0)), b=st.integers(1, 5))
def test_seeds_differ_by_purpose_and_step(a: tuple[str, str, int], b: int) -> None:
    root, purpose, step = a
    seed = seed_for(root, purpose, step)
    assert seed == seed_for(root, purpose, step)
    assert 0 <= seed < 2**63
    assert seed != seed_for(root, purpose, step + b)
    assert seed != seed_for(root, purpose + "x", step)
