"""Networks trained elsewhere, by the public code or another study, as finished runs of a study."""

import hashlib
from pathlib import Path

from fewscan.experiments.checkpoint import Weights, load_around, load_model, save_model
from fewscan.experiments.published_checkpoint import read_checkpoint
from fewscan.experiments.results import Result, RunRecord
from fewscan.experiments.schemes.scheme import Scheme
from fewscan.experiments.spec import Finetune, Imported, Pretrain, Score, run_id
from fewscan.experiments.unet import UNet
from fewscan.harness.arms import SCRATCH
from fewscan.harness.study import Study
from fewscan.harness.trained import require_finished
from fewscan.storage.atomic import write_json
from fewscan.storage.conventions.brats import CHANNELS, CLASSES
from fewscan.storage.errors import RunError, StudyError
from fewscan.storage.runs import RunFolder, StudyFolder
from fewscan.storage.slice_format import SliceFormat

PUBLISHED_SLICES = SliceFormat(CHANNELS, CLASSES, 128, 2, "quantile", ("LPS",))
"""what the public code trains on: BraTS 2021"""


def import_published(file: Path, study: Study, name: str) -> str:
    """Make a run folder from a checkpoint of the public DenoisingAE code; returns the run's id.

    Raises `RunError` if the file is no such checkpoint, `StudyError` if the name is taken.
    """
    _require_free(name, study)
    checkpoint = read_checkpoint(file)
    model = UNet(
        checkpoint.in_channels, checkpoint.out_channels, checkpoint.width, checkpoint.depth
    )
    spec = Imported(sha256_of(checkpoint.state_dict))
    return _add(study, name, spec, model, checkpoint.state_dict, PUBLISHED_SLICES, file.name)


def import_run(path: Path, study: Study, name: str) -> str:
    """Make a run folder from a finished training of another study of ours; returns the run's id.

    Raises `RunError` if `path` is no folder of one, `StudyError` if the name is taken.
    """
    _require_free(name, study)
    other = RunFolder(path.absolute())
    require_finished(other)
    record = RunRecord.read(other)
    match record.spec:
        case Pretrain(scheme=scheme) | Imported(scheme=scheme):
            taught: Scheme | None = scheme
        case Finetune():
            taught = None
        case Score():
            raise RunError(
                "a score has no network",
                where=path,
                expected="a pre-training or a fine-tuning",
                remedy=f"its network is that of run {' or '.join(record.spec.parents)} beside it",
            )
    model = load_model(other.model)
    weights, around = model.state_dict(), load_around(other.model)
    spec = Imported(sha256_of(weights | around), taught)
    source = f"{record.study}: {record.name}"
    return _add(study, name, spec, model, weights, record.slices, source, around)


def _add(
    study: Study,
    name: str,
    spec: Imported,
    model: UNet,
    weights: Weights,
    slices: SliceFormat,
    source: str,
    around: Weights | None = None,
) -> str:
    studies = StudyFolder(study.folder)
    folder = studies.run(run_id(spec))
    RunRecord(spec, study.name, f"imported {name}", slices).write(folder)
    save_model(folder.model, model, weights, around)
    Result(spec.kind, source=source).write(folder)
    write_json(studies.imports, studies.read_imports() | {name: folder.run_id})
    return folder.run_id


def _require_free(name: str, study: Study) -> None:
    if name == SCRATCH or name in study.pretrain:
        raise StudyError(
            f"the name {name!r} is taken",
            where="--as",
            expected="a name that no pre-training of the study has, and not scratch",
            remedy="choose another name",
        )


def sha256_of(weights: Weights) -> str:
    """Of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
