"""Which labels a number depends on, counted scan by scan."""

from collections.abc import Callable
from typing import Any

from fewscan.harness.label_budget import LabelBudget, label_budgets
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Study

TRAIN, VALIDATION = 18, 1


def budget_of(plan: Plan, name: str) -> LabelBudget:
    (run,) = [run for run in plan.runs if run.name == name]
    return label_budgets(plan)[run.run_id]


def counts(budget: LabelBudget) -> tuple[int, int, int, int]:
    return len(budget.training), len(budget.choice), len(budget.healthy), budget.in_all


def test_one_labelled_scan_is_not_one_label(tiny_study: Callable[..., Study]) -> None:
    plan = make_plan(tiny_study())
    scratch = budget_of(plan, "score binary · scratch · 1 scan · seed 0")
    assert counts(scratch) == (1, VALIDATION, 0, 1 + VALIDATION)
    assert scratch.words == "1 learnt from, 1 to choose: 2 in all"
    denoise = budget_of(plan, "score binary · denoise · 1 scan · seed 0")
    assert counts(denoise) == (1, VALIDATION, TRAIN + VALIDATION, TRAIN + VALIDATION)
    alone = budget_of(plan, "unsupervised · denoise")
    assert counts(alone) == (0, VALIDATION, TRAIN + VALIDATION, TRAIN + VALIDATION)


def test_all_slices_need_no_mask(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    wish = tiny_document["pretrain"]["denoise"] | {"slices": "all"}
    plan = make_plan(tiny_study(pretrain={"denoise": wish}))
    assert counts(budget_of(plan, "pre-train denoise")) == (0, 0, 0, 0)
    assert budget_of(plan, "pre-train denoise").words == "no label: 0 in all"


def test_what_chooses_is_counted(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    grid = tiny_document["finetune"] | {"label_counts": [1, 10], "inits": ["scratch"]}
    for selection, few, many in (
        ("validation", (1, VALIDATION, 0, 2), (10, VALIDATION, 0, 11)),
        ("within", (1, 0, 0, 1), (10, 2, 0, 10)),
        ("last", (1, 0, 0, 1), (10, 0, 0, 10)),
    ):
        plan = make_plan(tiny_study(finetune=grid | {"selection": selection}))
        assert counts(budget_of(plan, "score binary · scratch · 1 scan · seed 0")) == few
        assert counts(budget_of(plan, "score binary · scratch · 10 scans · seed 0")) == many


def test_the_scans_on_which_rates_are_tried_choose(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """Others than the cell's own scan, so that they come on top; and, where none of them is
    held out, so does the validation split."""
    name = "score binary · scratch · 1 scan · seed 0"
    for selection, validation in (("within", 0), ("last", VALIDATION)):
        tune = {"lr": [0.01, 0.02], "on": {"labels": 4, "seed": 100}}
        grid = tiny_document["finetune"] | {"selection": selection, "tune": tune}
        plan = make_plan(tiny_study(finetune=grid))
        subsets = [plan.store.labelled_subset(4, 100), plan.store.labelled_subset(1, 0)]
        in_all = len({*subsets[0], *subsets[1]}) + validation
        assert counts(budget_of(plan, name)) == (1, 4 + validation, 0, in_all)
