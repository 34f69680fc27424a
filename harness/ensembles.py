"""Ensembles of fine-tunings: which a study has beside each arm, and which networks they are of.

All networks of a cell learn within its label budget. Members learn from the same labelled scans,
with other draws (`Finetune.member`); member 0 is the network that is there without an ensemble, so
that a finished study which asks for members trains the others alone. Folds learn from the labelled
scans without one part each, which chooses their model (`Finetune.folds`). All start from the
pre-training that the cell starts from. To average the networks of several seeds would use the
labels of all of them.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

from fewscan.experiments.spec import Finetune
from fewscan.harness.arms import Arm
from fewscan.harness.study import Finetuning
from fewscan.storage.errors import StudyError
from fewscan.storage.slices import SliceStore


def ensembles_of(
    arm: Arm, study: Finetuning, counts: list[int], dividable_counts: list[int]
) -> dict[Arm, list[int]]:
    """The ensembles of an arm, with the label counts that they have; a probe has none."""
    found: dict[Arm, list[int]] = {}
    if arm.is_ranked and study.members > 1:
        found[replace(arm, members=study.members)] = counts
    if arm.is_ranked and study.folds:
        found[replace(arm, folds=study.folds)] = dividable_counts
    return found


def dividable(counts: list[int], study: Finetuning, stores: Collection[SliceStore]) -> list[int]:
    """The label counts whose labelled scans make the study's folds: a patient for each, or more.

    A count is left out if any seed has too few patients, so that a cell has all of its seeds; of a
    cross-validation, in any fold.
    Raises `StudyError` if none is left.
    """
    if not study.folds:
        return []
    fewest = {
        count: min(
            len({store.patient(i) for i in store.labelled_subset(count, seed)})
            for seed in study.seeds
            for store in stores
        )
        for count in counts
    }
    found = [count for count in counts if fewest[count] >= study.folds]
    if not found:
        raise StudyError(
            f"{study.folds} folds, and no label count has labelled scans of {study.folds} patients",
            where="finetune.folds",
            expected=f"a label count of {study.folds} or more; there are "
            + ", ".join(map(str, counts)),
            remedy="ask for fewer folds, add a label count, or use finetune.members, which divide "
            "nothing",
        )
    return found


def not_divided(counts: list[int], found: list[int], study: Finetuning) -> Iterator[str]:
    """A sentence on the label counts that have no folds, without a full stop."""
    if study.folds and len(found) < len(counts):
        few = ", ".join(str(count) for count in counts if count not in found)
        yield (
            f"finetune.folds: none of {few} labelled scans: those of some seed are of fewer than "
            f"{study.folds} patients, and a fold has a whole patient at least"
        )


def networks_of(arm: Arm, single: Finetune) -> Iterator[Finetune]:
    """The fine-tunings that a cell of this arm averages, from that of its single network."""
    for member in range(arm.networks):
        if arm.folds:
            yield replace(single, member=member, folds=arm.folds, selection="within")
        else:
            yield replace(single, member=member)


def which_network(spec: Finetune) -> str:
    """In the name of a run: " · member 1", " · fold 0"; nothing for that of a single network."""
    if spec.folds:
        return f" · fold {spec.member}"
    return f" · member {spec.member}" if spec.member else ""
