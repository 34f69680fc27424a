"""A tiny task in the layout of the Medical Segmentation Decathlon: channels along a fourth axis."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fake_scans import AFFINE, fake_images

from fewscan.storage.nifti import write_nifti

DESCRIPTION: dict[str, Any] = {
    "name": "BRATS",
    "tensorImageSize": "4D",
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {
        "0": "background",
        "1": "edema",
        "2": "non-enhancing tumor",
        "3": "enhancing tumour",
    },
}


def write_task(folder: Path, ids: Sequence[str], test: Sequence[str] = (), **changes: Any) -> None:
    """Write labelled scans, those of `test` without a label, and what a Mac's tar leaves."""
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed, id_ in enumerate((*ids, *test)):
        channels, labels = fake_images(seed)
        place = folder / ("imagesTs" if id_ in test else "imagesTr")
        write_nifti(place / f"{id_}.nii.gz", np.stack(channels, axis=3), AFFINE)
        (place / f"._{id_}.nii.gz").write_bytes(b"left by a Mac")
        if id_ not in test:
            write_nifti(folder / "labelsTr" / f"{id_}.nii.gz", labels, AFFINE)
    training = [
        {"image": f"./imagesTr/{id_}.nii.gz", "label": f"./labelsTr/{id_}.nii.gz"} for id_ in ids
    ]
    description = {
        **DESCRIPTION,
        "numTraining": len(ids),
        "training": training,
        "test": [f"./imagesTs/{id_}.nii.gz" for id_ in test],
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
