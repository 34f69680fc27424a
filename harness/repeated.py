"""Something that is done again and again beside the main thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], None], every_s: float) -> Iterator[None]:
    """Do it every so many seconds, in a thread that ends with the block."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            action()

    thread = threading.Thread(target=repeat, name=action.__name__, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
