"""Every label that a number depends on: learnt from, choosing, telling which slices are healthy.

"One labelled scan" is what a network has learnt from. Where 62 labelled validation scans choose its
model and its threshold, and the masks of 938 scans told its pre-training which slices are healthy,
its number depends on all of them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from fewscan.experiments.labelled import labelled_scans
from fewscan.experiments.spec import Finetune, Pretrain, RunSpec, Score
from fewscan.harness.concerns import mask_told
from fewscan.harness.plan import Plan, PlannedRun
from fewscan.storage.slices import SliceStore

Scans = frozenset[tuple[str, str]]
"""(fingerprint of a store, scan)"""


@dataclass(frozen=True)
class LabelBudget:
    """The scans whose labels a run depends on; one scan may be in several of these."""

    training: Scans = field(default=frozenset())
    """Learnt from, or held out of them to choose."""
    choice: Scans = field(default=frozenset())
    """That chose a model, a threshold or a learning rate."""
    healthy: Scans = field(default=frozenset())
    """Whose masks told which slices are healthy."""
    is_known: bool = True
    """False for weights trained elsewhere, of which nobody has counted the labels."""

    @property
    def in_all(self) -> int:
        """Different scans."""
        return len(self.training | self.choice | self.healthy)

    def __or__(self, other: "LabelBudget") -> "LabelBudget":
        return LabelBudget(
            self.training | other.training,
            self.choice | other.choice,
            self.healthy | other.healthy,
            self.is_known and other.is_known,
        )

    @property
    def words(self) -> str:
        """ "4 learnt from, 62 to choose, 938 masks for healthy slices: 938 in all"."""
        parts = [
            f"{len(scans)} {what}"
            for scans, what in (
                (self.training, "learnt from"),
                (self.choice, "to choose"),
                (self.healthy, "masks for healthy slices"),
            )
            if scans
        ]
        elsewhere = "" if self.is_known else ", and those of weights trained elsewhere"
        return f"{', '.join(parts) or 'no label'}{elsewhere}: {self.in_all} in all"


def label_budgets(plan: Plan) -> dict[str, LabelBudget]:
    """Run id → what it depends on, its parents' labels among it."""
    found: dict[str, LabelBudget] = {}
    runs = {run.run_id: run for run in plan.runs}
    for run in plan.runs:  # parents first
        found[run.run_id] = _budget(run, run.store or plan.store, found, runs)
    return found


def _budget(
    run: PlannedRun,
    store: SliceStore,
    known: Mapping[str, LabelBudget],
    runs: Mapping[str, PlannedRun],
) -> LabelBudget:
    spec = run.spec
    unknown = LabelBudget(is_known=False)
    match spec:
        case Pretrain():
            own = LabelBudget(healthy=_masks(store, spec))
            starts, trials = [spec.init] if spec.init else [], spec.rate_from
        case Finetune():
            learnt, held_out = labelled_scans(spec, store)
            chooses = _choosing(spec, store, held_out)
            own = LabelBudget(_of(store, (*learnt, *held_out)), _of(store, chooses))
            starts, trials = [spec.init] if spec.init else [], spec.rate_from
        case Score():
            trained = [runs[it].spec for it in spec.parents if it in runs]
            own = LabelBudget(choice=_threshold(trained, store))
            starts, trials = list(spec.parents), ()
        case _:
            return unknown
    own = reduce(LabelBudget.__or__, (known.get(it, unknown) for it in starts), own)
    tried = reduce(LabelBudget.__or__, (known[it] for it in trials), LabelBudget())
    choosing = tried.training | tried.choice  # the scans of the trials choose a rate
    return own | replace(tried, training=frozenset(), choice=choosing)


def _choosing(spec: Finetune, store: SliceStore, held_out: Sequence[str]) -> Sequence[str]:
    """The scans that choose among its models, or among trials."""
    by_validation = spec.selection == "validation" or (spec.is_trial and not held_out)
    return store.split.validation if by_validation else held_out


def _threshold(trained: Sequence[RunSpec], store: SliceStore) -> Scans:
    """The validation split, unless what chose the models, if anything, chooses the threshold."""
    if trained and all(isinstance(it, Finetune) and it.selection != "validation" for it in trained):
        return frozenset()
    return _of(store, store.split.validation)


def _masks(store: SliceStore, spec: Pretrain) -> Scans:
    if spec.slices != "healthy":
        return frozenset()
    learnt, validated = store.pretraining("healthy")
    return _of(store, [i for i in (*learnt, *validated) if mask_told(store, i)])


def _of(store: SliceStore, ids: Collection[str]) -> Scans:
    return frozenset((store.fingerprint, id_) for id_ in ids)
