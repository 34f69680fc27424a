"""Patches are what the store holds, wherever its slices are kept; and windows cover volumes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewscan.experiments import windows
from fewscan.experiments.data import SliceData
from fewscan.experiments.devices import Devices, Residency
from fewscan.experiments.patches import Patches
from fewscan.experiments.predictor import PREDICTION_BATCH, Predictor
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.autoencode import Autoencode
from fewscan.experiments.spec import Patch
from fewscan.experiments.tiling import tiles, window_starts
from fewscan.experiments.unet import UNet
from fewscan.experiments.windows import Windowed, importance, patch_of
from fewscan.storage.labels import PretrainSlices
from fewscan.storage.slices import SliceStore, patch_starts


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


def plain_patch(volume: np.ndarray, at: int, patch: Patch, corner: tuple[int, int]) -> np.ndarray:
    """Of slices Z…HW around slice `at`: shifted into the volume, or zeros on both sides of it."""
    depth, rows, columns = patch
    lacking = depth - len(volume)
    if lacking > 0:
        before = lacking // 2
        sides = [(before, lacking - before), *[(0, 0)] * (volume.ndim - 1)]
        whole = np.pad(volume, sides)
    else:
        start = at - depth // 2
        while start < 0:
            start += 1
        while start + depth > len(volume):
            start -= 1
        whole = volume[start : start + depth]
    row, column = corner
    return whole[..., row : row + rows, column : column + columns]


@pytest.mark.parametrize("residency", ["device", "shared", "stream"])
@pytest.mark.parametrize("patch", [(4, 16, 16), (3, 8, 12), (9, 16, 8)])
def test_patches_are_what_the_store_holds(
    store: SliceStore, tmp_path: Path, residency: Residency, patch: Patch
) -> None:
    ids = store.split.train[:3]
    devices = Devices(node_folders=(tmp_path / "node",), residency=residency)
    data = SliceData.load(store, ids, devices, torch.float32, patch=patch)
    each = [store.read_subject(i) for i in ids]
    places = [(k, at) for k, it in enumerate(each) for at in range(len(it.images_NCHW))]
    assert len(data) == len(places) == len(data.table)
    assert data.table.size == patch
    through, rows, columns = np.median([store.spacing_mm_ZHW(i) for i in ids], axis=0)
    assert data.table.spacing_mm_HW == (through, rows, columns)
    indices = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:6]
    corners = data.corners(6, torch.Generator().manual_seed(1))
    assert (corners is None) == (patch[1:] == (16, 16))
    middle = ((16 - patch[1]) // 2, (16 - patch[2]) // 2)
    for given_corners in (None, corners):
        batch = data.batch(indices, indices.flip(0), given_corners)
        for n, index in enumerate(indices.tolist()):
            k, at = places[index]
            corner = middle if given_corners is None else tuple(given_corners[n].tolist())
            images = plain_patch(each[k].images_NCHW, at, patch, corner)
            labels = plain_patch(each[k].labels_NHW, at, patch, corner)
            found = batch.images_NCHW[n].transpose(0, 1).numpy()
            assert np.array_equal(found, images.astype(np.float32))
            assert np.array_equal(batch.labels_NHW[n].numpy(), labels)


def test_places_in_the_plane_reach_all_corners() -> None:
    kept = [range(3, 9)]
    patches = Patches.around((4, 5, 8), (8, 8), kept, np.zeros(6, int), np.arange(3, 9))
    corners = patches.corners(500, torch.Generator().manual_seed(0))
    assert corners is not None
    assert set(corners[:, 0].tolist()) == {0, 1, 2, 3}
    assert set(corners[:, 1].tolist()) == {0}
    with pytest.raises(ValueError, match="patches of"):
        Patches.around((4, 9, 8), (8, 8), kept, np.zeros(6, int), np.arange(3, 9))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_healthy_patches_show_no_lesion(store: SliceStore, depth: int) -> None:
    """The lesion lies in slices 2 to 4 of 6, so that few patches are healthy; of 3 slices none."""
    ids = [i for i in store.split.train[:4] if store.subjects[i].first == 0]
    which: PretrainSlices = "healthy"
    patch = (depth, 16, 16)
    data = SliceData.load(store, ids, Devices(), torch.float32, which, patch=patch)
    positions = [store.positions(store.subjects[i], which, depth) for i in ids]
    assert len(data) == sum(map(len, positions))
    if depth == 3:
        assert len(data) == 0
        assert store.pretraining(which, depth)[1] == ()
        return
    assert len(data) > 0
    batch = data.batch(torch.arange(len(data)))
    assert not batch.labels_NHW.any()
    assert batch.images_NCHW.any()


@given(
    first=st.integers(0, 5),
    count=st.integers(1, 30),
    depth=st.integers(1, 12),
    data=st.data(),
)
def test_tiles_cover_the_slices_and_lie_within_them(
    first: int, count: int, depth: int, data: st.DataObject
) -> None:
    kept = range(first, first + count)
    chosen = tiles(kept, kept, depth)
    starts = patch_starts(np.array([kept[place] for place in chosen]), kept, depth)
    seen = {z for start in starts for z in range(start, start + depth)}
    assert seen >= set(kept)
    assert len(chosen) == max(1, -(-count // depth))
    if count >= depth:
        assert seen == set(kept)
    some = data.draw(st.lists(st.sampled_from(kept), min_size=1, unique=True).map(sorted))
    places = tiles(some, kept, depth)
    assert places[0] == 0
    assert places == sorted(set(places))


@given(length=st.integers(1, 70), window=st.integers(1, 20))
def test_windows_overlap_by_half_and_end_with_the_axis(length: int, window: int) -> None:
    found = window_starts(length, window)
    assert found[0] == 0
    if length <= window:
        assert found == [0]
        return
    assert found[-1] == length - window
    steps = np.diff(found)
    assert steps.min() >= 1 if len(found) > 1 else True
    assert steps.max() <= max(1, window // 2) + 1
    assert np.diff(found).max() - steps.min() <= 1


# Windows.


def network(
    seed: int = 0, dims: int = 3, patch: Patch | None = (4, 8, 8), outputs: int = 3
) -> UNet:
    torch.manual_seed(seed)
    patch = (4, 8, 8) if dims == 3 else None
    model = UNet(2, outputs, 4, 2, dims=dims, patch=patch)
    with torch.no_grad():
        model.last.weight *= 5
    return model.eval()


def test_windows_are_those_of_monai() -> None:
    """Where both lay them in the same places: monai.inferers.sliding_window_inference."""
    from monai.inferers import sliding_window_inference

    model, patch = network(), (4, 8, 8)
    volume = torch.rand(1, 2, 8, 16, 12)
    with torch.no_grad():
        expected = sliding_window_inference(
            volume, patch, 1, model, overlap=0.5, mode="gaussian", sigma_scale=0.125
        )
        found = Windowed(model, patch)(volume)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert importance((5, 7, 9))[2, 3, 4] == 1


def test_what_one_window_covers_is_passed_through_as_it_is() -> None:
    model = network()
    with torch.no_grad():
        volume = torch.rand(1, 2, 4, 8, 8)
        assert torch.equal(Windowed(model, (4, 8, 8))(volume), model(volume))
        small = torch.rand(1, 2, 3, 8, 5)  # in the middle, as in training
        padded = torch.zeros(1, 2, 4, 8, 8)
        padded[:, :, :3, :, 1:6] = small
        found = Windowed(model, (4, 8, 8))(small)
        assert torch.equal(found, model(padded)[:, :, :3, :, 1:6])


@pytest.mark.parametrize("voxels", [1, 600, 1 << 18])
def test_how_many_windows_go_through_together_changes_no_number(
    voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network().double()
    volume = torch.rand(2, 2, 7, 12, 12, dtype=torch.float64)
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        each = torch.cat([Windowed(model, (4, 8, 8))(it[None]) for it in volume])
        sizes.clear()
        monkeypatch.setattr(windows, "VOXELS_AT_ONCE", voxels)
        found = Windowed(model, (4, 8, 8))(volume)
    torch.testing.assert_close(found, each, rtol=1e-6, atol=1e-9)
    assert max(sizes) == {1: 2, 600: 4, 1 << 18: 24}[voxels], "two volumes, so many windows each"


class Twice(nn.Module):
    """Knows nothing of windows."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * images


@settings(deadline=None, max_examples=20)
@given(size=st.tuples(st.integers(1, 9), st.integers(3, 12), st.integers(3, 12)))
def test_windows_of_a_pointwise_network_change_nothing(size: tuple[int, int, int]) -> None:
    volume = torch.rand(1, 2, *size, dtype=torch.float64)
    found = Windowed(Twice(), (3, 4, 5))(volume)
    torch.testing.assert_close(found, 2 * volume, rtol=1e-6, atol=1e-7)


def predictor(*networks: nn.Module, mirror: bool = False) -> Predictor:
    return Predictor(networks, "multiclass", None, mirror).to("cpu")


SLICES = torch.rand(7, 2, 8, 12, generator=torch.Generator().manual_seed(0))


def test_a_3d_network_says_of_slices_what_it_says_of_their_volume() -> None:
    model = network()
    stored = SLICES.half()
    with torch.no_grad():
        logits = Windowed(model, (4, 8, 8))(stored.float().transpose(0, 1)[None])
    (found,) = predictor(model).in_batches(stored, (2.0, 1.0, 1.0))
    assert torch.equal(found, logits.softmax(dim=1)[0].transpose(0, 1))
    assert found.shape == (7, 3, 8, 12)
    many = torch.rand(PREDICTION_BATCH + 6, 2, 8, 8)
    sizes = [len(it) for it in predictor(model).in_batches(many)]
    assert sizes == [PREDICTION_BATCH, 6], "batches, as of a 2D network"


def test_2d_and_3d_networks_are_averaged() -> None:
    deep, flat = network(), network(1, dims=2)
    each = [torch.cat([*predictor(it).in_batches(SLICES)]) for it in (deep, flat)]
    both = torch.cat([*predictor(deep, flat).in_batches(SLICES)])
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_mirroring_a_volume_averages_its_eight_views() -> None:
    model = network()
    alone, mirrored = predictor(model), predictor(model, mirror=True)
    axes = [(a, b, c) for a in ((), (0,)) for b in ((), (2,)) for c in ((), (3,))]
    views = []
    for view in axes:
        flip = [axis for part in view for axis in part]
        views.append(alone.maps(SLICES.flip(flip)).flip(flip))
    torch.testing.assert_close(mirrored.maps(SLICES), torch.stack(views).mean(dim=0))


@pytest.mark.parametrize("scheme", [Denoise(), Autoencode(2)])
def test_the_anomaly_score_is_that_of_the_whole_volume(scheme: Denoise | Autoencode) -> None:
    """Windows are averaged before the median, which sees across slices; and the patch is known
    within what a scheme puts around the network."""
    body = network(outputs=2)
    trained = scheme.network(body).eval()
    assert patch_of(trained) == (4, 8, 8)
    spacing_mm = (3.0, 2.0, 2.0)
    found = Predictor((trained,), None, scheme).to("cpu").maps(SLICES, spacing_mm)
    volume = SLICES.transpose(0, 1)[None]
    with torch.no_grad():
        expected = scheme.anomaly_score(Windowed(trained, (4, 8, 8)), volume, spacing_mm)
    assert torch.equal(found[:, 0], expected[0])


def test_a_2d_network_looks_at_its_own_distances() -> None:
    """Of slices, rows and columns it is told; the first is not for it."""
    flat = network(dims=2, outputs=2)
    of = Predictor((flat,), None, Denoise()).to("cpu")
    assert torch.equal(of.maps(SLICES, (9.0, 2.0, 3.0)), of.maps(SLICES, (2.0, 3.0)))
    assert of.needs_whole_scans is False
    assert replace(of, networks=(network(),)).needs_whole_scans


def test_erosion_and_median_have_a_depth_in_millimetres() -> None:
    """Against scipy's median, and erosion's count, on a volume of thick slices."""
    from scipy import ndimage

    from fewscan.experiments.anomaly import anomaly_of, eroded, foreground, window_of

    spacing_mm = (3.0, 2.0, 1.875)
    images = torch.rand(1, 2, 7, 9, 10, generator=torch.Generator().manual_seed(0))
    images[:, :, :, :2] = 0
    error = torch.rand(1, 7, 9, 10, generator=torch.Generator().manual_seed(1))
    window = window_of(spacing_mm, (7, 9, 10))
    assert window == (3, 5, 5)
    inside = foreground(images)
    counts = ndimage.uniform_filter(inside[0].double().numpy(), window, mode="constant")
    kept = eroded(inside, window)[0]
    assert np.array_equal(kept.numpy(), counts > 0.95)
    expected = ndimage.median_filter((error[0] * kept).numpy(), window, mode="mirror")
    found = anomaly_of(error, images, spacing_mm)[0]
    assert np.array_equal(found.numpy(), expected)
