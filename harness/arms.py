"""What is compared, and where a run stands in the grid: values, never parsed out of a name."""

from dataclasses import dataclass, replace
from typing import Literal

from fewscan.experiments.settings import Transfer
from fewscan.experiments.spec import Target

ArmKind = Literal["pre-training", "fine-tuning", "unsupervised"]

SCRATCH = "scratch"
"""How people write the initial weights that are random; no pre-training may be called so."""


@dataclass(frozen=True)
class Arm:
    """One line of a figure: runs that differ in target, label count and seed alone."""

    kind: ArmKind
    """unsupervised: a pre-trained network's own anomaly score."""
    init: str | None = None
    """The pre-training or imported checkpoint that it starts from; None: random weights."""
    transfer: Transfer = "all"
    """Which weights it takes over."""
    study: str = ""
    """Set where two studies are compared."""

    @property
    def is_scratch(self) -> bool:
        """Whether it is a fine-tuning from random weights."""
        return self.kind == "fine-tuning" and self.init is None

    @property
    def key(self) -> str:
        """In tables for programs and in MLflow: "scratch", "denoise", "unsupervised: denoise"."""
        init = self.init or SCRATCH
        taken = init if self.transfer == "all" else f"{init} ({self.transfer})"
        name = {"unsupervised": f"unsupervised: {taken}", "pre-training": "pre-training"}
        words = name.get(self.kind, taken)
        return f"{self.study}/{words}" if self.study else words

    @property
    def title(self) -> str:
        """For people: "from scratch", "pre-trained: denoise"."""
        words = replace(self, study="").key
        if self.kind == "fine-tuning":
            words = "from scratch" if self.is_scratch else f"pre-trained: {words}"
        return f"{self.study}, {words}" if self.study else words

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

    @property
    def scans(self) -> str:
        """In words: "1 scan", "4 scans"."""
        return f"{self.labels} scan{'' if self.labels == 1 else 's'}"
