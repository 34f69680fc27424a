"""Any study file is a valid study or a `StudyError`: no traceback, no hang."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study
from fewscan.harness.study_file import dump_study, load_study, parse_study
from fewscan.storage.errors import StudyError

ROOT = Path(__file__).parents[1]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "experiments" / "paper.yaml").read_text())
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**9, 10**30, -1, 0, float("nan"), float("inf"), "all", "scratch", "a.b"])
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["kind", "init", "lr"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of every mapping, and every item of every list."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [place for key, inner in items for place in ((*at, key), *places(inner, (*at, key)))]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(places(DOCUMENT)), VALUES), min_size=1, max_size=3))
def test_a_changed_study_file_is_a_study_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    document = copy.deepcopy(DOCUMENT)
    for (*path, last), value in changes:
        here: Any = document
        try:
            for key in path:
                here = here[key]
            here[last] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken the place away
    file = tmp_path_factory.mktemp("fuzz") / "study.yaml"
    try:
        file.write_text(yaml.safe_dump(document))
        study = load_study(file)
    except StudyError:
        return
    assert isinstance(study, Study)
    assert parse_study(yaml.safe_load(dump_study(study)), "dumped") == study


@settings(max_examples=300)
@given(st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "study.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    with pytest.raises(StudyError):
        load_study(file)


@pytest.mark.parametrize(
    "text",
    [
        "name: &a [*a]",
        "name: " + "[" * 20_000,
        "network: {depth: 1000000000}",
        "network: {width: 100000000}",
        "finetune: {lr: .nan}",
        "a: 2026-11-26",
        "? [1, 2]\n: 3",
        "name: !!python/name:os.system",
    ],
)
def test_what_a_fuzzer_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError):
        load_study(tmp_path / "study.yaml")


@settings(max_examples=300)
@given(st.text(max_size=30) | st.tuples(st.sampled_from(places(DOCUMENT)), st.text(max_size=15)))
def test_any_override_is_a_study_or_an_error_of_ours(given: Any) -> None:
    override = given if isinstance(given, str) else f"{'.'.join(map(str, given[0]))}={given[1]}"
    try:
        assert isinstance(load_study(ROOT / "experiments" / "paper.yaml", (override,)), Study)
    except StudyError:
        return


def test_a_study_that_is_valid_is_planned_or_refused(tiny_document: dict[str, Any]) -> None:
    for change in ({"pretrain": {"a": tiny_document["pretrain"]["denoise"] | {"init": "a"}}},
                   {"finetune": tiny_document["finetune"] | {"label_counts": [10**9]}},
                   {"network": {"width": 4, "depth": 9}}):  # fmt: skip
        with pytest.raises(StudyError):
            make_plan(parse_study(tiny_document | change, "test"))
