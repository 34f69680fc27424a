"""Where the output is a file progress is a line a minute."""

import io

import pytest
from rich.console import Console

from fewscan.harness.minutes import MinuteLines


@pytest.mark.parametrize(("is_terminal", "expected"), [(False, 3), (True, 0)])
def test_a_line_a_minute_where_there_is_no_terminal(is_terminal: bool, expected: int) -> None:
    file = io.StringIO()
    now = 0.0
    lines = MinuteLines(Console(file=file, force_terminal=is_terminal), lambda: now)
    for second in range(200):
        now = float(second)
        lines.say(f"{second} of 200 [slices]")
    shown = file.getvalue().splitlines()
    assert len(shown) == expected
    assert [line.partition(" ")[2] for line in shown] == [
        f"{second} of 200 [slices]" for second in (60, 120, 180)[:expected]
    ]
