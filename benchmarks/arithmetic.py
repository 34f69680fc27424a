"""How much arithmetic the large studies are: counted from their files, for the performance page.

Nothing is measured here. The store of BraTS 2021 is stood in for by a manifest of 1251 subjects.
"""

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from fewscan.experiments.cost import flops_by_part
from fewscan.harness.planner import make_plan
from fewscan.harness.study_file import load_study
from fewscan.storage.conventions.brats import CHANNELS, CLASSES
from fewscan.storage.manifest import STORE_PROTOCOL, Manifest, Parameters, StoreFolder, Subject

ROOT = Path(__file__).parents[1]
STUDIES = ("paper", "schemes")
PAGE = ROOT / "docs" / "performance.md"
SUBJECTS = 1251
SLICES_A_SCAN = 143
"""the mean of ten phantoms; BraTS's own was not measured here"""
_TITLES = {
    "pretrain": "pre-training",
    "finetune": "fine-tuning",
    "score": "scoring",
}


def table() -> str:
    """PFLOP (10¹⁵ floating-point operations) of each kind of run of each study, in Markdown."""
    return "\n".join(f"`experiments/{name}.yaml`:\n\n{_table(name)}" for name in STUDIES)


def _table(name: str) -> str:
    kinds = _pflop_by_kind(ROOT / "experiments" / f"{name}.yaml")
    total = sum(float(np.sum(parts)) for parts in kinds.values())
    lines = [
        "| kind | runs | training | validation | scoring | PFLOP a run | of the study |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, parts in kinds.items():
        means = np.mean(parts, axis=0)
        numbers = [f"{value:.3g}" for value in (*means, means.sum())]
        share = f"{np.sum(parts) / total:.1%}"
        lines.append("| " + " | ".join([title, f"{len(parts)}", *numbers, share]) + " |")
    return "\n".join([*lines, "", f"Together: {total:,.0f} PFLOP."]) + "\n"


def _pflop_by_kind(study: Path) -> dict[str, list[np.ndarray]]:
    """Title → for each run its PFLOP for training, validation and scoring."""
    parts = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        store = _stand_in(Path(place) / "brats2021.zarr")
        plan = make_plan(load_study(study, [f"store={store}", f"folder={place}/study"]))
        for run in plan.runs:
            flops = flops_by_part(run.spec, plan.network, plan.store)
            parts[_TITLES[run.spec.kind]].append(np.array(flops) / 1e15)
    return dict(parts)


def _stand_in(path: Path) -> Path:
    """A store that has a manifest and no slices: enough to plan on."""
    parameters = Parameters(STORE_PROTOCOL, 128, 155, CHANNELS, CLASSES)
    subjects = {s.id: s for s in map(_subject, range(SUBJECTS))}
    path.mkdir()
    Manifest(parameters, subjects, {}).write(StoreFolder.at(path).manifest)
    return path


def _subject(row: int) -> Subject:
    pixels_NK = np.ones((SLICES_A_SCAN, len(CLASSES)), np.int32)
    pixels_NK[: SLICES_A_SCAN // 2] = 0  # about as many are healthy
    return Subject(
        id=f"BraTS2021_{row:05d}",
        row=row,
        first=0,
        last=SLICES_A_SCAN - 1,
        lesion_pixels_NK=pixels_NK,
        shape_XYZ=(240, 240, 155),
        affine=tuple(map(tuple, np.eye(4).tolist())),
        spacing_mm=(1.0, 1.0, 1.0),
        quantiles=(1.0,) * len(CHANNELS),
        naming="BraTS 2021",
        label_values=(1, 2, 4),
        files=(),
        lesion_mm3=(1.0,) * len(CLASSES),
        sha256="",
    )
