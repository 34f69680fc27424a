"""What a run takes of its machine, sampled while it runs."""

import time
from pathlib import Path

from fewscan.experiments.devices import Devices
from fewscan.experiments.system_metrics import sampled
from fewscan.storage.runs import RunFolder


def test_a_busy_core_is_seen(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with sampled(folder, Devices(sample_every_s=0.05)):
        begun = time.process_time()
        while not any(sample["cpu_cores_busy"] > 0 for sample in folder.usage_samples()[1:]):
            sum(range(10_000))
            assert time.process_time() - begun < 60
    samples = folder.usage_samples()
    assert all(sample["memory_megabytes"] > 50 for sample in samples)  # torch alone takes more
    assert samples[0]["time"] < samples[1]["time"]


def test_no_samples_unless_asked_for_and_of_the_first_rank_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for devices in (Devices(), Devices(sample_every_s=0.01, rank=1, world_size=2)):
        with sampled(folder, devices):
            time.sleep(0.1)
    assert not folder.usage.exists()


def test_a_sample_that_cannot_be_written_is_lost_and_the_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "missing")
    with sampled(folder, Devices(sample_every_s=0.01)):
        time.sleep(0.1)
    assert folder.usage_samples() == []
