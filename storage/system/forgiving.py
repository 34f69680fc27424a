"""Output that ends nobody: a log on a full disk, a terminal that is gone."""

import sys
from contextlib import suppress
from typing import IO, Any


class Forgiving:
    """A text stream whose writes may be lost."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write if possible; the length of the text."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_output() -> None:
    """From now on what this process prints may be lost, and is no reason to end."""
    sys.stdout = Forgiving(sys.stdout)
    sys.stderr = Forgiving(sys.stderr)
