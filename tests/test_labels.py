"""What label values mean: lesions and organs, and pixels whose truth is not known."""

import numpy as np
import pytest
import torch

from fewscan.experiments.finetune import SegmentTask
from fewscan.experiments.losses import segmentation_loss, segmentation_sums
from fewscan.experiments.predictor import lesion_score
from fewscan.storage.errors import ScanError
from fewscan.storage.labels import IGNORED, LabelMeaning, require_classes

LABELS_HW = np.array([[0, 1, 2], [3, IGNORED, 0]], np.uint8)
CLASSES = ("kidney", "tumour", "cyst")


@pytest.mark.parametrize(
    ("lesion", "expected"),
    [((), [[0, 1, 1], [1, 0, 0]]), (("cyst", "tumour"), [[0, 0, 1], [1, 0, 0]])],
)
def test_lesions_are_the_classes_that_are_said_to_be(
    lesion: tuple[str, ...], expected: list[list[int]]
) -> None:
    meaning = LabelMeaning(CLASSES, lesion, has_ignored=True)
    assert meaning.is_lesion(LABELS_HW).astype(int).tolist() == expected
    assert meaning.is_lesion(torch.from_numpy(LABELS_HW)).int().tolist() == expected
    assert meaning.is_known(LABELS_HW).sum() == 5


@pytest.mark.parametrize(
    ("lesion", "expected"), [((), [0, 1, 1, 1]), (CLASSES, [0, 1, 1, 1]), (("cyst",), [0, 0, 0, 1])]
)
def test_nor_is_anything_else_where_every_truth_is_known(
    lesion: tuple[str, ...], expected: list[int]
) -> None:
    meaning = LabelMeaning(CLASSES, lesion)
    assert not meaning.has_ignored
    assert meaning.is_lesion(np.arange(4, dtype=np.uint8)).astype(int).tolist() == expected


def test_organs_are_no_part_of_the_lesion_score() -> None:
    maps_NKHW = torch.rand(2, 4, 3, 3).softmax(dim=1)
    of_all = lesion_score(maps_NKHW, (1, 2, 3))
    of_lesions = lesion_score(maps_NKHW, (2, 3))
    torch.testing.assert_close(of_all, lesion_score(maps_NKHW))
    torch.testing.assert_close(of_all - of_lesions, maps_NKHW[:, 1])


def test_ignored_pixels_do_not_count() -> None:
    """The loss is that of the other pixels, and has no gradient at them."""
    logits = torch.randn(1, 3, 1, 8, requires_grad=True)
    labels = torch.tensor([[[0, 1, 2, IGNORED, 1, IGNORED, 0, 2]]])
    known = (labels != IGNORED)[0, 0]
    loss = segmentation_loss(segmentation_sums(logits, labels, has_ignored=True))
    kept = segmentation_sums(logits[..., known], labels[..., known])
    torch.testing.assert_close(loss, segmentation_loss(kept))
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[..., ~known].any()
    assert logits.grad[..., known].all()
    nothing = segmentation_sums(logits.detach(), torch.full_like(labels, IGNORED), has_ignored=True)
    assert torch.isfinite(segmentation_loss(nothing))


def test_binary_targets_are_lesions_without_organs() -> None:
    task = SegmentTask.__new__(SegmentTask)
    labels = torch.from_numpy(LABELS_HW).long()[None]
    task.is_binary, task.meaning = True, LabelMeaning(CLASSES, ("tumour",), has_ignored=True)
    assert task._targets(labels).tolist() == [[[0, 0, 1], [0, IGNORED, 0]]]
    task.is_binary = False
    assert task._targets(labels).tolist() == labels.tolist()


def test_classes_and_names_are_checked() -> None:
    require_classes(CLASSES, ("cyst",), [("both", ("cyst", "tumour"))], "here")
    require_classes([str(k) for k in range(254)], (), (), "here")
    require_classes(["one"], (), (), "here")
    with pytest.raises(ScanError, match="0 classes"):
        require_classes((), (), (), "here")
    with pytest.raises(ScanError, match="255 classes"):
        require_classes([str(k) for k in range(255)], (), (), "here")
    with pytest.raises(ScanError, match="--lesion names wart"):
        require_classes(CLASSES, ("wart",), (), "here")
    with pytest.raises(ScanError, match="region both names wart"):
        require_classes(CLASSES, (), [("both", ("wart",))], "here")
