"""What a run folder says of its run: written once, read by all, wherever the folder lies."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fewscan.experiments.data import open_store
from fewscan.experiments.devices import Devices
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import (
    Evaluation,
    Finetune,
    Imported,
    Network,
    Score,
    Training,
    run_id,
)
from fewscan.experiments.stages import run_stage
from fewscan.storage.code_digest import code_digest
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

FORMAT = SliceFormat(("t1",), ("tumour",), 16, 2, "quantile", ("LPS",))
RECORD = RunRecord(Score("data", Evaluation(), ("abc",)), "study", "score x", FORMAT)
RESULT = Result(
    "score",
    labelled=("a", "b"),
    validation={"threshold": 0.25, "pooled_ap": None},
    test={"pooled_ap": 0.5, "class_dice/a": None},
    computed={"torch": "2", "ranks": 1},
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "study" / "runs" / "x")


@pytest.mark.parametrize("store", [None, "store.zarr"])
def test_a_record_is_read_as_it_was_written(
    folder: RunFolder, tmp_path: Path, store: str | None
) -> None:
    record = replace(RECORD, store=None if store is None else tmp_path / store)
    record.write(folder)
    assert RunRecord.read(folder) == record
    assert record.run_id == run_id(RECORD.spec)
    assert folder.read_spec()["store"] == (store and f"../../../{store}")


def test_a_study_and_its_store_may_move_together(folder: RunFolder, tmp_path: Path) -> None:
    replace(RECORD, store=tmp_path / "store.zarr").write(folder)
    (tmp_path / "there").mkdir()
    shutil.move(tmp_path / "study", tmp_path / "there" / "study")
    moved = RunFolder(tmp_path / "there" / "study" / "runs" / "x")
    assert RunRecord.read(moved).store == tmp_path / "there" / "store.zarr"


def test_the_store_is_found_wherever_the_process_works(
    folder: RunFolder, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was once looked for from the working directory."""
    store = SliceStore.open(store_path)
    RunRecord(Imported("0"), "study", "name", SliceFormat.of_store(store), store_path).write(folder)
    for place in (tmp_path, Path("/")):
        monkeypatch.chdir(place)
        assert open_store(folder, store.fingerprint).path == store_path
    with pytest.raises(RunError, match=r"(?s)content has changed.*otherwise.*sweep again"):
        open_store(folder, "otherwise")


@pytest.mark.parametrize("change", [{"spec": 3}, {"store": 3}, {"slices": 3}, {"study": None}])
def test_a_damaged_record_is_named(folder: RunFolder, change: dict[str, object]) -> None:
    RECORD.write(folder)
    value = {k: v for k, v in (folder.read_spec() | change).items() if v is not None}
    folder.spec.write_text(json.dumps(value))
    with pytest.raises(RunError, match=r"(?s)not what fewscan writes.*spec\.json"):
        RunRecord.read(folder)


def test_a_result_is_read_as_it_was_written(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    for result in (RESULT, Result("pretrain", best_step=4, validation_loss=0.5), Result("x")):
        result.write(folder)
        assert Result.read(folder) == result
    assert RESULT.threshold == 0.25
    assert Result("pretrain").threshold is None


def test_a_result_of_another_version_is_named(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.result.write_text('{"kind": "score", "shininess": 3}')
    with pytest.raises(RunError, match=r"(?s)shininess.*result\.json.*sweep again"):
        Result.read(folder)


def test_a_result_says_what_computed_it(store_path: Path, tmp_path: Path) -> None:
    """In fact, not as was wished; and nothing of time or place, so it is the same again."""
    store = SliceStore.open(store_path)
    spec = Finetune(
        store.fingerprint, Network(4, 2), "binary", 1, Training(2, 2, 2, precision="bf16"), seed=0
    )
    results = []
    for name in ("one", "two"):
        folder = RunFolder(tmp_path / name)
        RunRecord(spec, "study", "x", SliceFormat.of_store(store), store.path).write(folder)
        run_stage(folder, Devices(threads=2))
        results.append(folder.result.read_bytes())
    assert results[0] == results[1]
    computed = Result.read(folder).computed
    assert (computed["device"], computed["precision"]) == ("cpu", "bf16")
    assert (computed["ranks"], computed["threads"]) == (1, 2)
    assert computed["code"] == code_digest()
    assert {"fewscan", "torch", "numpy"} < set(computed)
