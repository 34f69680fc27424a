"""The slice store of a study as an MLflow dataset: what the runs saw, with its fingerprint."""

import json

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from fewscan.storage.slices import SliceStore

DIGEST_LENGTH = 12
"""Of the fingerprint's 64 characters: what a column of the UI has room for; MLflow allows 36."""


def dataset_of(store: SliceStore) -> DatasetInput:
    """The whole fingerprint, and what is in the store, stand in the dataset's profile."""
    split = store.split
    profile = {
        "fingerprint": store.fingerprint,
        "subjects": {
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "channels": list(store.channels),
        "classes": list(store.classes),
        "slice_size": store.size,
        "store_protocol": store.protocol,
    }
    dataset = Dataset(
        name=store.path.name,
        digest=store.fingerprint[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": str(store.path)}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "train, validate, test")])
