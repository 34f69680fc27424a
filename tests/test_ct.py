"""CT and the like, in units of their own: a window for all scans, given or learnt from labels."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fewscan.harness.cli import main
from fewscan.storage.errors import FewscanError, StoreError, StudyError
from fewscan.storage.nifti import write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

SHAPE = (32, 32, 6)
PLACE = np.moveaxis(np.indices(SHAPE[:2]), 0, -1) / 31 * 2 - 1
RADIUS = np.linalg.norm(PLACE, axis=-1)[..., None] * np.ones(SHAPE)
LESION = np.linalg.norm(PLACE - [0.2, 0], axis=-1)[..., None] * np.ones(SHAPE) < 0.2
TRAIN = ["c1", "c2"]


def write_ct(folder: Path, channels: tuple[str, ...] = ("CT",), lesion_hu: float = 25) -> Path:
    """Four heads: brain of 35 HU with a lesion, skull of 1100, air of -1000; with labels."""
    for n in range(4):
        noise = np.random.default_rng(n).normal(0, 4, SHAPE)
        hu = np.select([RADIUS < 0.55, RADIUS < 0.65], [35, 1100], -1000) + noise
        hu[LESION] += lesion_hu - 35
        for k, _ in enumerate(channels):
            write_nifti(folder / f"imagesTr/c{n}_000{k}.nii.gz", hu.astype(np.int16), np.eye(4))
        write_nifti(folder / f"labelsTr/c{n}.nii.gz", LESION.astype(np.uint8), np.eye(4))
    description = {
        "channel_names": {str(k): name for k, name in enumerate(channels)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    split = {"train": TRAIN, "validation": ["c0"], "test": ["c3"]}
    (folder.parent / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    return write_ct(tmp_path / "raw")


def fewscan(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def apart(store: Path) -> float:
    """Brain minus lesion, in the units of the store."""
    slices = SliceStore.open(store).read_subject("c1")
    images_NHW = slices.images_NCHW[:, 0].astype(float)
    brain = (RADIUS[..., 0] < 0.5) & ~LESION[..., 0]
    return float(images_NHW[:, brain].mean() - images_NHW[:, LESION[..., 0]].mean())


def test_a_window_gives_soft_tissue_its_contrast(raw: Path, tmp_path: Path) -> None:
    made = ("prepare", raw, tmp_path / "s", "--size", 32, "--window", -20, 100)
    done = fewscan(*made)
    assert done.exit_code == 0, done.output
    assert "windows: CT -20 to 100" in done.output
    assert apart(tmp_path / "s") == pytest.approx(10 / 120, abs=0.01)
    images = SliceStore.open(tmp_path / "s").read_subject("c1").images_NCHW[:, 0]
    assert not images[:, RADIUS[..., 0] > 0.7].any(), "air is background"
    assert (images[:, (RADIUS[..., 0] > 0.57) & (RADIUS[..., 0] < 0.63)] == 1).all(), "bone"
    again = fewscan("prepare", raw, tmp_path / "s", "--size", 32)
    assert again.exit_code == 0, again.output
    other = fewscan("prepare", raw, tmp_path / "s", "--size", 32, "--window", -20, 90)
    assert "a store with windows ((-20.0, 100.0),)" in other.output


def test_slices_of_air_are_not_kept(raw: Path, tmp_path: Path) -> None:
    path = raw / "imagesTr/c2_0000.nii.gz"
    hu = np.full(SHAPE, -1000, np.int16)
    hu[..., 2:5] = np.where(RADIUS < 0.5, 35, -1000)[..., 2:5]
    write_nifti(path, hu, np.eye(4))
    prepare(raw, tmp_path / "s", 32, 1, windows=[(-20, 100)])
    assert SliceStore.open(tmp_path / "s").subjects["c2"].positions == range(2, 5)


def test_the_window_of_the_labelled_voxels(raw: Path, tmp_path: Path) -> None:
    """Of the training scans alone; how many masks it took is said, by `check` as well."""
    for n in (0, 3):
        hu = np.where(np.roll(LESION, n, axis=0), 9000, 10).astype(np.int16)
        write_nifti(raw / f"imagesTr/c{n}_0000.nii.gz", hu, np.eye(4))
    split = raw.parent / "split.json"
    done = fewscan(
        *("prepare", raw, tmp_path / "s", "--size", 32, "--split", split, "--workers", 1),
        *("--normalisation", "labelled-percentiles"),
    )
    assert done.exit_code == 0, done.output
    parameters = SliceStore.open(tmp_path / "s").manifest.parameters
    values = []
    for n in (1, 2):
        noise = np.random.default_rng(n).normal(0, 4, SHAPE)
        values.append((35 + noise - 10).astype(np.int16)[LESION])
    expected = np.quantile(np.concatenate(values).astype(float), (0.005, 0.995))
    assert parameters.windows == ((expected[0], expected[1]),)
    assert parameters.window_masks == 2
    assert "learnt from the masks of 2 scans" in done.output
    assert "learnt from the masks of 2 scans" in fewscan("check", tmp_path / "s").output
    before = SliceStore.open(tmp_path / "s").fingerprint
    assert prepare(raw, tmp_path / "s", 32, 1, split=split).fingerprint == before


def test_what_tells_no_window(raw: Path, tmp_path: Path) -> None:
    for n in range(4):
        write_nifti(raw / f"labelsTr/c{n}.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    with pytest.raises(FewscanError, match="no labelled voxel in 4 training scans"):
        prepare(raw, tmp_path / "s", 32, 1, normalisation="labelled-percentiles")
    for n in range(4):
        write_nifti(raw / f"labelsTr/c{n}.nii.gz", LESION.astype(np.uint8), np.eye(4))
        write_nifti(
            raw / f"imagesTr/c{n}_0000.nii.gz", np.where(LESION, 7, 0).astype(np.int16), np.eye(4)
        )
    with pytest.raises(FewscanError, match=r"channel CT has no contrast: .* all 7"):
        prepare(raw, tmp_path / "t", 32, 1, normalisation="labelled-percentiles")


@pytest.mark.parametrize(
    ("windows", "normalisation", "found"),
    [
        ([(100, -20)], None, "the window 100 -20"),
        ([(0, 1), (0, 2)], None, "2 windows for 1 channels"),
        ([(0, 1)], "percentiles", "with the normalisation percentiles"),
        ([], "window", "0 windows for 1 channels"),
    ],
)
def test_windows_that_do_not_fit(
    raw: Path, tmp_path: Path, windows: list[tuple[float, float]], normalisation: str, found: str
) -> None:
    with pytest.raises(StudyError, match=found) as caught:
        prepare(raw, tmp_path / "s", 32, 1, normalisation=normalisation, windows=windows)  # type: ignore[arg-type]
    assert caught.value.where == "--window"


def test_a_window_for_each_channel_and_a_store_of_another_window(raw: Path, tmp_path: Path) -> None:
    write_ct(raw, ("CT", "PET"))
    prepare(raw, tmp_path / "s", 32, 1, windows=[(-20, 100), (0, 2000)])
    store = SliceStore.open(tmp_path / "s")
    images = store.read_subject("c1").images_NCHW
    inside = RADIUS[..., 0] < 0.4
    assert images[:, 0, inside].mean() > 10 * images[:, 1, inside].mean()
    made = SliceFormat.of_store(store)
    assert made.windows == ((-20, 100), (0, 2000))
    assert SliceFormat.from_json(json.loads(json.dumps(made.to_json())), "here") == made
    with pytest.raises(StoreError, match="a store with windows"):
        prepare(raw, tmp_path / "s", 32, 1, windows=[(-20, 100)])


def test_a_channel_called_ct_that_is_scaled_by_percentiles_is_warned_of(
    raw: Path, tmp_path: Path
) -> None:
    done = fewscan("prepare", raw, tmp_path / "s", "--size", 32)
    assert done.exit_code == 0
    assert "CT: each scan is scaled from its air to its bone" in done.output
    assert "--window LOW HIGH" in done.output
    description = json.loads((raw / "dataset.json").read_text())
    description["channel_names"] = {"0": "T2"}
    (raw / "dataset.json").write_text(json.dumps(description))
    assert "CT" not in fewscan("prepare", raw, tmp_path / "t", "--size", 32).output
