"""The networks of a study: what a person asks for, on the stores that it is asked for."""

import os
from dataclasses import replace

import numpy as np

from fewscan.experiments.cost import training_bytes
from fewscan.experiments.spec import Finetune, Network, Pretrain
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError
from fewscan.storage.slices import SliceStore


def network_of(study: Study, store: SliceStore) -> Network:
    """The network that all fine-tunings share; in 3D patch and flat levels follow the spacing.

    Raises `StudyError` if a patch does not fit the slices or cannot be halved often enough.
    """
    try:
        return study.network.on(median_spacing_mm(store), store.size)
    except ValueError as error:
        raise StudyError(
            str(error),
            where="network",
            expected=f"patches that fit slices of {store.size} × {store.size} pixels and the depth "
            "of the network",
            remedy="change network.patch or network.depth",
        ) from error


def pretraining_network(study: Study, name: str, store: SliceStore) -> Network:
    """Of a pre-training: that of the study on its store, or its like for slices."""
    own = study.pretrain[name].dims
    network = network_of(study, store)
    if own is None or own == network.dims:
        return network
    if own == 3:
        raise StudyError(
            "a pre-training of 3D in a study of 2D networks",
            where=f"pretrain.{name}.dims",
            expected="network.dims 3",
            remedy="leave it out, or make a study of 3D networks",
        )
    return replace(network, dims=2, patch=None, flat_levels=0)


def most_levels(size: int) -> int:
    """Of a network on slices of size² pixels: reflected borders need two pixels in the coarsest."""
    levels = 1
    while size % 2**levels == 0 and size // 2**levels >= 2:
        levels += 1
    return levels


def median_spacing_mm(store: SliceStore) -> tuple[float, float, float]:
    """Between slices, rows and columns of the store's scans, axis by axis the median."""
    spacings_mm = [store.spacing_mm_ZHW(subject) for subject in store.subjects]
    through, rows, columns = np.median(spacings_mm, axis=0).tolist()
    return through, rows, columns


def memory_bytes(study: Study) -> tuple[float, str] | None:
    """What a device of the study has, and how that is known; None if nothing says it."""
    resources = study.resources
    if resources.memory_gb is not None:
        return resources.memory_gb * 1e9, "resources.memory_gb"
    if resources.device == "cpu" and study.slurm is None:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return float(pages), "memory of this machine"
    return None


def needed_bytes(study: Study, spec: Pretrain | Finetune, store: SliceStore) -> float:
    """What a training takes of the memory of each of its devices, roughly."""
    devices, on_cpu = study.resources.share_of(spec.kind).devices, study.resources.device == "cpu"
    return training_bytes(spec, len(store.channels), store.size, devices, on_cpu)


def require_room(study: Study, spec: Pretrain | Finetune, store: SliceStore, name: str) -> None:
    """Raise `StudyError` if a training keeps more for its backward pass than a device has."""
    limit = memory_bytes(study)
    if limit is None:
        return
    has, how = limit
    share = study.resources.share_of(spec.kind)
    needs = needed_bytes(study, spec, store)
    if needs > has * share.gpu_share:
        batch, patch = spec.training.batch_size, spec.network.patch
        what = "slices" if patch is None else f"patches of {' × '.join(map(str, patch))}"
        raise StudyError(
            f"{name} needs about {needs / 1e9:.1f} GB a device, for {batch} {what} on "
            f"{share.devices}",
            where=f"{spec.kind}.training.batch_size",
            expected=f"at most {has * share.gpu_share / 1e9:.1f} GB ({how})",
            remedy="take a smaller batch or patch, or a network of smaller width",
        )
