"""What is compared, and where a run stands in the grid: values, never parsed out of a name."""

from dataclasses import dataclass, replace
from typing import Literal

from fewscan.experiments.settings import FROM_SCRATCH, Schedule, Transfer
from fewscan.experiments.spec import Target
from fewscan.storage.splits import Fold

ArmKind = Literal["pre-training", "fine-tuning", "unsupervised", "tuning", "partner"]

SCRATCH = "scratch"
"""How people write the initial weights that are random; no pre-training may be called so."""


@dataclass(frozen=True)
class Arm:
    """One line of a figure: runs that differ in target, label count and seed alone."""

    kind: ArmKind
    """unsupervised: a pre-trained network's own anomaly score, or one of the images alone. tuning:
    trials of a learning rate, which are not scored. partner: fine-tunings of another study, for the
    ensembles with them."""
    init: str | None = None
    """The pre-training or imported checkpoint that it starts from; None: random weights. Of an
    anomaly score of the images alone its name, such as "channel flair"."""
    transfer: Transfer = "all"
    """Which weights it takes over."""
    schedule: Schedule | Literal["long"] = "plain"
    """How it is fine-tuned, where the arms of a study differ in that. long: more iterations than
    the grid has."""
    level: int = 0
    """Of a probe, whose features its head sees: see `Finetune.probe_level`."""
    lr_scale: float = 1.0
    """The rate of what is transferred, in parts of the others', where arms differ in that."""
    oversample_foreground: float = 0.0
    """See `Finetune.oversample_foreground`; where arms differ in that."""
    members: int = 1
    """Fine-tunings on the same labelled scans whose probabilities are averaged."""
    folds: int = 0
    """Fine-tunings whose probabilities are averaged, each on the labelled scans without one of so
    many parts. 0: no such."""
    partner: str = ""
    """The study whose networks are averaged with this one's, cell by cell; empty: none."""
    study: str = ""
    """Set where two studies are compared."""

    @property
    def is_scratch(self) -> bool:
        """Whether it is a fine-tuning of the grid from random weights, all of which learn; or an
        ensemble of such."""
        return self.kind == "fine-tuning" and self.init is None and self.schedule in FROM_SCRATCH

    @property
    def is_ensemble(self) -> bool:
        """Whether several networks are averaged."""
        return self.networks > 1

    @property
    def networks(self) -> int:
        """How many fine-tunings of a cell are scored together."""
        return (self.folds or self.members) + bool(self.partner)

    @property
    def single(self) -> "Arm":
        """The same with one network."""
        return replace(self, members=1, folds=0, partner="")

    @property
    def is_compared(self) -> bool:
        """Whether it is tested against another; a baseline is a line to look at."""
        return self.is_ranked and (self.init is not None or self.is_ensemble)

    @property
    def is_ranked(self) -> bool:
        """Whether it is an arm of the grid, and no baseline and no probe."""
        return self.kind == "fine-tuning" and self.schedule not in ("long", "probe")

    @property
    def scratch(self) -> "Arm":
        """Random weights fine-tuned in the same way, as far as there is such a way, as many of
        them: the fair form of a comparison. A frozen encoder, and a rate of what is transferred,
        they have not."""
        schedule = self.schedule if self.schedule in FROM_SCRATCH else "plain"
        return Arm(
            self.kind,
            schedule=schedule,
            oversample_foreground=self.oversample_foreground,
            members=self.members,
            folds=self.folds,
            partner=self.partner,
        )

    @property
    def key(self) -> str:
        """In tables for programs and in MLflow: "scratch", "denoise", "unsupervised: denoise"."""
        init = self.init or SCRATCH
        how: list[str] = [] if self.transfer == "all" else [self.transfer]
        if self.schedule != "plain":
            how.append(f"probe {self.level}" if self.level else self.schedule)
        if self.lr_scale != 1:
            how.append(f"lr × {self.lr_scale:g}")
        if self.oversample_foreground:
            how.append(f"oversampled {self.oversample_foreground:.2g}")
        if self.is_ensemble:
            many = f"{self.folds} folds" if self.folds else f"{self.members} members"
            how.append(f"with {self.partner}" if self.partner else many)
        taken = f"{init} ({', '.join(how)})" if how else init
        name = {
            "unsupervised": f"unsupervised: {taken}",
            "pre-training": "pre-training",
            "tuning": f"tuning: {taken}",
            "partner": f"partner: {taken}",
        }
        words = name.get(self.kind, taken)
        return f"{self.study}/{words}" if self.study else words

    @property
    def title(self) -> str:
        """For people: "from scratch", "pre-trained: denoise"."""
        words = replace(self, study="").key
        if self.kind == "fine-tuning":
            words = self._title_of_finetuning(words)
        return f"{self.study}, {words}" if self.study else words

    def _title_of_finetuning(self, key: str) -> str:
        where = f" of level {self.level}" if self.level else ""
        if self.schedule == "probe":
            features = "random" if self.init is None else f"{self.init}'s"
            return f"{features} features{where}, frozen"
        if self.schedule == "long":
            return "from scratch, long schedule"
        if self.init is None:
            return f"from {key}"
        return f"pre-trained: {key}"

    def of_study(self, study: str) -> "Arm":
        """The same arm, as that of a study which is compared with another one."""
        return replace(self, study=study)


@dataclass(frozen=True)
class Place:
    """Where a run stands in a study's grid."""

    arm: Arm
    target: Target | None
    """None: a pre-training, which learns no target."""
    labels: int | None
    """Labelled scans that it trained on; None: none."""
    seed: int
    pretraining: int | None = None
    """Seed of the pre-training that it started from; None: of none of this study."""
    fold: Fold | None = None
    """Of a cross-validation: in which it is tested."""

    @property
    def in_all_folds(self) -> "Place":
        """The same, whoever is tested."""
        return replace(self, fold=None)

    @property
    def is_cell(self) -> bool:
        """Whether it is one of the grid: of an arm and a label count, scored."""
        return self.arm.kind == "fine-tuning"

    @property
    def scans(self) -> str:
        """In words: "1 scan", "4 scans"."""
        return f"{self.labels} scan{'' if self.labels == 1 else 's'}"

    @property
    def cell(self) -> str:
        """In the names of its runs: "binary · scratch · 4 scans · seed 0"."""
        return f"{self.target} · {self.arm.key} · {self.scans} · seed {self.seed}"
