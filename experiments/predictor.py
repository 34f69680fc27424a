"""Trained networks as one predictor: for scoring, for new scans, for the report's examples.

Predictions are computed in float32 whatever the training used: half of the bits would make ties,
and a reconstruction error is a small difference of large numbers.

A 3D network is given all slices of a scan, as one volume, and its maps are slices again: whoever
asks sees no difference.

Letters in names: N slices, C channels, K maps, H and W rows and columns.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path

import torch
from torch import Tensor, nn

from fewscan.experiments.checkpoint import load_around, load_model, weights_around
from fewscan.experiments.results import RunRecord
from fewscan.experiments.schemes.scheme import HasAnomalyScore, Scheme
from fewscan.experiments.spec import Finetune, Imported, Pretrain, Score, Target
from fewscan.experiments.unet import require_same_tensors
from fewscan.experiments.windows import Windowed, patch_of
from fewscan.storage.errors import RunError
from fewscan.storage.runs import RunFolder

PREDICTION_BATCH = 64
"""Fixed: a convolution's last bits depend on how many slices it is given at once."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """One network, or several whose maps are averaged: all segment, or all reconstruct.

    They may be of different shapes: each goes through a scan in its own way (`_through`), and only
    their maps of the same slices meet. Without a network its map is an anomaly score of the images
    themselves.
    """

    networks: tuple[nn.Module, ...]
    target: Target | None
    """None: pre-trained networks, whose map is the anomaly score."""
    scheme: HasAnomalyScore | None = None
    """How a pre-trained network was taught, and with that its anomaly score."""
    mirror: bool = False
    """Average over the slice and its three mirror images, as nnU-Net predicts; in 3D seven."""
    device: str = "cpu"

    @property
    def has_classes(self) -> bool:
        """Whether it tells the classes apart, so that no threshold is needed."""
        return self.target == "multiclass"

    def to(self, device: str) -> "Predictor":
        """The same on a device, in float32."""
        networks = tuple(network.float().to(device).eval() for network in self.networks)
        return replace(self, networks=networks, device=device)

    def among(self, numbers: Collection[int]) -> "Predictor":
        """The same with these of its networks alone, 0 the first."""
        networks = (network for n, network in enumerate(self.networks) if n in numbers)
        return replace(self, networks=tuple(networks))

    def maps(self, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...] | None = None) -> Tensor:
        """maps_NKHW of float32 images: the probability of background and each class, or one map,
        the anomaly score, which alone needs the distance between rows and between columns.

        For a 3D network they are all slices of one scan, and between slices comes first.
        """
        given = (images_NCHW, spacing_mm_HW)
        return _mean([self._mirrored(network, *given) for network in self._each])

    def in_batches(
        self, images_NCHW: Tensor, spacing_mm_HW: tuple[float, ...] | None = None
    ) -> Iterator[Tensor]:
        """The `maps` of all slices of a scan, a batch after the other, on the networks' device.

        Distances between slices, rows and columns; only 3D networks look at the first one.
        """
        each = [self._through(network, images_NCHW, spacing_mm_HW) for network in self._each]
        for batches in zip(*each, strict=True):
            yield _mean(batches)

    @property
    def needs_whole_scans(self) -> bool:
        """Whether some network is 3D."""
        return any(patch_of(network) for network in self.networks)

    def labels(self, maps_NKHW: Tensor, threshold: float | None) -> Tensor | None:
        """uint8 labels_NHW: k the k-th class, or 1 any lesion; None without classes and threshold.

        Classes are the most probable ones.
        """
        if self.has_classes:
            return maps_NKHW.max(dim=1).indices.to(torch.uint8)  # on a CPU 6 times argmax's speed
        return None if threshold is None else above(lesion_score(maps_NKHW), threshold).byte()

    @property
    def _each(self) -> tuple[nn.Module, ...]:
        return self.networks or (nn.Identity(),)

    def _through(
        self,
        network: nn.Module,
        images_NCHW: Tensor,
        spacing_mm_HW: tuple[float, ...] | None,
    ) -> Iterator[Tensor]:
        """What one network says of all slices of a scan: their maps, `PREDICTION_BATCH` at a time.

        One that sees slices alone is asked batch by batch, a 3D one goes through the scan first.
        """
        at_once = PREDICTION_BATCH if patch_of(network) is None else len(images_NCHW)
        for start in range(0, len(images_NCHW), at_once):
            batch_NCHW = images_NCHW[start : start + at_once].to(self.device, torch.float32)
            yield from self._mirrored(network, batch_NCHW, spacing_mm_HW).split(PREDICTION_BATCH)

    @torch.no_grad()
    def _mirrored(
        self,
        network: nn.Module,
        images_NCHW: Tensor,
        spacing_mm_HW: tuple[float, ...] | None,
    ) -> Tensor:
        """The maps of one network; with mirroring the mean of those of all mirror images."""
        patch = patch_of(network)
        if patch is None:
            spacing_mm_HW = None if spacing_mm_HW is None else spacing_mm_HW[-2:]
        else:
            network, images_NCHW = Windowed(network, patch), images_NCHW.transpose(0, 1)[None]
        axes = range(2, images_NCHW.ndim)
        most = len(axes) if self.mirror else 0
        flips = chain.from_iterable(combinations(axes, n) for n in range(most + 1))
        maps = _mean([self._of(network, images_NCHW.flip(f), spacing_mm_HW).flip(f) for f in flips])
        return maps if patch is None else maps[0].transpose(0, 1).contiguous()

    def _of(
        self,
        network: nn.Module,
        images_NCHW: Tensor,
        spacing_mm_HW: tuple[float, ...] | None,
    ) -> Tensor:
        if self.target is not None:
            probabilities_NKHW: Tensor = network(images_NCHW).softmax(dim=1)
            return probabilities_NKHW
        assert self.scheme is not None
        assert spacing_mm_HW is not None
        return self.scheme.anomaly_score(network, images_NCHW, spacing_mm_HW)[:, None]


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.stack([*maps]).mean(dim=0)


def lesion_score(maps_NKHW: Tensor, lesion: Sequence[int] | None = None) -> Tensor:
    """scores_NHW, the higher, the more lesion: of any class, or the anomaly score.

    `lesion` are the classes that count where some are organs: 1, 2, …
    """
    if lesion is not None and len(lesion) < maps_NKHW.shape[1] - 1:
        return maps_NKHW[:, list(lesion)].sum(dim=1)
    return maps_NKHW[:, 1:].sum(dim=1) if maps_NKHW.shape[1] > 1 else maps_NKHW[:, 0]


def above(scores: Tensor, threshold: float) -> Tensor:
    """Where a score is above a threshold: both in half precision, in which it was chosen."""
    return scores.half() > torch.tensor(threshold, dtype=torch.float16)


def predictor_of_score(
    spec: Score, parents: Sequence[RunFolder], channels: Sequence[str]
) -> Predictor:
    """What a score is about, on the CPU: its parents' networks, or the images of these channels.

    Raises `RunError` as `load_predictor` does.
    """
    if spec.image:
        return Predictor((), None, spec.image.among(channels))
    return replace(load_predictor(parents), mirror=spec.mirror)


def load_predictor(folders: Sequence[RunFolder]) -> Predictor:
    """The networks of finished trainings as one predictor, on the CPU.

    Raises `RunError` if a model is missing, if they were taught different things, or if a
    pre-training has no anomaly score.
    """
    taught = {_taught(RunRecord.read(folder), folder) for folder in folders}
    if len(taught) > 1:
        raise taught_different_things(", ".join(str(folder.path) for folder in folders))
    target, scheme = taught.pop()
    networks = tuple(_trained_network(folder.model, scheme) for folder in folders)
    return Predictor(networks, target, scheme).to("cpu")


def taught_different_things(where: str) -> RunError:
    """Networks of these runs cannot be averaged."""
    return RunError(
        "networks that were taught different things cannot be averaged",
        where=where,
        expected="fine-tunings of one target, or pre-trainings of one scheme",
        remedy="score them one by one",
    )


def _trained_network(path: Path, scheme: Scheme | None) -> nn.Module:
    """The kept model; of a pre-training within what its scheme had put around it."""
    body = load_model(path)
    if scheme is None:
        return body
    network, around = scheme.network(body), load_around(path)
    remedy = "use the version of fewscan that made the run"
    require_same_tensors(weights_around(network, body), around, remedy=remedy, where=path)
    network.load_state_dict(around, strict=False)
    return network


def _taught(record: RunRecord, folder: RunFolder) -> tuple[Target | None, Scheme | None]:
    match record.spec:
        case Finetune(target=target):
            return target, None
        case Score():
            raise RunError("a score has no network", where=folder.path, expected="a training")
        case Pretrain(scheme=scheme) | Imported(scheme=scheme):
            if scheme is not None and scheme.has_anomaly_score:
                return None, scheme
            how = f"was pre-trained by {scheme.kind}" if scheme else "segments, and is imported,"
            raise RunError(
                f"a network that {how} has no anomaly score",
                where=folder.path,
                expected="a scheme with one, such as denoise",
                remedy="leave unsupervised out of the study's baselines for it",
            )
