"""What is wanted of a data set, from the options of `prepare` to the store."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_scans import write_subject, write_subjects

from fewscan.harness.cli import main
from fewscan.storage.slices import SliceStore


def prepared(scans: Path, store: Path, *options: str) -> str:
    answer = CliRunner().invoke(main, ["prepare", str(scans), str(store), "--size", "16", *options])
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_channels_classes_lesions_and_regions(tmp_path: Path) -> None:
    write_subjects(tmp_path / "scans", 3)
    prepared(
        tmp_path / "scans",
        tmp_path / "store",
        *("--channels", "t1c, flair", "--labels", "1=necrosis,2=oedema,4=enhancing"),
        *("--lesion", "necrosis,enhancing", "--region", "core=necrosis,enhancing"),
    )
    store = SliceStore.open(tmp_path / "store")
    assert store.channels == ("t1ce", "flair")
    assert store.classes == ("necrosis", "oedema", "enhancing")
    assert store.meaning.lesion == ("necrosis", "enhancing")
    assert store.manifest.parameters.regions == (("core", ("necrosis", "enhancing")),)


def test_children_are_refused_until_somebody_says_what_their_labels_mean(tmp_path: Path) -> None:
    for number in range(3):
        write_subject(tmp_path / "scans", f"BraTS-PED-{number:05d}-000", number)
    command = ["prepare", str(tmp_path / "scans"), str(tmp_path / "store"), "--size", "16"]
    answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 1
    assert "--labels brats-ped" in answer.output
    assert not (tmp_path / "store").exists()
    prepared(tmp_path / "scans", tmp_path / "store", "--labels", "brats-ped")
    classes = SliceStore.open(tmp_path / "store").classes
    assert classes == ("enhancing", "non_enhancing", "cystic", "oedema")


def test_unlabelled_scans_are_left_out_by_name_or_taken_in(tmp_path: Path) -> None:
    write_subjects(tmp_path / "scans", 3)
    (tmp_path / "scans" / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz").unlink()
    said = prepared(tmp_path / "scans", tmp_path / "store")
    assert "BraTS2021_00001" in said
    assert "--unlabelled" in said
    said = prepared(tmp_path / "scans", tmp_path / "store", "--unlabelled")
    assert "3 subjects" in said


@pytest.mark.parametrize(
    "option",
    [
        ("--lesion", "kidney"),
        ("--channels", "pet"),
        ("--labels", "brats-1066"),
        ("--region", "core=kidney"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, option: tuple[str, str]) -> None:
    write_subjects(tmp_path / "scans", 1)
    command = ["prepare", str(tmp_path / "scans"), str(tmp_path / "store"), *option]
    answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 1
    assert "expected" in answer.output
    command = ["prepare", str(tmp_path / "scans"), str(tmp_path / "store"), "--region", "core"]
    assert CliRunner().invoke(main, command).exit_code == 2
