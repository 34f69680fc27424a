"""What a run takes of its machine while it runs: cores, memory, GPU. Nothing of it is in a result.

Only what torch and Python know by themselves: there need be neither psutil nor NVIDIA's library.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from fewscan.experiments.devices import Devices
from fewscan.storage.runs import RunFolder

STATM = Path("/proc/self/statm")
MEGABYTE = 1e6


@contextmanager
def sampled(folder: RunFolder, devices: Devices) -> Iterator[None]:
    """Add a sample to the folder every `devices.sample_every_s` seconds of the block, if set.

    Samples are of this process: with several ranks, of the first one. A sample that cannot be
    written (a full disk) is lost; the run goes on.
    """
    if devices.sample_every_s is None or not devices.is_first:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_sample, args=(folder, devices, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sample(folder: RunFolder, devices: Devices, ended: threading.Event) -> None:
    wall_s, cpu_s = time.monotonic(), time.process_time()
    while not ended.wait(devices.sample_every_s):
        wall_before_s, cpu_before_s = wall_s, cpu_s
        wall_s, cpu_s = time.monotonic(), time.process_time()
        cores = (cpu_s - cpu_before_s) / (wall_s - wall_before_s)
        sample = {"cpu_cores_busy": round(cores, 3), **_memory(), **_gpu(devices.device)}
        with suppress(OSError):
            folder.append_usage(sample)


def _memory() -> dict[str, float]:
    """Resident memory, where the system says it (Linux)."""
    if not STATM.exists():
        return {}
    pages = int(STATM.read_text().split()[1])
    return {"memory_megabytes": round(pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE, 1)}


def _gpu(device: str) -> dict[str, float]:
    """The whole GPU, also if several runs share it."""
    if not device.startswith("cuda"):
        return {}
    free, total = torch.cuda.mem_get_info(device)
    sample = {"gpu_memory_megabytes": round((total - free) / MEGABYTE, 1)}
    known: dict[str, Callable[[], float]] = {
        "gpu_utilization_percentage": lambda: torch.cuda.utilization(device),
        "gpu_power_watts": lambda: torch.cuda.power_draw(device) / 1000,
    }
    for name, ask in known.items():
        with suppress(ModuleNotFoundError, RuntimeError):  # NVIDIA's library is not there, or mute
            sample[name] = float(ask())
    return sample
