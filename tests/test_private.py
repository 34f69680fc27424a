"""Folders on disks that everybody can write to: nobody else's is used, nobody else gets in."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fewscan.experiments.devices import Devices
from fewscan.experiments.residency import ChosenSlices, Mapped, keep
from fewscan.storage.errors import NotWritableError
from fewscan.storage.slices import SliceStore
from fewscan.storage.system import node_folder
from fewscan.storage.system.private import is_private, make_private_folder, require_private


def test_a_new_folder_is_private_and_cannot_be_guessed(tmp_path: Path) -> None:
    folders = {make_private_folder("fewscan-", tmp_path) for _ in range(20)}
    assert len(folders) == 20
    assert all(is_private(folder) for folder in folders)
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def open_to_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def readable(place: Path) -> None:
    place.mkdir()
    place.chmod(0o740)


def link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(place.parent / "elsewhere")


def of_another_user(place: Path) -> None:
    place.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(place, 12345, 12345)
    else:
        place.chmod(0o711)


Attack = Callable[[Path], None]
ATTACKS: list[Attack] = [open_to_all, readable, link, of_another_user]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_folder_that_another_user_has_prepared_is_refused(tmp_path: Path, attack: Attack) -> None:
    place = tmp_path / "expected"
    attack(place)
    with pytest.raises(NotWritableError, match="somebody else's, a link, or open to others"):
        require_private(place)
    with pytest.raises(NotWritableError):
        node_folder.join(place)


@pytest.mark.parametrize("attack", ATTACKS)
def test_slices_go_into_the_next_place_then(
    store_path: Path, tmp_path: Path, attack: Attack
) -> None:
    attack(tmp_path / "first")
    store = SliceStore.open(store_path)
    selection = ChosenSlices(store, store.split.train[:1])
    devices = Devices(node_folders=(tmp_path / "first", tmp_path / "second"), residency="auto")
    kept, said = keep(selection, devices)
    assert isinstance(kept, Mapped), said
    assert list((tmp_path / "second").glob("*.slices"))
    assert not list((tmp_path / "first").iterdir())
    node_folder.leave(tmp_path / "second")


def test_what_another_user_calls_abandoned_is_left_alone(tmp_path: Path) -> None:
    """A link in his folder to a file of ours, so that we clear up where he wants."""
    (tmp_path / "his").mkdir(mode=0o777)
    (tmp_path / "his").chmod(0o777)
    (tmp_path / "ours").write_text("kept")
    (tmp_path / "his" / ".users-of-this-folder").symlink_to(tmp_path / "ours")
    node_folder.join(tmp_path / "mine")
    assert (tmp_path / "his").exists()
    node_folder.leave(tmp_path / "mine")
