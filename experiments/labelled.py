"""Which labelled scans a fine-tuning learns from, and which of them choose its model."""

from fewscan.experiments.spec import Finetune
from fewscan.storage.slices import SliceStore


def labelled_scans(spec: Finetune, store: SliceStore) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labelled scans to learn from, and those held out to choose the model and its threshold.

    Of a network of several folds the fold of its number is held out. None are held out where the
    validation split chooses, and where nothing does: too few scans, or the last model by choice.
    Raises `StudyError` if there are fewer labelled patients than folds.
    """
    labelled = store.labelled_subset(spec.label_count, spec.seed)
    if spec.folds:
        held_out = store.folds(labelled, spec.folds)[spec.member]
        return tuple(id_ for id_ in labelled if id_ not in held_out), held_out
    return store.hold_out(labelled) if spec.selection == "within" else (labelled, ())
