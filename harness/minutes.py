"""Progress where the output is a file: a line a minute, as a bar cannot be drawn there."""

import time
from collections.abc import Callable

from rich.console import Console

EVERY_S = 60.0


class MinuteLines:
    """Prints what it is told at most once a minute, and nothing in a terminal, which has a bar."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._last = clock()

    def say(self, text: str) -> None:
        """ "21:04 3/58 runs done, 2 running, 41 %"."""
        now = self._clock()
        if self._console.is_terminal or now - self._last < EVERY_S:
            return
        self._last = now
        at = time.strftime("%H:%M")
        self._console.print(f"{at} {text}", highlight=False, markup=False, soft_wrap=True)
