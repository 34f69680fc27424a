"""Unlabelled scans: in a store, in no split, in pre-training where it is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_scans import write_subject
from tiny import run_in_process, tiny_values

from fewscan.harness.concerns import concerns
from fewscan.harness.imports import import_run
from fewscan.harness.planner import make_plan
from fewscan.harness.study_file import parse_study
from fewscan.storage.catalog import Selection
from fewscan.storage.check import check
from fewscan.storage.errors import RunError, StudyError
from fewscan.storage.manifest import Manifest
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore

LABELLED = [f"BraTS-GLI-{n:05d}-000" for n in range(20)]
UNLABELLED = [f"BraTS-GLI-{n:05d}-000" for n in range(20, 24)]
UNLABELLED_TOO = Selection(unlabelled=True)


def write(folder: Path, labelled: Sequence[str], unlabelled: Sequence[str] = ()) -> None:
    for seed, subject in enumerate([*labelled, *unlabelled]):
        place = write_subject(folder, subject, seed)
        if subject in unlabelled:
            (place / f"{subject}-seg.nii.gz").unlink()


@pytest.fixture(scope="module")
def mixed_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write(folder, LABELLED, UNLABELLED)
    return folder


@pytest.fixture(scope="module")
def path(mixed_scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "mixed.zarr"
    prepare(mixed_scans, path, size=16, workers=1, validation=1, selection=UNLABELLED_TOO)
    return path


@pytest.fixture(scope="module")
def store(path: Path) -> SliceStore:
    return SliceStore.open(path)


def test_they_are_left_out_and_named_unless_asked_for(mixed_scans: Path, tmp_path: Path) -> None:
    report = prepare(mixed_scans, tmp_path / "s", size=16, workers=1, validation=1)
    assert (report.subjects, report.skipped) == (20, ())
    (line,) = [line for line in report.account if line.startswith("left out")]
    assert "--unlabelled" in line
    assert UNLABELLED[0] in line
    assert line in check(tmp_path / "s").account
    later = prepare(
        mixed_scans, tmp_path / "s", size=16, workers=1, validation=1, selection=UNLABELLED_TOO
    )
    assert later.subjects == 24


def test_they_are_in_no_part_of_the_split(store: SliceStore) -> None:
    assert store.manifest.unlabelled == tuple(UNLABELLED) == store.unlabelled
    assert store.split.ids == set(LABELLED)
    assert not store.read(UNLABELLED).labels_NHW.any()
    assert store.read(UNLABELLED).images_NCHW.any()
    for count in range(1, 16):
        assert not {*store.labelled_subset(count, 0)} & {*UNLABELLED}


def test_check_counts_both(path: Path) -> None:
    report = check(path)
    assert (report.subjects, report.unlabelled, report.masks) == (24, 4, 20)
    assert "24, 4 of them unlabelled" in report.render()
    assert any(line.startswith("unlabelled: 4 scans") for line in report.account)


def test_a_pretraining_may_learn_from_them(store: SliceStore) -> None:
    learnt, validated = store.pretraining("all")
    assert learnt == (*store.split.train, *UNLABELLED)
    assert validated == store.split.validation
    healthy, _ = store.pretraining("healthy")
    assert set(healthy) <= set(store.split.train)


def test_what_is_labelled_or_not_counts_for_the_fingerprint(
    store: SliceStore, mixed_scans: Path, tmp_path: Path
) -> None:
    """But a store of labelled scans alone keeps the one that it always had."""
    plain = replace(store.manifest, subjects={i: store.subjects[i] for i in LABELLED})
    prepare(mixed_scans, tmp_path / "labelled", size=16, workers=1, validation=1)
    assert SliceStore.open(tmp_path / "labelled").fingerprint == plain.fingerprint
    flagged = {i: replace(it, labelled=True) for i, it in store.subjects.items()}
    assert replace(store.manifest, subjects=flagged).fingerprint != store.fingerprint
    for change in ({"healthy": True}, {"hidden_lesions": (3,)}):
        changed = store.subjects | {LABELLED[0]: replace(store.subjects[LABELLED[0]], **change)}
        assert replace(store.manifest, subjects=changed).fingerprint != store.fingerprint
    store.manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json").fingerprint == store.fingerprint


def test_a_patient_who_is_tested_is_not_pretrained_on(tmp_path: Path) -> None:
    twins = [f"{id_[:-3]}001" for id_ in LABELLED]
    write(tmp_path / "scans", LABELLED, twins)
    prepare(
        tmp_path / "scans",
        tmp_path / "s",
        size=16,
        workers=1,
        validation=1,
        selection=UNLABELLED_TOO,
    )
    store = SliceStore.open(tmp_path / "s")
    trained = {store.patient(i) for i in store.split.train}
    assert {store.patient(i) for i in store.unlabelled} == trained
    learnt, _ = store.pretraining("all")
    tested = {store.patient(i) for i in (*store.split.validation, *store.split.test)}
    assert not tested & {store.patient(i) for i in learnt}
    assert "5 of them are of patients who are validated or tested" in "".join(
        check(store.path).account
    )


def test_scans_known_to_be_healthy_need_no_mask(mixed_scans: Path, tmp_path: Path) -> None:
    listed = tmp_path / "controls.txt"
    listed.write_text(f"# controls\n{UNLABELLED[0]}\n{UNLABELLED[1]}  # the second\n\n")
    how: dict[str, Any] = {"size": 16, "workers": 1, "selection": UNLABELLED_TOO, "validation": 1}
    prepare(mixed_scans, tmp_path / "s", healthy=listed, **how)
    store = SliceStore.open(tmp_path / "s")
    learnt, _ = store.pretraining("healthy")
    assert learnt[-2:] == tuple(UNLABELLED[:2])
    control = store.subjects[UNLABELLED[0]]
    assert control.healthy_positions(store.meaning) == list(control.positions)
    listed.write_text(LABELLED[0])
    with pytest.raises(StudyError, match="said to be healthy, and their masks show a lesion"):
        prepare(mixed_scans, tmp_path / "s", healthy=listed, **how)
    listed.write_text("nobody\n")
    with pytest.raises(StudyError, match="1 ids not among the scans: nobody"):
        prepare(mixed_scans, tmp_path / "s", healthy=listed, **how)


def test_a_mask_that_comes_later_makes_a_scan_labelled(tmp_path: Path) -> None:
    write(tmp_path / "scans", LABELLED, UNLABELLED[:1])
    how: dict[str, Any] = {"size": 16, "workers": 1, "selection": UNLABELLED_TOO}
    prepare(tmp_path / "scans", tmp_path / "s", **how)
    before = SliceStore.open(tmp_path / "s").read_subject(UNLABELLED[0])
    write_subject(tmp_path / "scans", UNLABELLED[0], seed=20)
    report = prepare(tmp_path / "scans", tmp_path / "s", **how)
    store = SliceStore.open(tmp_path / "s")
    assert (report.subjects, store.manifest.unlabelled) == (21, ())
    after = store.read_subject(UNLABELLED[0])
    assert np.array_equal(before.images_NCHW, after.images_NCHW)
    assert after.labels_NHW.any()
    check(store.path)


def test_a_store_without_any_label_can_be_pretrained_on(store_path: Path, tmp_path: Path) -> None:
    """And fine-tuned from on another store, in which no scan of it may be tested."""
    ids = [f"BraTS-GLI-{n:05d}-000" for n in range(100, 120)]
    for seed, subject in enumerate(ids):
        place = write_subject(tmp_path / "more", subject, seed=100 + seed)
        (place / f"{subject}-seg.nii.gz").unlink()
    prepare(
        tmp_path / "more", tmp_path / "more.zarr", 16, 1, selection=UNLABELLED_TOO, validation=1
    )
    more = SliceStore.open(tmp_path / "more.zarr")
    learnt, validated = more.pretraining("all")
    assert (len(learnt), len(validated)) == (19, 1)
    assert not {*learnt} & {*validated}

    values = tiny_values(store_path, tmp_path / "study")
    values["pretrain"]["denoise"] |= {"slices": "all", "store": str(tmp_path / "more.zarr")}
    plan = make_plan(parse_study(values, "tiny"))
    pretraining = plan.runs[0]
    assert pretraining.spec.data == more.fingerprint != plan.store.fingerprint
    assert plan.record(pretraining).store == tmp_path / "more.zarr"
    child = next(run for run in plan.runs if run.place.arm.init == "denoise" and run.parents)
    run_in_process(plan, [pretraining, child])
    assert plan.folder_of(child).result.exists()
    assert not any("masks" in sentence for sentence in concerns(plan))

    values["pretrain"]["denoise"]["slices"] = "healthy"
    with pytest.raises(StudyError, match="no healthy slice to learn from"):
        make_plan(parse_study(values, "tiny"))


def test_a_store_of_another_kind_or_with_tested_scans_is_refused(
    mixed_scans: Path, path: Path, tmp_path: Path
) -> None:
    values = tiny_values(path, tmp_path / "study")
    prepare(
        mixed_scans, tmp_path / "coarse", size=8, workers=1, validation=1, selection=UNLABELLED_TOO
    )
    values["pretrain"]["denoise"] |= {"slices": "all", "store": str(tmp_path / "coarse")}
    with pytest.raises(StudyError, match="the store of a pre-training has size 8"):
        make_plan(parse_study(values, "tiny"))
    write(tmp_path / "other", [], [*LABELLED, *UNLABELLED])
    prepare(
        tmp_path / "other",
        tmp_path / "bare",
        size=16,
        workers=1,
        validation=1,
        selection=UNLABELLED_TOO,
    )
    values["pretrain"]["denoise"]["store"] = str(tmp_path / "bare")
    study = parse_study(values, "tiny")
    with pytest.raises(StudyError, match="5 scans that the study validates or tests are in the"):
        make_plan(study)


@pytest.mark.parametrize("scheme", [{}, {"kind": "autoencode", "latent_channels": 2}])
def test_weights_of_another_study_are_imported(
    scheme: dict[str, Any], store_path: Path, tmp_path: Path
) -> None:
    """With what their anomaly score needs of what the scheme had put around the network."""
    ours = tiny_values(store_path, tmp_path / "study")
    ours["pretrain"]["denoise"] |= {"scheme": scheme} if scheme else {}
    plan = make_plan(parse_study(ours, "tiny"))
    pretraining, score = plan.runs[0], plan.runs[1]
    run_in_process(plan, [pretraining, score])
    other = parse_study(tiny_values(store_path, tmp_path / "other"), "tiny")
    import_run(plan.folder_of(pretraining).path, other, "theirs")
    values = tiny_values(store_path, tmp_path / "other")
    values["finetune"]["inits"] = ["theirs"]
    again = make_plan(parse_study(values, "tiny"))
    names = [run.name for run in again.runs]
    assert "unsupervised · theirs" in names
    runs = [run for run in again.runs if "theirs" in run.name][:3]
    run_in_process(again, runs)
    same, first = again.folder_of(runs[0]), plan.folder_of(score)
    assert same.read_result()["test"] == first.read_result()["test"]
    with pytest.raises(RunError, match="a score has no network"):
        import_run(plan.folder_of(score).path, other, "score")
    with pytest.raises(StudyError, match="'denoise' is taken"):
        import_run(plan.folder_of(pretraining).path, other, "denoise")
