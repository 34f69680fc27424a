"""One table for programs and for people."""

from types import SimpleNamespace

import pytest

from fewscan.harness.arms import Arm
from fewscan.harness.report.bootstrap import Estimate
from fewscan.harness.report.tables import Column, Table, at, to_csv, to_latex

ROW = SimpleNamespace(
    arm=Arm("fine-tuning", "=A1<b>"), mean=Estimate(-0.25, None), comparison=None, words="a\nb"
)
TABLE = Table(
    [
        Column("arm", "arm", at("arm"), lambda arm: arm.title),
        Column("value", "value", at("mean.value"), "{:.1f}".format, "right"),
        Column("low", "", at("mean.low")),
        Column("", "words", at("words")),
        Column("seeds", "", at("comparison.seeds", missing=0)),
    ],
    [ROW],
)


def test_programs_get_keys_and_raw_values_and_no_formula() -> None:
    assert to_csv(TABLE) == "arm,value,low,seeds\n'=A1<b>,-0.25,,0\n"
    for text in ("=1", "+1", "-1", "@SUM"):
        assert to_csv(Table([Column("name", "", str)], [text])) == f"name\n'{text}\n"


def test_people_get_titles_and_escaped_text() -> None:
    columns, texts = TABLE.for_people()
    assert [column.title for column in columns] == ["arm", "value", "words"]
    assert texts == [["pre-trained: =A1<b>", "-0.2", "a\nb"]]
    assert "pre-trained: =A1$<$b$>$ & -0.2" in to_latex(TABLE, "50 %")
    assert r"\caption{50 \%}" in to_latex(TABLE, "50 %")


def test_columns_can_be_left_out() -> None:
    assert to_csv(TABLE.without("value", "seeds")) == "arm,low\n'=A1<b>,\n"


def test_a_misspelt_attribute_is_an_error_and_not_an_empty_field() -> None:
    with pytest.raises(AttributeError, match="meen"):
        to_csv(Table([Column("low", "", at("meen.low"))], [ROW]))
