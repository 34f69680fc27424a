"""A table of scans: what is in it is read, what is wrong in it is named with its line."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from convention_suite import ConventionSuite
from fake_nnunet import AFFINE, fake_case

from fewscan.storage.catalog import ScanFiles, Selection
from fewscan.storage.conventions.table import ScanTable
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scan, find_scans
from fewscan.storage.nifti import write_nifti
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore

HEAD = "# classes: {outer: 1, tumour: 2}\n"


def write_files(folder: Path, ids: Sequence[str]) -> None:
    """Two channels and a mask for each scan, in a folder of its own."""
    for seed, id_ in enumerate(ids):
        (folder / id_).mkdir(parents=True)
        (t2, ct), labels = fake_case(seed)
        for name, voxels in (("t2", t2), ("ct", ct), ("mask", labels)):
            write_nifti(folder / id_ / f"{name}_{id_}.nii.gz", voxels, AFFINE)


def line(id_: str, label: bool = True) -> str:
    mask = f"{id_}/mask_{id_}.nii.gz" if label else ""
    return f"{id_},{id_}/t2_{id_}.nii.gz,{id_}/ct_{id_}.nii.gz,{mask}\n"


def write_table(folder: Path, ids: Sequence[str], head: str = HEAD) -> Path:
    write_files(folder, ids)
    rows = "".join(line(id_) for id_ in reversed(ids))
    (folder / "scans.csv").write_text(f"{head}id,T2,CT,label\n{rows}")
    return folder / "scans.csv"


class TestTheContract(ConventionSuite):
    kind = ScanTable
    ids = ("A", "B", "C")
    time_points = ("sub-7_ses-01", "sub-7_ses-02")
    patient = "sub-7"
    texts = ("scans.csv",)
    lists_its_files = True
    takes_unlabelled = True
    recognises_files = False

    def write(self, folder: Path, ids: Sequence[str]) -> None:
        write_table(folder, ids)

    def given(self, folder: Path) -> Path:
        return folder / "scans.csv"

    def unlabel(self, folder: Path, scan: ScanFiles) -> None:
        table = folder / "scans.csv"
        table.write_text(table.read_text().replace(line(scan.id), line(scan.id, label=False)))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, start: str) -> None:
    table = write_table(tmp_path, ["A", "B"])
    text = table.read_text().replace(HEAD, "").replace(",", delimiter)
    head = f'"{HEAD.strip()}"{delimiter * 3}\r\n{delimiter * 4}\r\n'
    blank = f"{delimiter * 3}\r\n\r\n"
    table.write_bytes((start + head + text.replace("\n", f"\r\n{blank}")).encode())
    catalog = find_scans(table)
    assert [scan.id for scan in catalog.scans] == ["A", "B"]
    assert (catalog.channels, catalog.classes) == (("T2", "CT"), ("outer", "tumour"))
    assert catalog.problems == {}


def test_all_that_a_table_can_say(tmp_path: Path) -> None:
    write_files(tmp_path / "data", ["A", "B", "C"])
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists" / "scans.tsv"
    head = (
        "# channels: [ct, t2]\n"
        "# classes:\n#   organ: [1, 3]\n#   tumour: 2\n"
        "# lesion: tumour\n# regions: {both: [organ, tumour]}\n"
        "# ignore: 9\n# normalisation: quantile\n# axis: coronal\n"
    )
    rows = [["ID", "Patient", "age", "t2", "ct", "Label", "Split"]]
    for id_, patient, part in (("A", "one", "train"), ("B", "one", "Training"), ("C", "", "val")):
        files = [f"../data/{id_}/{kind}_{id_}.nii.gz" for kind in ("t2", "ct", "mask")]
        rows.append([id_, patient, "61", *files, part])
    table.write_text(head + "\n".join("\t".join(row) for row in rows))
    catalog = find_scans(table)
    assert (catalog.channels, catalog.classes) == (("ct", "t2"), ("organ", "tumour"))
    assert (catalog.lesion, catalog.regions) == (("tumour",), (("both", ("organ", "tumour")),))
    assert (catalog.normalisation, catalog.axis) == ("quantile", "coronal")
    assert [scan.part for scan in catalog.scans] == ["train", "train", "validation"]
    assert [scan.patient for scan in catalog.scans] == ["one", "one", "C"]
    for scan in catalog.scans:
        assert (scan.label_values, scan.aliases, scan.ignore_value) == ((1, 2), ((3, 1),), 9)
        assert [path.name[:2] for path in scan.channel_files] == ["ct", "t2"]
    assert catalog.left_out == {"the column age": "it names no images"}


def test_a_table_becomes_a_store_with_unlabelled_scans(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", ["A", "B", "C", "D"])
    table.write_text(table.read_text().replace(line("B"), line("B", label=False)))
    report = prepare(table, tmp_path / "store", size=16, workers=1)
    assert (report.subjects, report.skipped) == (4, ())
    store = SliceStore.open(tmp_path / "store")
    assert store.manifest.unlabelled == ("B",)
    assert store.subjects["A"].files[0] == "A/t2_A.nii.gz"


def test_without_a_head_the_mask_is_a_lesion(tmp_path: Path) -> None:
    catalog = find_scans(write_table(tmp_path, ["A"], head=""))
    assert (catalog.classes, catalog.scans[0].label_values) == (("lesion",), (1,))


def test_the_scan_of_a_table_with_one_row_can_be_predicted(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["A"])
    scan = find_scan([table], ["CT"], ["outer", "tumour"])
    assert [path.name for path in scan.channel_files] == ["ct_A.nii.gz"]
    with pytest.raises(ScanError, match="channels"):
        find_scan([table], ["PET"], ["outer", "tumour"])
    two = write_table(tmp_path / "two", ["A", "B"])
    with pytest.raises(ScanError, match="2 scans"):
        find_scan([two], ["CT"], ["outer", "tumour"])


@pytest.mark.parametrize(
    ("head", "header", "rows", "found", "where"),
    [
        ("# classes {a: 1}\n", "id,T2,CT,label", [], "lines behind # say", "scans.csv"),
        ("# classes: [a\n", "id,T2,CT,label", [], "no YAML", "line"),
        ("# classes: {a: x}\n", "id,T2,CT,label", [], "classes: a: x", "#"),
        ("# classes: {a: 0}\n", "id,T2,CT,label", [], "label values 0=a", "scans.csv"),
        ("# classes: {a: 1, b: 1}\n", "id,T2,CT,label", [], "classes: b: 1", "#"),
        ("# colour: red\n", "id,T2,CT,label", [], "colour", "scans.csv"),
        ("# axis: 7\n", "id,T2,CT,label", [], "axis: 7", "#"),
        ("# normalisation: loud\n", "id,T2,CT,label", [], "normalisation: loud", "#"),
        ("# lesion: [other]\n", "id,T2,CT,label", [], "other", "scans.csv"),
        ("", "name,T2,CT,label", [], "the columns name", "line 1"),
        ("", "id,T2,T2,label", [], "the columns id, T2, T2", "line 1"),
        ("", "id,T2,CT,mask", [], "the column mask", "line 1"),
        ("", "id,T2,CT,seg,label", [], "5 cells, but|the column seg", "scans.csv"),
        ("", "id,T2,CT,label", ["D,a,b,c,d"], "5 cells, but 4 columns", "line 3"),
        ("", "", [], "the columns A", "line 1"),
    ],
)
def test_a_table_that_cannot_be_read(
    tmp_path: Path, head: str, header: str, rows: list[str], found: str, where: str
) -> None:
    write_files(tmp_path, ["A"])
    more = [line("A").strip() + ("," + line("A").split(",")[1] if "seg" in header else "")]
    lines = [header, *more, *rows] if header else more
    (tmp_path / "scans.csv").write_text(head + "\n".join(lines))
    with pytest.raises(ScanError, match=found) as caught:
        find_scans(tmp_path / "scans.csv")
    assert where in str(caught.value.where)
    assert caught.value.expected


@pytest.mark.parametrize(
    ("row", "name", "found"),
    [
        ("D,A/none.nii.gz,A/ct_A.nii.gz,", "D", "missing: A/none.nii.gz"),
        ("D,A,A/ct_A.nii.gz,", "D", "missing: A"),
        ("D,,A/ct_A.nii.gz,", "D", "missing: T2"),
        ("D,A/t2_A.nii.gz,A/ct_A.nii.gz,A/none.nii.gz", "D", "missing: A/none.nii.gz"),
        (",A/t2_A.nii.gz,A/ct_A.nii.gz,", "line 4", "the id ''"),
        ("a/b,A/t2_A.nii.gz,A/ct_A.nii.gz,", "a/b", "the id 'a/b'"),
        ("B,A/t2_A.nii.gz,A/ct_A.nii.gz,", "B", "the same id twice: lines 3, 4"),
        ("D,A/t2_A.nii.gz,A/notes.nrrd,", "D", "another format"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path: Path, row: str, name: str, found: str) -> None:
    table = write_table(tmp_path, ["A", "B"], head="")
    (tmp_path / "A" / "notes.nrrd").write_text("")
    table.write_text(f"id,T2,CT,label\n{line('A')}{line('B')}{row}\n")
    catalog = find_scans(table)
    assert found in catalog.problems[name].found
    assert str(catalog.problems[name].where)
    assert "A" in [scan.id for scan in catalog.scans]
    if "another format" not in found:
        assert "line" in str(catalog.problems[name].where)


def test_a_split_of_another_name(tmp_path: Path) -> None:
    write_files(tmp_path, ["A"])
    rows = line("A").strip()
    (tmp_path / "scans.csv").write_text(f"id,T2,CT,label,split\n{rows},holdout\n")
    problem = find_scans(tmp_path / "scans.csv").problems["A"]
    assert problem.found == "split 'holdout'"
    assert "line 2" in str(problem.where)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["A"])
    table.write_bytes(table.read_bytes() + "Müller".encode("latin-1"))
    with pytest.raises(ScanError, match="UTF-8: byte 0xfc") as caught:
        find_scans(table)
    assert "line 4" in str(caught.value.where)
    table.write_bytes("id,T2\nA,a.nii.gz\n".encode("utf-16"))
    with pytest.raises(ScanError, match="UTF-8"):
        find_scans(table, Selection())
