"""Two studies in one report: what may be compared, what not and why, and what comes out."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_runs import finish, finish_all

from fewscan.experiments.spec import Evaluation
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.report.run_log import read_logs
from fewscan.harness.report.studies import Studies, one_study, two_studies
from fewscan.harness.report.write import write_report
from fewscan.harness.study import Study
from fewscan.storage.errors import StudyError
from fewscan.storage.slices import SliceStore
from fewscan.storage.splits import Split

GRID = {"label_counts": [1, "all"], "seeds": [0, 1], "targets": ["binary"]}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are tested elsewhere, and take a second each."""
    uri = "data:image/svg+xml;base64,"
    monkeypatch.setattr("fewscan.harness.report.write.as_data_uri", lambda figure: uri)
    monkeypatch.setattr(
        "fewscan.harness.report.write.save_figure", lambda figure, path: path.touch()
    )


@pytest.fixture
def first(tiny_study: Callable[..., Study], tiny_document: dict[str, Any], tmp_path: Path) -> Plan:
    finetune = tiny_document["finetune"] | GRID
    return make_plan(tiny_study(name="A", folder=str(tmp_path / "a"), finetune=finetune))


@pytest.fixture
def second(tiny_study: Callable[..., Study], tiny_document: dict[str, Any], tmp_path: Path) -> Plan:
    """As the first, with a wider network: other runs."""
    finetune = tiny_document["finetune"] | GRID
    network = {"width": 8, "depth": 2}
    folder = str(tmp_path / "b")
    return make_plan(tiny_study(name="B", folder=folder, finetune=finetune, network=network))


def differences(studies: Studies) -> list[dict[str, str]]:
    with (studies.report_folder / "differences.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_arms_of_the_same_name_are_compared(first: Plan, second: Plan) -> None:
    """The second study is 0.1 better in each patient."""
    finish_all(first)
    for run in second.runs:
        finish(second, run, bonus=0.1)
    both = two_studies(first, second)
    files = write_report(both)
    assert files[0] == first.folder.path / "report-against-B" / "figure.png"
    rows = [r for r in differences(both) if r["metric"] == "dice_at_chosen_threshold"]
    places = {(r["arm"], r["reference"], r["label_count"]) for r in rows}
    assert places == {
        (f"B/{arm}", f"A/{arm}", count) for arm in ("scratch", "denoise") for count in ("1", "18")
    }
    assert {round(float(r["difference"]), 9) for r in rows} == {0.1}
    text = (both.report_folder / "report.html").read_text()
    assert "B/denoise has a higher Dice at the chosen threshold than A/denoise" in text
    assert "network.width" in text


def test_what_differs_is_only_what_changes_numbers(first: Plan, second: Plan) -> None:
    assert two_studies(first, second).differences() == [("network.width", "4", "8")]


def test_missing_cells_of_one_study_are_missing(first: Plan, second: Plan) -> None:
    finish_all(first)
    finish_all(second, lambda run: run.place.labels == 1)
    both = two_studies(first, second)
    write_report(both)
    found = {(r["label_count"], r["difference"] != "") for r in differences(both)}
    assert found == {("1", True), ("18", False)}


def test_the_same_run_in_both_studies_is_no_difference(
    first: Plan, tiny_study: Callable[..., Study], tmp_path: Path
) -> None:
    twin = replace(first.study, name="B", folder=tmp_path / "b")
    second = make_plan(twin)
    finish_all(first)
    finish_all(second)
    both = two_studies(first, second)
    assert len(read_logs(both)) == 2 * len(first.runs)
    write_report(both)
    assert {float(row["difference"]) for row in differences(both)} == {0.0}
    assert "Their settings are the" in (both.report_folder / "report.html").read_text()


def test_studies_of_one_name_are_told_apart_by_their_folders(first: Plan, second: Plan) -> None:
    second = replace(second, study=replace(second.study, name="A"))
    assert two_studies(first, second).names == ["a", "b"]


def test_other_data_are_refused(first: Plan, second: Plan) -> None:
    other = SliceStore(second.store.folder, replace(second.store.manifest, subjects={}))
    with pytest.raises(StudyError, match=r"(?s)A and B cannot be compared: their data differ"):
        two_studies(first, replace(second, store=other))


def test_another_test_split_is_refused(first: Plan, second: Plan) -> None:
    split = second.store.split
    odd = replace(split, test=split.test[1:], validation=(*split.validation, split.test[0]))
    assert isinstance(odd, Split)
    vars(second.store)["split"] = odd
    with pytest.raises(StudyError, match="their test splits differ: 1 patients are in one alone"):
        two_studies(first, second)


def test_another_evaluation_is_refused(first: Plan, second: Plan) -> None:
    study = replace(second.study, evaluation=Evaluation(nsd_tolerance_mm=1.0))
    with pytest.raises(StudyError, match="they are scored differently"):
        two_studies(first, replace(second, study=study))


def test_another_protocol_is_refused(first: Plan, second: Plan) -> None:
    run = second.runs[0]
    folder = second.folder_of(run)
    second.record(run).write(folder)
    record = folder.read_spec()
    folder.create(record | {"spec": record["spec"] | {"protocol": 0}})
    with pytest.raises(StudyError, match=r"(?s)B has runs of protocol 0.*expected: protocol"):
        two_studies(first, second)


def test_a_study_is_not_compared_with_itself(first: Plan) -> None:
    with pytest.raises(StudyError, match="they are one folder"):
        two_studies(first, first)


def test_a_pair_without_results_says_what_to_do(first: Plan, second: Plan) -> None:
    with pytest.raises(StudyError, match="no run of the study has a test result yet"):
        write_report(two_studies(first, second))


def test_device_hours_do_not_depend_on_the_order(first: Plan, second: Plan) -> None:
    """Each study's own share of a GPU counts for its runs."""
    quarter = replace(second.study.resources.finetune, gpu_share=0.25)
    resources = replace(second.study.resources, finetune=quarter)
    second = replace(second, study=replace(second.study, resources=resources))
    for plan in (first, second):
        for run in plan.runs:
            finish(plan, run)
            events = plan.folder_of(run).events
            events.write_text(events.read_text().replace('"device": "cpu"', '"device": "H100"'))
    hours = [
        sum(log.device_hours for log in read_logs(studies))
        for studies in (
            one_study(first),
            one_study(second),
            two_studies(first, second),
            two_studies(second, first),
        )
    ]
    assert hours[1] < hours[0]
    assert hours[2] == pytest.approx(hours[0] + hours[1])
    assert hours[3] == pytest.approx(hours[2])


def test_a_name_cannot_lead_out_of_the_studys_folder(first: Plan, second: Plan) -> None:
    second = replace(second, study=replace(second.study, name="/../../x"))
    folder = two_studies(first, second).report_folder.resolve()
    assert folder.parent == first.folder.path.resolve()


def test_names_given_by_people_decide_nothing(
    tiny_study: Callable[..., Study], tiny_document: dict[str, Any]
) -> None:
    """A pre-training that is called like another study's scratch is no supervised line."""
    finetune = tiny_document["finetune"] | {"inits": ["scratch", "v2/scratch"]}
    pretrain = {"v2/scratch": tiny_document["pretrain"]["denoise"]}
    plan = make_plan(tiny_study(pretrain=pretrain, finetune=finetune))
    arms = {run.place.arm.key: run.place.arm for run in plan.grid}
    assert arms["scratch"].is_scratch
    assert not arms["v2/scratch"].is_scratch
    assert arms["v2/scratch"].title == "pre-trained: v2/scratch"
    assert one_study(plan).references() == {arms["v2/scratch"]: arms["scratch"]}
