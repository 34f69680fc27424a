"""PNG and TIFF files as scans: what Pillow reads is what is on disk, and in one orientation."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scan, find_scans
from fewscan.storage.images import grid_of, write_like
from fewscan.storage.nifti import read_nifti
from fewscan.storage.pictures import picture_affine, read_picture
from fewscan.storage.prepare import prepare
from fewscan.storage.scans import read_scan
from fewscan.storage.slices import SliceStore

SHAPE_HW = (20, 28)


def drawn(seed: int, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W) and its mask, in which some pictures have a lesion."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, np.iinfo(dtype).max, SHAPE_HW).astype(dtype)
    mask = np.zeros(SHAPE_HW, np.uint8)
    mask[4:12, 6 : 6 + 8 * (seed % 2)] = 1
    return image, mask


def describe(folder: Path, ending: str, channels: Sequence[str], count: int) -> None:
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {str(k): name for k, name in enumerate(channels)},
                "labels": {"background": 0, "road": 1},
                "numTraining": count,
                "file_ending": ending,
                "overwrite_image_reader_writer": "NaturalImage2DIO",
            }
        )
    )
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(exist_ok=True)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_set_of_pictures_becomes_a_store(tmp_path: Path, ending: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    describe(raw, ending, ["XR"], 4)
    for seed in range(4):
        image, mask = drawn(seed, np.uint16)
        Image.fromarray(image).save(raw / "imagesTr" / f"c{seed}_0000{ending}")
        Image.fromarray(mask).save(raw / "labelsTr" / f"c{seed}{ending}")
    catalog = find_scans(raw)
    assert (catalog.axis, catalog.problems) == (2, {})
    scan = read_scan(catalog.scans[1])
    image, mask = drawn(1, np.uint16)
    assert np.array_equal(scan.channels_XYZ[0], image[:, :, None])
    assert scan.labels_XYZ is not None
    assert np.array_equal(scan.labels_XYZ, mask[:, :, None])
    assert grid_of(catalog.scans[1]).shape == (*SHAPE_HW, 1)
    report = prepare(raw, tmp_path / "store", size=28, workers=1)
    assert (report.subjects, report.skipped) == (4, ())
    store = SliceStore.open(tmp_path / "store")
    assert [store.read_subject(f"c{k}").images_NCHW.shape for k in (0, 1)] == [(1, 1, 28, 28)] * 2
    assert store.read_subject("c1").labels_NHW is not None


def test_the_colours_of_one_file_are_its_channels(tmp_path: Path) -> None:
    describe(tmp_path, ".png", ["R", "G", "B"], 1)
    colours = np.stack([drawn(k)[0] for k in range(3)], axis=2)
    Image.fromarray(colours).save(tmp_path / "imagesTr" / "c_0000.png")
    Image.fromarray(drawn(1)[1]).save(tmp_path / "labelsTr" / "c.png")
    (scan,) = find_scans(tmp_path).scans
    assert scan.volumes == (0, 1, 2)
    for k, channel in enumerate(read_scan(scan).channels_XYZ):
        assert np.array_equal(channel[:, :, 0], colours[:, :, k])
    found = find_scan([tmp_path / "imagesTr" / "c_0000.png"], ["B", "R"], ["road"])
    assert found.volumes == (2, 0)
    describe(tmp_path, ".png", ["grey"], 1)
    (scan,) = find_scans(tmp_path).scans
    with pytest.raises(ScanError, match="3 colours") as caught:
        read_scan(scan)
    assert "R, G, B" in str(caught.value.remedy)


def test_pages_are_slices_and_the_spacing_is_beside_them(tmp_path: Path) -> None:
    pages = [drawn(k, np.uint16)[0] for k in range(5)]
    first, *others = [Image.fromarray(page) for page in pages]
    path = tmp_path / "stack_0000.tif"
    first.save(path, save_all=True, append_images=others)
    (stack_HWZ,) = read_picture(path)
    assert np.array_equal(stack_HWZ, np.stack(pages, axis=2))
    assert np.array_equal(picture_affine(path), np.eye(4))
    (tmp_path / "stack.json").write_text(json.dumps({"spacing": [5, 0.5, 0.25]}))
    assert np.array_equal(np.diag(picture_affine(path)), [0.5, 0.25, 5, 1])
    for damaged in ("{", "[1]", '{"spacing": 3}', '{"spacing": [0, 1, 1]}', '{"spacing": ["a"]}'):
        (tmp_path / "stack.json").write_text(damaged)
        with pytest.raises(ScanError, match="spacing"):
            picture_affine(path)


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    image, mask = drawn(1)
    for dtype in (np.uint8, np.uint16, np.int32, np.float32):
        values = image.astype(dtype) * (300 if dtype is not np.uint8 else 1)
        Image.fromarray(values).save(tmp_path / "x.tif")
        assert np.array_equal(read_picture(tmp_path / "x.tif")[0][:, :, 0], values)
    Image.fromarray(mask.astype(bool)).save(tmp_path / "x.png")
    assert np.array_equal(read_picture(tmp_path / "x.png")[0][:, :, 0], mask)
    indexed = Image.fromarray(mask)
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    indexed.save(tmp_path / "p.png")
    assert np.array_equal(read_picture(tmp_path / "p.png", is_label=True)[0][:, :, 0], mask)
    red, green, blue = read_picture(tmp_path / "p.png")
    assert np.array_equal(red[:, :, 0], mask * 255)
    assert not green.any()
    assert not blue.any()
    opaque = Image.merge("RGBA", [Image.fromarray(x) for x in (image, image, image, mask | 255)])
    opaque.save(tmp_path / "a.png")
    assert len(read_picture(tmp_path / "a.png")) == 3


def test_what_is_predicted_of_a_picture_lies_on_its_grid(tmp_path: Path) -> None:
    image, mask = drawn(1)
    Image.fromarray(image).save(tmp_path / "x.png")
    (tmp_path / "x.json").write_text(json.dumps({"spacing": [0.5, 0.25]}))
    write_like(tmp_path / "out.nii.gz", mask[:, :, None], tmp_path / "x.png")
    written = read_nifti(tmp_path / "out.nii.gz")
    assert np.array_equal(written.voxels_XYZ, mask[:, :, None])
    assert np.array_equal(written.affine, picture_affine(tmp_path / "x.png"))


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    image, mask = drawn(1)
    path = tmp_path / "x.png"
    layers = [Image.fromarray(x) for x in (image, image, image, mask)]
    Image.merge("RGBA", layers).save(path)
    with pytest.raises(ScanError, match="kind RGBA") as caught:
        read_picture(path)
    assert caught.value.where == str(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:60], b"\x00" * 80):
        path.write_bytes(damaged)
        with pytest.raises(ScanError, match="cannot be read") as caught:
            read_picture(path)
        assert caught.value.where == str(path)
