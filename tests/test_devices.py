"""How a rank's process is set up."""

import threading

import torch

from fewscan.experiments.devices import Devices

MANY = 1 << 20  # enough for torch to share the work among its threads


def test_every_thread_that_computes_takes_numbers_below_1e_38_as_zero() -> None:
    """A CPU is a hundred times as slow with each: gradients of a confident network have many."""
    found = []

    def rank() -> None:
        torch.set_flush_denormal(False)  # whatever an earlier test has left
        Devices(threads=2).set_up()
        found.append(int((torch.full((MANY,), 1e-30) * 1e-10).count_nonzero()))

    before = torch.get_num_threads()
    thread = threading.Thread(target=rank)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert found == [0]
