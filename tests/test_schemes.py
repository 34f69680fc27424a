"""The seam of pre-training: what the planned schemes will ask of it, asked by toys."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_schemes
from torch import Tensor, nn
from toy_schemes import TOYS, Contrast, Foreign, Masked, Neighbours

from fewscan.experiments import pretrain as pretrain_module
from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.data import SliceData
from fewscan.experiments.devices import Devices, launch
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.predictor import load_predictor
from fewscan.experiments.pretrain import PretextTask
from fewscan.experiments.residency import InMemory
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.schemes import SCHEMES, Autoencode, Denoise, Genesis, Inpaint, Mae
from fewscan.experiments.schemes.contrast import Contrast as PositionalContrast
from fewscan.experiments.schemes.ddep import NoisePrediction
from fewscan.experiments.schemes.scheme import Scheme, SliceTable
from fewscan.experiments.schemes.synthetic import Synthetic
from fewscan.experiments.spec import (
    Evaluation,
    Finetune,
    Network,
    Pretrain,
    RunSpec,
    Score,
    Training,
    run_id,
)
from fewscan.experiments.stages import run_stage
from fewscan.experiments.unet import UNet, UNetShape
from fewscan.storage.errors import DeviceError, RunError
from fewscan.storage.runs import RunFolder
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore

NETWORK = Network(width=4, depth=2)
TRAINING = Training(iterations=6, validate_every=2, batch_size=4, lr=1e-2, precision="fp64")
TINY: dict[str, Scheme] = {
    **TOYS,
    "denoise": Denoise(),
    "ddep": NoisePrediction(),
    "synthetic fpi": Synthetic("fpi"),
    "synthetic multitask": Synthetic("multitask"),
    "synthetic restore": Synthetic("restore"),
    "contrast": PositionalContrast(),
    "contrast vicreg": PositionalContrast(reach=0, objective="vicreg"),
    "autoencode": Autoencode(latent_channels=2),
    "autoencode, the control": Autoencode(latent_channels=None, skips=True),
    "inpaint zero": Inpaint("zero"),
    "inpaint noise": Inpaint("noise"),
    "inpaint swap": Inpaint("swap", patch_mm=2.5, share=0.5),
    "mae": Mae(block_mm=2.5),
    "mae, sparse": Mae(block_mm=2.5, sparse=True),
    "mae, sparse with skips": Mae(block_mm=2.5, sparse=True, skips=True),
    "genesis": Genesis(box_mm=6.0),
}
"""The toys, and each scheme at least once: settings for slices of 16×16 pixels of 1.25 mm."""
EACH = pytest.mark.parametrize("kind", TINY)


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    with toy_schemes.registered():
        yield


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


def pretraining(kind: str, store: SliceStore, training: Training = TRAINING) -> Pretrain:
    return Pretrain(store.fingerprint, NETWORK, training, TINY[kind])


def folder_of(spec: RunSpec, store: SliceStore, root: Path) -> RunFolder:
    """With its `spec.json`, as a sweep leaves it."""
    folder = RunFolder(root / run_id(spec))
    RunRecord(spec, "toys", spec.kind, SliceFormat.of_store(store), store.path).write(folder)
    return folder


def done(spec: RunSpec, store: SliceStore, root: Path) -> RunFolder:
    folder = folder_of(spec, store, root)
    run_stage(folder, Devices())
    return folder


def losses(folder: RunFolder) -> list[float]:
    metrics = [e.values for e in folder.committed_events() if e.kind == "metrics"]
    return [value for m in metrics for value in (m["train/loss"], m["validation/loss"])]


def weights(folder: RunFolder) -> dict[str, Tensor]:
    return load_model(folder.model).state_dict()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_scheme_is_tried() -> None:
    assert set(SCHEMES) == {scheme.kind for scheme in TINY.values()}


@EACH
def test_the_generic_stage_teaches_it(kind: str, store: SliceStore, tmp_path: Path) -> None:
    slices = 16 if kind == "contrast vicreg" else 4  # the variance over two slices is noise
    longer = replace(TRAINING, iterations=60, validate_every=20, batch_size=slices)
    folder = done(pretraining(kind, store, longer), store, tmp_path)
    found = losses(folder)
    assert len(found) == 6
    assert found[4] < found[0]
    result, scheme = Result.read(folder), TINY[kind]
    best = 60 if scheme.keeps == "last" else 20 * (1 + int(np.argmin(found[1::2])))
    assert result.best_step == best
    assert result.validation_loss == found[2 * (best // 20) - 1]


def in_this_rank(folders: list[RunFolder], devices: Devices) -> None:
    toy_schemes.register()
    for folder in folders:
        run_stage(folder, devices)


@pytest.fixture(scope="module")
def by_two_ranks(
    store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RunFolder]:
    """All of them, by two processes that are started once."""
    store, root = SliceStore.open(store_path), tmp_path_factory.mktemp("two")
    found = {kind: folder_of(pretraining(kind, store), store, root) for kind in TINY}
    launch(partial(in_this_rank, list(found.values())), Devices(world_size=2))
    return found


@EACH
def test_two_ranks_equal_one(
    kind: str, by_two_ranks: dict[str, RunFolder], store: SliceStore, tmp_path: Path
) -> None:
    """The same global batches and draws, and a loss whose gradient is that of the global batch.

    One validation batch for two ranks: the other has none, and nobody waits for it.
    """
    two, one = by_two_ranks[kind], done(pretraining(kind, store), store, tmp_path)
    assert losses(two) == pytest.approx(losses(one), rel=1e-9)
    assert len(losses(two)) == 6
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-6, atol=1e-9)


class Killed(BaseException):
    """As SIGKILL: nothing in the code under test catches it."""


@EACH
def test_interrupted_equals_uninterrupted(kind: str, store: SliceStore, tmp_path: Path) -> None:
    spec = pretraining(kind, store)
    whole, killed = (folder_of(spec, store, tmp_path / name) for name in ("whole", "killed"))
    run_stage(whole, Devices())
    loss = PretextTask.loss
    for kill_at in (0, 3, 5):
        torch.manual_seed(kill_at)  # whatever the process did before makes no difference

        def dying(task: PretextTask, model: nn.Module, step: int, last: int = kill_at) -> Tensor:
            if step >= last:
                raise Killed
            return loss(task, model, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PretextTask, "loss", dying)
            with pytest.raises(Killed):
                run_stage(killed, Devices(checkpoint_every_s=0.0))
    run_stage(killed, Devices())
    assert losses(killed) == losses(whole)
    assert killed.result.read_bytes() == whole.result.read_bytes()
    assert same(weights(killed), weights(whole))


@EACH
def test_the_body_alone_is_kept_and_transfers(kind: str, store: SliceStore, tmp_path: Path) -> None:
    spec = pretraining(kind, store)
    folder, scheme = done(spec, store, tmp_path), spec.scheme
    body, channels = load_model(folder.model), len(store.channels)
    outputs = scheme.out_channels(channels)
    assert body.shape == UNetShape(channels, outputs, 4, 2, scheme.skips)
    assert set(body.state_dict()) == set(UNet(channels, outputs, 4, 2).state_dict())
    fresh, _ = initial_network(spec, channels, outputs, folder, Devices())
    encoder = {n: t for n, t in body.state_dict().items() if n.startswith("down_path.")}
    assert not any(torch.equal(fresh.state_dict()[n], t) for n, t in encoder.items())

    training = replace(TRAINING, iterations=2)
    finetune = Finetune(
        *(store.fingerprint, NETWORK, "binary", 2, training),
        seed=0,
        init=run_id(spec),
        transfer=scheme.transfer,
    )
    child = folder_of(finetune, store, tmp_path)
    start, facts = initial_network(finetune, channels, 2, child, Devices())
    own = {n: t for n, t in start.state_dict().items() if not n.startswith("last.")}
    taken = own if scheme.transfer == "all" else encoder
    assert set(facts["loaded"]) == set(taken)
    assert same({n: own[n] for n in taken}, body.state_dict())
    assert start.shape.skips
    assert all(parameter.requires_grad for parameter in start.parameters())
    run_stage(child, Devices())
    assert Result.read(child).best_step == 2


def test_what_a_scheme_puts_around_the_body_starts_from_the_seed(
    store: SliceStore, tmp_path: Path
) -> None:
    """Not from what the process drew before; another seed starts from another head."""
    heads = []
    for n, seed in enumerate((0, 0, 1)):
        torch.manual_seed(n)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(toy_schemes, "Projected", remembering(heads))
            spec = replace(pretraining("toy contrast", store), seed=seed)
            done(spec, store, tmp_path / str(n))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def remembering(heads: list[Tensor]) -> type[nn.Module]:
    class Remembered(toy_schemes.Projected):
        def __init__(self, body: UNet) -> None:
            super().__init__(body)
            heads.append(self.head.weight.detach().clone())

    return Remembered


def slices(count: int, table: SliceTable) -> SliceData:
    images = torch.rand((count, 2, 16, 16), generator=torch.Generator().manual_seed(0)).half()
    labels = torch.zeros((count, 16, 16), dtype=torch.uint8)
    return SliceData(InMemory(images, labels), table, torch.float32, "cpu")


def task_of(scheme: Scheme, table: SliceTable, batch_size: int = 4) -> PretextTask:
    training = replace(TRAINING, batch_size=batch_size, precision="fp32")
    data = slices(len(table), table)
    return PretextTask(Pretrain("data", NETWORK, training, scheme), data, data, Devices())


TABLE = SliceTable(2, (16, 16), np.repeat(np.arange(3), 4), np.tile(np.arange(4) / 3, 3))
"""Three scans of four slices."""


def test_a_batch_of_two_views_has_half_as_many_slices() -> None:
    """So that steps of all schemes cost the same number of forward passes."""
    inputs, _ = task_of(Contrast(), TABLE).batch(0)
    assert len(inputs) == 4
    with pytest.raises(DeviceError, match="batch of 5 slices for 2 views"):
        task_of(Contrast(), TABLE, batch_size=5)


def test_a_scheme_may_order_its_batches() -> None:
    order = task_of(Neighbours(), TABLE).order
    for step in range(20):
        pairs = order.indices(step).view(-1, 2).numpy()
        assert (TABLE.heights_N[pairs[:, 0]] == TABLE.heights_N[pairs[:, 1]]).all()
        assert (TABLE.scans_N[pairs[:, 0]] != TABLE.scans_N[pairs[:, 1]]).all()


def test_a_draw_is_for_the_slices_of_its_batch() -> None:
    """What a scheme draws with is the table of these slices, in their order."""
    seen: list[SliceTable] = []

    class Asking(Masked):
        def draw(self, slices: SliceTable, generator: torch.Generator) -> toy_schemes.Boxes:
            seen.append(slices)
            return super().draw(slices, generator)

    task = task_of(Asking(), TABLE)
    task.batch(3)
    indices = task.order.indices(3).numpy()
    assert seen[0].scans_N.tolist() == TABLE.scans_N[indices].tolist()
    assert seen[0].heights_N.tolist() == TABLE.heights_N[indices].tolist()


def test_validation_asks_the_same_every_time() -> None:
    task = task_of(Masked(), TABLE)
    torch.manual_seed(0)
    model = UNet(2, 2, width=4, depth=2)
    with torch.no_grad():
        assert task.validation_loss(model) == task.validation_loss(model)


def test_an_anomaly_score_of_its_own_is_scored(store: SliceStore, tmp_path: Path) -> None:
    spec = pretraining("toy foreign", store)
    folder = done(spec, store, tmp_path)
    evaluation = Evaluation(nsd_tolerance_mm=None)
    scored = done(Score(store.fingerprint, evaluation, (run_id(spec),)), store, tmp_path)
    assert 0 < Result.read(scored).test["pooled_ap"] < 1
    images_NCHW = torch.rand(3, len(store.channels), 16, 16)
    predictor = load_predictor([folder])
    network = load_model(folder.model).float()
    with torch.no_grad():
        expected_NHW = Foreign().anomaly_score(network, images_NCHW, (1.0, 1.0))
    assert torch.equal(predictor.maps(images_NCHW, (1.0, 1.0)), expected_NHW[:, None])


@pytest.mark.parametrize("kind", [kind for kind, it in TINY.items() if it.has_anomaly_score])
def test_what_is_scored_is_the_network_that_was_trained(
    kind: str, store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the scheme put around the body, and whatever else lies in the batch."""
    trained: list[nn.Module] = []

    def remembered(spec: Pretrain, body: UNet) -> nn.Module:
        trained.append(spec.scheme.network(body))
        return trained[-1]

    monkeypatch.setattr(pretrain_module, "_trained_network", remembered)
    folder = done(pretraining(kind, store), store, tmp_path)
    images_NCHW = torch.rand(3, len(store.channels), 16, 16)
    images_NCHW[:, :, :2] = 0
    scores_NHW = load_predictor([folder]).maps(images_NCHW, (1.25, 1.25))[:, 0]
    alone_NHW = load_predictor([folder]).maps(images_NCHW[1:2], (1.25, 1.25))[:, 0]
    torch.testing.assert_close(alone_NHW, scores_NHW[1:2], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        network = trained[0].float()
        expected_NHW = TINY[kind].anomaly_score(network, images_NCHW, (1.25, 1.25))
    assert torch.equal(scores_NHW, expected_NHW)
    assert scores_NHW.shape == (3, 16, 16)
    assert scores_NHW.dtype == torch.float32
    assert (scores_NHW >= 0).all()
    assert scores_NHW.any()


def test_every_scheme_is_tested_here() -> None:
    assert {scheme.kind for scheme in TINY.values()} == set(SCHEMES)


def test_a_network_without_an_anomaly_score_is_not_scored(
    store: SliceStore, tmp_path: Path
) -> None:
    folder = done(pretraining("toy masked", store), store, tmp_path)
    with pytest.raises(RunError, match="pre-trained by toy masked has no anomaly score"):
        load_predictor([folder])
