"""Wherever slices are kept, a run has the same bits; shared ones are decoded once, and vanish."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewscan.experiments.data import SliceData
from fewscan.experiments.devices import Devices, Residency
from fewscan.experiments.residency import ChosenSlices, keep
from fewscan.experiments.results import RunRecord
from fewscan.experiments.schemes import Denoise
from fewscan.experiments.schemes.denoise import Noise
from fewscan.experiments.spec import Finetune, Network, Pretrain, RunSpec, Training, run_id
from fewscan.experiments.stages import run_stage
from fewscan.storage import shared_slices
from fewscan.storage.errors import DeviceError
from fewscan.storage.labels import PretrainSlices
from fewscan.storage.runs import RunFolder
from fewscan.storage.shared_slices import SharedSlices
from fewscan.storage.slice_format import SliceFormat
from fewscan.storage.slices import SliceStore
from fewscan.storage.system import node_folder
from fewscan.storage.system.memory import available_bytes

KINDS: tuple[Residency, ...] = ("device", "shared", "stream", "auto")
TRAINING = Training(iterations=3, validate_every=2, batch_size=4, lr=1e-2, validation_slices=5)


@pytest.fixture
def store(store_path: Path) -> SliceStore:
    return SliceStore.open(store_path)


@pytest.fixture
def place(tmp_path: Path) -> Devices:
    return Devices(node_folders=(tmp_path / "node",))


def specs(store: SliceStore) -> list[RunSpec]:
    network, data = Network(width=4, depth=2), store.fingerprint
    return [
        Pretrain(data, network, TRAINING, Denoise(Noise(resolution=4))),
        Finetune(data, network, "multiclass", 2, TRAINING, seed=0),
    ]


@pytest.mark.parametrize("kind", [0, 1], ids=["pretrain", "finetune"])
def test_the_same_bits_wherever_the_slices_are(
    kind: int, store: SliceStore, place: Devices, tmp_path: Path
) -> None:
    spec = specs(store)[kind]
    outcomes = []
    for residency in KINDS:
        folder = RunFolder(tmp_path / residency / run_id(spec))
        format_ = SliceFormat.of_store(store)
        RunRecord(spec, "study", "name", format_, store.path).write(folder)
        run_stage(folder, replace(place, residency=residency))
        started = folder.committed_events()[0]
        expected = {"device": "device", "stream": "stream"}.get(residency, "shared")
        assert started.attempt["slices"].startswith(f"{expected}: ")
        weights = torch.load(folder.model, weights_only=True)["weights"]
        outcomes.append((folder.read_result(), weights))
    for result, weights in outcomes[1:]:
        assert result == outcomes[0][0]
        assert all(torch.equal(weights[k], outcomes[0][1][k]) for k in weights)


@pytest.mark.parametrize("residency", KINDS)
@pytest.mark.parametrize("which", ["all", "healthy"])
@pytest.mark.parametrize("at_most", [None, 7])
def test_batches_are_what_the_store_holds(
    store: SliceStore,
    place: Devices,
    residency: Residency,
    which: PretrainSlices,
    at_most: int | None,
) -> None:
    ids = store.split.train[::-5]
    slices = store.read(ids, which)
    kept = np.arange(len(slices.images_NCHW))
    if at_most is not None:
        kept = np.arange(at_most) * len(kept) // at_most
    devices = replace(place, residency=residency)
    data = SliceData.load(store, ids, devices, torch.float32, which, at_most)
    assert len(data) == len(kept)
    indices = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    for following in (indices[:3], indices[3:6], None):  # the first is fetched ahead
        batch = data.batch(indices[:3], following)
        where = kept[indices[:3].numpy()]
        assert torch.equal(batch.images_NCHW, torch.from_numpy(slices.images_NCHW[where]).float())
        assert torch.equal(batch.labels_NHW, torch.from_numpy(slices.labels_NHW[where]).long())
    batches = list(data.validation_batches(devices))
    images = [batch.images_NCHW for _, _, batch in batches]
    assert torch.equal(torch.cat(images), torch.from_numpy(slices.images_NCHW[kept]).float())
    assert [number for number, _, _ in batches] == list(range(len(batches)))
    assert torch.cat([which for _, which, _ in batches]).tolist() == list(range(len(data)))


@pytest.mark.parametrize("which", ["all", "healthy"])
def test_the_table_says_which_scan_a_slice_is_of_and_how_high_it_lies(
    store: SliceStore, place: Devices, which: PretrainSlices
) -> None:
    """Of the whole scan, which has six slices: also of those that are not kept."""
    ids = store.split.train[:3]
    slices = store.read(ids, which)
    table = SliceData.load(store, ids, place, torch.float32, which).table
    assert (table.channels, table.size, len(table)) == (4, (16, 16), len(slices.positions_N))
    assert table.heights_N.tolist() == [position / 5 for position in slices.positions_N]
    rows, columns = np.median([store.spacing_mm_ZHW(i)[1:] for i in ids], axis=0)
    assert table.spacing_mm_HW == (rows, columns) == table.of(np.array([4, 0])).spacing_mm_HW
    scans = [n for n, s in enumerate(ids) for _ in _positions(store, s, which)]
    assert table.scans_N.tolist() == scans
    few = table.of(np.array([4, 0]))
    assert few.heights_N.tolist() == [table.heights_N[4], table.heights_N[0]]
    assert few.scans_N.tolist() == [table.scans_N[4], table.scans_N[0]]


def _positions(store: SliceStore, subject: str, which: PretrainSlices) -> Sequence[int]:
    return store.positions(store.subjects[subject], which)


def test_a_run_reads_its_own_subjects_once(
    store: SliceStore, place: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = SliceStore.read_subject, []

    def counting(self: SliceStore, subject: str) -> object:
        asked.append(subject)
        return read(self, subject)

    monkeypatch.setattr(SliceStore, "read_subject", counting)
    ids = store.split.train
    for few in (ids[:2], ids[1:3], ids[:3]):
        keep(ChosenSlices(store, few), place)
    assert sorted(asked) == sorted(ids[:3])
    assert not list(place.node_folders[0].glob("*.partial"))


def test_shared_slices_are_mapped_not_copied(store: SliceStore, place: Devices) -> None:
    shared = SharedSlices(store, place.node_folders[0])
    (first, _), (second, _) = (shared.map(store.split.train[:1])[0] for _ in range(2))
    assert isinstance(first, np.memmap)
    assert first.filename == second.filename
    with Path(first.filename).open("r+b") as file:  # another process would see it, too
        file.write(b"\x00\x3c")
    assert first.flat[0] == second.flat[0] == 1.0


def test_without_room_slices_go_to_the_next_place(
    store: SliceStore, place: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = ChosenSlices(store, store.split.train)
    monkeypatch.setattr(
        shared_slices, "free_bytes", lambda folder: 0 if folder.name == "node" else 10**9
    )
    two = replace(place, node_folders=(*place.node_folders, tmp_path / "disk"))
    assert keep(selection, two)[1].endswith(f"in {tmp_path / 'disk'}")
    assert keep(selection, place)[1].startswith("memory: ")
    monkeypatch.setattr("fewscan.experiments.residency.available_bytes", lambda: 1000)
    assert keep(selection, place)[1].startswith("stream: ")
    with pytest.raises(DeviceError, match=r"(?s)too little room in .*node.*resources\.residency"):
        keep(selection, replace(place, residency="shared"))
    with pytest.raises(DeviceError, match="no folder of this node"):
        keep(selection, Devices(residency="shared"))


USER = """
import sys, time
from pathlib import Path
from fewscan.storage.system import node_folder
node_folder.join(Path(sys.argv[1]))
print("joined", flush=True)
time.sleep(60)
"""


def test_a_folder_vanishes_after_its_users(tmp_path: Path) -> None:
    """One is killed, one lives: the next process removes the folder of the killed one alone."""
    users = []
    for name in ("killed", "alive"):
        command = [sys.executable, "-c", USER, str(tmp_path / name)]
        users.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    try:
        for user in users:
            assert user.stdout is not None
            assert user.stdout.readline() == b"joined\n"
        os.kill(users[0].pid, signal.SIGKILL)
        users[0].wait()
        assert (tmp_path / "killed").exists()
        node_folder.join(tmp_path / "next")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["alive", "next"]
        node_folder.remove(tmp_path / "next")
        assert not (tmp_path / "next").exists()
        node_folder.join(tmp_path / "next")  # and again, after it was removed
        assert (tmp_path / "next").exists()
        node_folder.leave(tmp_path / "next")
    finally:
        for user in users:
            user.kill()
            user.communicate()


def test_memory_is_what_machine_and_groups_leave(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    assert available_bytes(tmp_path) == 1000 << 10
    write("proc/self/cgroup", "0::/slurm/job\n")
    write("sys/fs/cgroup/slurm/job/memory.max", "max\n")
    write("sys/fs/cgroup/slurm/memory.max", "5000\n")
    write("sys/fs/cgroup/slurm/memory.current", "3000\n")
    write("sys/fs/cgroup/slurm/memory.stat", "anon 1\ninactive_file 700\n")
    assert available_bytes(tmp_path) == 2700
    write("proc/self/cgroup", "5:cpu:/x\n4:memory:/job\n")
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4000")
    write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "4500")
    assert available_bytes(tmp_path) == 0
    assert 0 < available_bytes() < 1 << 50
