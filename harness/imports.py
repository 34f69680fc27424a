"""Checkpoints trained elsewhere, as finished runs of a study."""

import hashlib
from pathlib import Path

from fewscan.experiments.checkpoint import Weights, save_model
from fewscan.experiments.published_checkpoint import read_checkpoint
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.spec import Imported, run_id
from fewscan.experiments.unet import UNet
from fewscan.harness.arms import SCRATCH
from fewscan.harness.study import Study
from fewscan.storage.atomic import write_json
from fewscan.storage.conventions.brats import CHANNELS, CLASSES
from fewscan.storage.errors import StudyError
from fewscan.storage.runs import StudyFolder
from fewscan.storage.slice_format import SliceFormat

PUBLISHED_SLICES = SliceFormat(CHANNELS, CLASSES, 128, 2, "quantile", ("LPS",))
"""what the public code trains on: BraTS 2021"""


def import_published(file: Path, study: Study, name: str) -> str:
    """Make a run folder from a checkpoint of the public DenoisingAE code; returns the run's id.

    Raises `RunError` if the file is no such checkpoint, `StudyError` if the name is taken.
    """
    if name == SCRATCH or name in study.pretrain:
        raise StudyError(
            f"the name {name!r} is taken",
            where="--as",
            expected="a name that no pre-training of the study has, and not scratch",
            remedy="choose another name",
        )
    checkpoint = read_checkpoint(file)
    model = UNet(
        checkpoint.in_channels, checkpoint.out_channels, checkpoint.width, checkpoint.depth
    )
    spec = Imported(sha256_of(checkpoint.state_dict))
    studies = StudyFolder(study.folder)
    folder = studies.run(run_id(spec))
    RunRecord(spec, study.name, f"imported {name}", PUBLISHED_SLICES).write(folder)
    save_model(folder.model, model, checkpoint.state_dict)
    Result(spec.kind, source=file.name).write(folder)
    write_json(studies.imports, studies.read_imports() | {name: folder.run_id})
    return folder.run_id


def sha256_of(weights: Weights) -> str:
    """Of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
