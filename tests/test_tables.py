"""One table, three renderings."""

from fewscan.harness.arms import Arm
from fewscan.harness.report.tables import Column, Table, to_csv, to_html, to_latex

TABLE = Table(
    (
        Column("arm", "arm", lambda arm: arm.title),
        Column("value", "value", "{:.1f}".format, "right"),
        Column("low"),
        Column("", "words"),
    ),
    ((Arm("fine-tuning", "=A1<b>"), -0.25, None, "a\nb"),),
)


def test_programs_get_keys_and_raw_values_and_no_formula() -> None:
    assert to_csv(TABLE) == b"arm,value,low\n'=A1<b>,-0.25,\n"
    for text in ("=1", "+1", "-1", "@SUM"):
        assert to_csv(Table((Column("name"),), ((text,),))) == f"name\n'{text}\n".encode()


def test_people_get_titles_and_escaped_text() -> None:
    html = to_html(TABLE)
    assert '<th>arm</th><th class="n">value</th><th>words</th>' in html
    assert "pre-trained: =A1&lt;b&gt;" in html
    assert "a<small>b</small>" in html
    assert "pre-trained: =A1$<$b$>$ & -0.2" in to_latex(TABLE, "50 %")
    assert r"\caption{50 \%}" in to_latex(TABLE, "50 %")


def test_columns_and_rows_can_be_left_out() -> None:
    assert to_csv(TABLE.without("value", "words")) == b"arm,low\n'=A1<b>,\n"
    assert TABLE.having("low").rows == ()
    assert TABLE.having("value") == TABLE
