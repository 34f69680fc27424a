"""A table for terminals: a row for each label count, a column for each arm.

An axis of eleven label counts fits 80 columns so; arms for which there is no room beside each other
follow below.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.table import Table

from fewscan.harness.arms import Arm

HEADER = "scans"
GAP = 2
"""Between columns."""


@dataclass(frozen=True)
class ByCount:
    """Something of each cell of a grid."""

    arms: Sequence[Arm]
    counts: Sequence[int]
    cell: Callable[[Arm, int], str]
    """What stands at an arm and a label count, as rich's markup."""
    width: int
    """Of a column, in letters; longer names are broken."""

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """As many arms abreast as the console has room for."""
        abreast = max(1, (options.max_width - len(HEADER)) // (self.width + GAP))
        for first in range(0, len(self.arms), abreast):
            yield self._block(self.arms[first : first + abreast])
            yield ""

    def _block(self, arms: Sequence[Arm]) -> Table:
        table = plain_table()
        table.add_column(HEADER, justify="right")
        for arm in arms:
            table.add_column(escape(arm.key), width=self.width, overflow="fold")
        for count in self.counts:
            texts = [self.cell(arm, count) for arm in arms]
            if any(texts):
                table.add_row(str(count), *texts)
        return table


def plain_table(*, show_header: bool = True) -> Table:
    """Without lines, columns `GAP` apart."""
    return Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=show_header)
