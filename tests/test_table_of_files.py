"""Tables from patterns: each naming that people have becomes a table that `prepare` reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_nnunet import AFFINE, fake_case

from fewscan.harness.cli import main
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scans
from fewscan.storage.nifti import write_nifti
from fewscan.storage.scans import read_scan
from fewscan.storage.table_of_files import write_table

PATTERNS = {"t2": "*_T2.nii.gz", "ct": "*_CT.nii.gz"}


def write_scans(folder: Path, names: Mapping[str, Sequence[str]]) -> None:
    """For each scan the paths of its two channels and its label."""
    for seed, paths in enumerate(names.values()):
        channels, labels = fake_case(seed)
        for path, voxels in zip(paths, [*channels, labels], strict=False):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_nifti(folder / path, voxels, AFFINE)


NAMINGS = {
    "names": (
        {"t2": "*_T2.nii.gz", "ct": "*_CT.nii.gz"},
        "*_segm.nii.gz",
        "",
        lambda i: (
            f"images/{i}/{i}_T2.nii.gz",
            f"images/{i}/{i}_CT.nii.gz",
            f"labels/{i}_segm.nii.gz",
        ),
    ),
    "folders": (
        {"t2": "t2.nii.gz", "ct": "ct.nii.gz"},
        "mask.nii.gz",
        "",
        lambda i: (f"{i}/t2.nii.gz", f"{i}/ct.nii.gz", f"{i}/mask.nii.gz"),
    ),
    "same names in folders": (
        {"t2": "*_t2.nii.gz", "ct": "*_ct.nii.gz"},
        "*_mask.nii.gz",
        "",
        lambda i: (f"{i}/scan_t2.nii.gz", f"{i}/scan_ct.nii.gz", f"{i}/scan_mask.nii.gz"),
    ),
    "paths": (
        {"t2": "**/T2/*.nii.gz", "ct": "**/CT/*.nii.gz"},
        "masks/*.nii.gz",
        "",
        lambda i: (f"a/T2/{i}.nii.gz", f"a/CT/{i}.nii.gz", f"masks/{i}.nii.gz"),
    ),
    "an expression": (
        {"t2": "*t2*", "ct": "*ct*"},
        "*mask*",
        r"/(\w\d+)/",
        lambda i: (f"x/{i}/in/t2.nii.gz", f"y/{i}/ct_new.nii.gz", f"z/{i}/b/mask1.nii.gz"),
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_table_of_each_naming(tmp_path: Path, naming: str) -> None:
    channels, label, id_pattern, paths_of = NAMINGS[naming]
    ids = ["P01", "P02", "P03"]
    write_scans(tmp_path / "data", {i: paths_of(i) for i in ids})
    (tmp_path / "data" / "notes.txt").write_text("no image")
    out = tmp_path / "tables" / "scans.csv"
    out.parent.mkdir()
    found = write_table(
        tmp_path / "data", out, channels, label, id_pattern, labels="1=outer,2=tumour"
    )
    assert (found.scans, found.labelled, found.incomplete, found.unmatched) == (3, 3, {}, ())
    catalog = find_scans(out)
    assert (catalog.channels, catalog.classes) == (("t2", "ct"), ("outer", "tumour"))
    assert [scan.id for scan in catalog.scans] == ids
    for seed, scan in enumerate(catalog.scans):
        channels_XYZ, labels_XYZ = fake_case(seed)
        read = read_scan(scan)
        assert all((a == b).all() for a, b in zip(read.channels_XYZ, channels_XYZ, strict=True))
        assert (read.labels_XYZ == labels_XYZ).all()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    write_scans(
        tmp_path,
        {
            "P1": ("P1_T2.nii.gz", "P1_CT.nii.gz", "P1_segm.nii.gz"),
            "P2": ("P2_T2.nii.gz",),
            "P3": ("P3_T2.nii.gz", "P3_CT.nii.gz", "P3_auto_segm.nii.gz"),
        },
    )
    out = tmp_path / "scans.csv"
    command = ["table", str(tmp_path), str(out), "--label", "*_segm.nii.gz"]
    command += [text for c, p in PATTERNS.items() for text in ("--channel", f"{c}={p}")]
    answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 1
    assert "P2: no file for ct" in answer.output
    assert "a label of no scan: P3_auto_segm.nii.gz" in answer.output
    catalog = find_scans(out)
    assert [(scan.id, scan.label_file is None) for scan in catalog.scans] == [
        ("P1", False),
        ("P3", True),
    ]
    assert "missing: ct" in catalog.problems["P2"].found
    answer = CliRunner().invoke(main, command)
    assert "there already" in answer.output
    assert "P2" in CliRunner().invoke(main, [*command, "--overwrite"]).output


def test_patients_with_several_scans(tmp_path: Path) -> None:
    names = [f"UPENN-GBM-0000{n}_{t}" for n in (1, 2) for t in (11, 21)]
    write_scans(tmp_path, {n: (f"{n}_T2.nii.gz", f"{n}_CT.nii.gz") for n in names})
    out = tmp_path / "scans.tsv"
    write_table(tmp_path, out, PATTERNS, patient_pattern=r"UPENN-GBM-\d+", lesion=("lesion",))
    patients = [scan.patient for scan in find_scans(out).scans]
    assert patients == ["UPENN-GBM-00001"] * 2 + ["UPENN-GBM-00002"] * 2


@pytest.mark.parametrize(
    ("channels", "label", "id_pattern", "found"),
    [
        ({"t2": "*_T7.nii.gz"}, "", "", "no file for t2"),
        ({"t2": "*.nii.gz"}, "", "", "cannot be told apart"),
        ({"t2": "*_T2.nii.gz"}, "", "Q", "cannot be told apart"),
        ({"t2": "*_T2.nii.gz"}, "", "(", "--id|missing"),
        ({"label": "*_T2.nii.gz"}, "", "", "the channel label"),
        ({}, "", "", "no channel"),
    ],
)
def test_patterns_that_tell_nothing(
    tmp_path: Path, channels: dict[str, str], label: str, id_pattern: str, found: str
) -> None:
    write_scans(tmp_path, {"P1": ("a/P1_T2.nii.gz", "a/P1_CT.nii.gz"), "Q": ("a/P1_T2..nii.gz",)})
    if channels != {"t2": "*.nii.gz"}:
        (tmp_path / "a" / "P1_T2..nii.gz").unlink()
    else:
        (tmp_path / "a" / "P1_T2..nii.gz").rename(tmp_path / "a" / "P1_T2_.nii.gz")
    with pytest.raises(ScanError, match=found) as caught:
        write_table(tmp_path, tmp_path / "scans.csv", channels, label, id_pattern)
    assert caught.value.expected
    assert not (tmp_path / "scans.csv").exists()
