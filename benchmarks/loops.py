"""Our training loop on made-up slices in memory, to be measured step by step.

Needs torch and this repository's `experiments/` and `storage/` alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fewscan.experiments.checkpoint import CheckpointWriter
from fewscan.experiments.data import SliceData
from fewscan.experiments.devices import Devices
from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.initial_weights import initial_network
from fewscan.experiments.pretrain import PretextTask
from fewscan.experiments.residency import InMemory
from fewscan.experiments.schemes.scheme import SliceTable
from fewscan.experiments.spec import Finetune, Network, Precision, Pretrain, Training
from fewscan.experiments.train import Loop
from fewscan.storage.labels import LabelMeaning
from fewscan.storage.runs import RunFolder

CHANNELS, CLASSES = 4, 3
MEANING = LabelMeaning(tuple(f"class {k}" for k in range(1, CLASSES + 1)))


@dataclass(frozen=True)
class Work:
    """What a step works on."""

    width: int = 64
    size: int = 128
    batch_size: int = 16
    slices: int = 64

    def training(self, precision: Precision) -> Training:
        """So long that no benchmark reaches its end."""
        return Training(10**9, 10**9, self.batch_size, precision=precision)


def made_up_slices(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Discs of noisy tissue with a lesion of three classes: images_NCHW float16, labels uint8."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 + 0.2 * torch.rand((count, CHANNELS, size, size), generator=generator)
    across = torch.linspace(-1, 1, size)
    images *= across[:, None] ** 2 + across**2 < 0.8
    labels = torch.zeros((count, size, size), dtype=torch.uint8)
    places = torch.randint(size // 4, size // 2, (count, 2), generator=generator).tolist()
    for n, (row, column) in enumerate(places):
        for label in range(1, CLASSES + 1):
            length = max(1, size // (6 * label))
            labels[n, row : row + length, column : column + length] = label
    images[:, 0] += 0.2 * labels
    return images.half(), labels


def in_memory(images: Tensor, labels: Tensor, dtype: torch.dtype, device: str) -> SliceData:
    """Slices as tasks take them, of scans that nothing is known of."""
    channels, rows, columns = images.shape[1:]
    table = SliceTable.unrelated(channels, (rows, columns), len(images))
    return SliceData(InMemory(images, labels), table, dtype, device)


def loop(kind: str, work: Work, precision: Precision, devices: Devices, folder: Path) -> Loop:
    """The loop of a denoising ("pretrain") or of a fine-tuning with augmentation ("finetune")."""
    folder.mkdir(parents=True, exist_ok=True)
    training, network = work.training(precision), Network(work.width)
    images, labels = (t.to(devices.device) for t in made_up_slices(work.slices, work.size))
    data = in_memory(images, labels, devices.dtype(precision), devices.device)
    spec: Pretrain | Finetune
    if kind == "pretrain":
        spec = Pretrain("made up", network, training)
        task: PretextTask | SegmentTask = PretextTask(spec, data, data, devices)
        outputs = CHANNELS
    else:
        spec = Finetune("made up", network, "multiclass", 1, training, seed=0)
        task, outputs = SegmentTask(spec, MEANING, data, data, devices), 1 + CLASSES
    run = RunFolder(folder)
    model, _ = initial_network(spec, CHANNELS, outputs, run, devices)
    made = Loop(model, task, training, run, devices, CheckpointWriter(run.checkpoint))
    made.begin({})
    return made


def on_cpu(threads: int) -> Devices:
    """A CPU with checkpoints and heartbeats as rare as in a study."""
    return replace(Devices(), threads=threads, checkpoint_every_s=3600.0)
