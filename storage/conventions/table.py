"""A table of scans, for data of any naming: a row a scan, a column a channel, in a CSV or TSV file.

    # classes: {tumour: 1, cyst: 2}
    # lesion: [tumour]
    id,patient,t1,flair,label,split
    P01-a,P01,P01/a/t1.nii.gz,P01/a/flair.nii.gz,P01/a/mask.nii.gz,train
    P02-a,P02,P02/a/t1.nii.gz,P02/a/flair.nii.gz,,

Only `id` and one channel are needed. An empty label says that a scan has none. Paths are relative
to the table. The first lines may hold YAML behind `#`: its keys are those of `TableHead`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fewscan.storage.catalog import Catalog, ScanFiles, Selection
from fewscan.storage.conventions.convention import (
    NIFTI,
    PICTURES,
    Convention,
    Labels,
    chosen,
    ends_with,
    is_file,
    is_image,
    not_readable,
    places_of,
    require_map,
    require_one,
    whole_number,
)
from fewscan.storage.errors import ScanError

ENDINGS = (".csv", ".tsv")
ID, PATIENT, LABEL, SPLIT = "id", "patient", "label", "split"
_MEANT_AS_LABEL = ("labels", "mask", "seg", "segmentation", "annotation", "ground_truth", "gt")
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LONGEST_ID = 150
_LARGEST = 64_000_000
"""bytes; a larger file is no table of scans"""
_SAVE_AS = "save it as CSV in UTF-8"


@dataclass(frozen=True)
class TableHead:
    """What the lines behind `#` may say, as YAML."""

    channels: tuple[str, ...] = ()
    """which columns are channels, in this order; default: those whose cells name images"""
    classes: Mapping[str, Any] | None = None
    """class → its value, or list of values, in the label files; default: lesion is 1"""
    lesion: tuple[str, ...] = ()
    """the classes that are lesions; default: all"""
    regions: Mapping[str, Any] | None = None
    """name → classes that are scored together as well"""
    ignore: int | None = None
    """the label value of what is neither trained on nor scored"""
    normalisation: str | None = None
    """as `--normalisation`"""
    axis: int | str | None = None
    """as `--axis`"""


@dataclass(frozen=True)
class Row:
    """A scan's line."""

    line: int
    """its number in the file, from 1"""
    cells: Mapping[str, str]
    """column → what stands there, without spaces around it"""


class ScanTable(Convention):
    """A table of files."""

    name = "a table"
    layout = (
        "a CSV or TSV file with a row a scan (columns id, one a channel, label; see fewscan table)"
    )
    expected = "a table of scans: FILE.csv with the columns id, one for each channel, label"
    labels = f"in the column {LABEL}"
    endings = (*NIFTI, *PICTURES)
    axis = None
    normalisation = "percentiles"

    def looks_like(self, folder: Path) -> bool:
        """Whether it is a file, named as a table."""
        return ends_with(folder.name, ENDINGS) and is_file(folder)

    def find(self, folder: Path, selection: Selection) -> Catalog:
        """The scans of the table's rows; `folder` is its file. Raises `ScanError`."""
        head, columns, rows = read_table(folder)
        names = head.channels or _channel_columns(columns, rows, folder)
        wanted = [names[k] for k in chosen(selection.channels, names, folder)]
        labels = require_map(selection.labels) or _labels(head, folder)
        scans, problems = {}, {}
        twice = _lines_of_ids(rows)
        for row in rows:
            scan_id = row.cells[ID] or f"line {row.line}"
            try:
                _require_id(row, twice[row.cells[ID]], folder)
                scans[scan_id] = _scan_files(row, wanted, labels, folder)
            except ScanError as error:
                problems[scan_id] = error
        pictures = any(ends_with(f.name, PICTURES) for s in scans.values() for f in s.channel_files)
        axis: Any = head.axis if head.axis is not None else 2 if pictures else self.axis
        normalisation: Any = head.normalisation or self.normalisation
        others = [c for c in columns if c not in (*names, ID, PATIENT, LABEL, SPLIT)]
        left_out = {f"the column {name}": "it names no images" for name in others}
        return Catalog(
            tuple(wanted),
            labels.classes,
            tuple(scans[scan_id] for scan_id in sorted(scans)),
            problems,
            axis,
            normalisation,
            lesion=head.lesion,
            regions=_regions(head, folder),
            left_out=left_out,
        )

    def find_one(
        self, paths: Sequence[Path], channels: Sequence[str], classes: Sequence[str]
    ) -> ScanFiles | None:
        """The scan of a table with one row."""
        if not self.looks_like(paths[0]):
            return None
        catalog = self.find(paths[0], Selection())
        for problem in catalog.problems.values():
            raise problem
        require_one([scan.id for scan in catalog.scans], paths[0])
        places_of(channels, catalog.channels, "the table", paths[0])
        catalog = self.find(paths[0], Selection(channels=tuple(channels)))
        for scan in catalog.scans:
            known = catalog.classes == tuple(classes)
            values = scan.label_values if known else tuple(range(1, len(classes) + 1))
            return replace(scan, label_file=None, label_values=values, aliases=())
        return None


def read_table(path: Path) -> tuple[TableHead, tuple[str, ...], list[Row]]:
    """The head, the names of the columns, and the rows of a table. Raises `ScanError`."""
    lines = _text(path).splitlines()
    start = next((k for k, line in enumerate(lines) if not _is_head(line)), len(lines))
    delimiter = _delimiter(lines[start] if start < len(lines) else "", path)
    head = _read_head(lines[:start], delimiter, path)
    names, rows = _rows(lines[start:], delimiter, start, path)
    return head, _columns(names, start + 1, path), rows


def read_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """The names of the columns and the rows of any table without a head. Raises `ScanError`."""
    lines = _text(path).splitlines()
    names, rows = _rows(lines, _delimiter(lines[0] if lines else "", path), 0, path)
    return names, rows


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            found = f"a file of {path.stat().st_size} bytes"
            raise ScanError(found, where=path, expected=f"a table of at most {_LARGEST} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ScanError(
            f"no text in UTF-8: byte {error.object[error.start]:#x}",
            where=f"{path}, line {line}",
            expected="a table as text",
            remedy=_SAVE_AS,
        ) from error
    except OSError as error:
        found = f"the file cannot be read ({error.strerror})"
        raise ScanError(found, where=path, remedy="ask its owner for permission") from error


def _is_head(line: str) -> bool:
    """Whether the line is one of those before the columns; spreadsheets may have quoted it."""
    return not line.strip(" ,;\t") or line.lstrip('" \t').startswith("#")


def _delimiter(header: str, path: Path) -> str:
    if ends_with(path.name, (".tsv",)):
        return "\t"
    return max(",;\t", key=header.count)


def _read_head(lines: Sequence[str], delimiter: str, path: Path) -> TableHead:
    import yaml  # not on every machine that trains

    kept = []
    for line in lines:
        text = line.rstrip(f"{delimiter} \t").lstrip(" \t")
        if text.startswith('"'):
            text = text.strip('"').replace('""', '"')
        kept.append(text.removeprefix("#").removeprefix(" ") if text.startswith("#") else "")
    keys = [entry.name for entry in fields(TableHead)]
    expected = f"YAML with some of the keys {', '.join(keys)}"
    try:
        value = yaml.safe_load("\n".join(kept)) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else path
        found = f"the lines behind # are no YAML: {getattr(error, 'problem', error)!s:.200}"
        raise ScanError(found, where=where, expected=expected) from error
    if not isinstance(value, dict) or not all(key in keys for key in value):
        found = f"the lines behind # say {str(value)[:80]!r}"
        remedy = "use # for these settings alone; notes go elsewhere"
        raise ScanError(found, where=path, expected=expected, remedy=remedy)
    return _checked_head(value, path)


def _checked_head(value: Mapping[str, Any], path: Path) -> TableHead:
    from typing import get_args

    from fewscan.storage.geometry import Plane
    from fewscan.storage.intensity import Normalisation

    def names(key: str) -> tuple[str, ...]:
        given = value.get(key) or []
        given = given.split(",") if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(n, (str, int)) for n in given):
            raise wrong(key, "a list of names")
        return tuple(str(name).strip() for name in given)

    def one_of(key: str, allowed: Sequence[Any]) -> Any:
        given = value.get(key)
        if given is not None and given not in allowed:
            raise wrong(key, f"one of {', '.join(map(str, allowed))}")
        return given

    def mapping(key: str, of: str) -> Mapping[str, Any] | None:
        given = value.get(key)
        if given is not None and not (isinstance(given, dict) and given):
            raise wrong(key, of)
        return {str(name): entry for name, entry in given.items()} if given else None

    def wrong(key: str, expected: str) -> ScanError:
        found = f"{key}: {str(value.get(key))[:80]}"
        return ScanError(found, where=f"{path}, the lines behind #", expected=f"{key}: {expected}")

    ignore = whole_number(value.get("ignore"))
    if value.get("ignore") is not None and not ignore:
        raise wrong("ignore", "a label value above 0")
    return TableHead(
        channels=names("channels"),
        classes=mapping("classes", "{tumour: 1, cyst: 2}"),
        lesion=names("lesion"),
        regions=mapping("regions", "{core: [necrosis, enhancing]}"),
        ignore=ignore,
        normalisation=one_of("normalisation", get_args(Normalisation)),
        axis=one_of("axis", (0, 1, 2, *get_args(Plane))),
    )


def _rows(
    lines: Sequence[str], delimiter: str, before: int, path: Path
) -> tuple[tuple[str, ...], list[Row]]:
    """The names of the columns, and the rows that are not blank."""
    header: tuple[str, ...] = ()
    rows = []
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    try:
        for cells in reader:
            plain = [cell.strip() for cell in cells]
            line = before + reader.line_num
            while plain and not plain[-1]:
                plain.pop()
            if plain and not header:
                header = _own_names(plain)
            elif plain:
                rows.append(_row(line, plain, header, path))
    except csv.Error as error:
        where = f"{path}, line {before + reader.line_num}"
        raise ScanError(f"no table: {error}", where=where, remedy=_SAVE_AS) from error
    if not header:
        raise ScanError("an empty table", where=path, expected="a line of column names, then rows")
    return header, rows


def _own_names(names: Sequence[str]) -> tuple[str, ...]:
    """The columns' names; those that mean something here in small letters."""
    own = {name.casefold(): name for name in (ID, PATIENT, LABEL, SPLIT)}
    return tuple(own.get(name.casefold(), name) for name in names)


def _row(line: int, cells: Sequence[str], columns: Sequence[str], path: Path) -> Row:
    if len(cells) > len(columns):
        raise ScanError(
            f"{len(cells)} cells, but {len(columns)} columns",
            where=f"{path}, line {line}",
            expected=f"a cell for each of {', '.join(columns)[:200]}",
            remedy="put quotes around a cell that holds the delimiter",
        )
    padded = [*cells, *[""] * (len(columns) - len(cells))]
    return Row(line, dict(zip(columns, padded, strict=True)))


def _columns(columns: tuple[str, ...], line: int, path: Path) -> tuple[str, ...]:
    """The names, if they are those of a table of scans."""
    where = f"{path}, line {line}"
    if ID not in columns or not all(columns) or len(set(columns)) < len(columns):
        raise ScanError(
            f"the columns {', '.join(columns)[:200]}",
            where=where,
            expected=f"names that differ, one of them {ID}; {PATIENT}, {LABEL} and {SPLIT} if "
            "wanted, and one for each channel",
            remedy="write the column names into the first line",
        )
    meant = [c for c in columns if c.casefold() in _MEANT_AS_LABEL]
    if meant and LABEL not in columns:
        remedy = f"name the column of the segmentations {LABEL}"
        raise ScanError(f"the column {meant[0]}", where=where, expected=LABEL, remedy=remedy)
    return columns


def _channel_columns(columns: Sequence[str], rows: Sequence[Row], path: Path) -> tuple[str, ...]:
    """The columns whose cells name images."""
    others = [c for c in columns if c not in (ID, PATIENT, LABEL, SPLIT)]
    found = [c for c in others if any(is_image(row.cells[c]) for row in rows)]
    mistaken = [c for c in found if c.casefold() in _MEANT_AS_LABEL]
    if mistaken or not found:
        raise ScanError(
            f"the column {mistaken[0]} beside {LABEL}" if mistaken else "no column names images",
            where=path,
            expected="a column for each channel, with paths of .nii or .nii.gz files",
            remedy="say which columns are channels, in a first line: # channels: [t1, t2]",
        )
    return tuple(found)


def _labels(head: TableHead, path: Path) -> Labels:
    names: dict[int, str] = {}
    for name, given in (head.classes or {"lesion": 1}).items():
        for value in given if isinstance(given, list) else [given]:
            number = whole_number(value)
            if number is None or number < 0 or number in names:
                raise ScanError(
                    f"classes: {name}: {str(given)[:80]}",
                    where=f"{path}, the lines behind #",
                    expected="for each class a number, or a list of numbers, of its own",
                )
            names[number] = str(name)
    if head.ignore is not None:
        names[head.ignore] = "ignore"
    return Labels.of(names, path)


def _regions(head: TableHead, path: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = []
    for name, classes in (head.regions or {}).items():
        if not isinstance(classes, list) or not classes:
            expected = "regions: {core: [necrosis, enhancing]}"
            raise ScanError(f"region {name}: {classes!s:.80}", where=path, expected=expected)
        found.append((name, tuple(map(str, classes))))
    return tuple(found)


def _lines_of_ids(rows: Sequence[Row]) -> dict[str, list[int]]:
    lines: dict[str, list[int]] = {}
    for row in rows:
        lines.setdefault(row.cells[ID], []).append(row.line)
    return lines


def _require_id(row: Row, lines: Sequence[int], path: Path) -> None:
    scan_id = row.cells[ID]
    where = f"{path}, line {row.line}"
    if not scan_id or len(scan_id) > _LONGEST_ID or scan_id[0] == "." or {*scan_id} & {*"/\\\0"}:
        expected = f"a name without / and \\, of at most {_LONGEST_ID} letters"
        raise ScanError(f"the id {scan_id[:80]!r}", where=where, expected=expected)
    if len(lines) > 1:
        found = f"the same id twice: lines {', '.join(map(str, lines[:5]))}"
        raise ScanError(found, where=where, expected="a scan a line, each with an id of its own")


def _scan_files(row: Row, channels: Sequence[str], labels: Labels, path: Path) -> ScanFiles:
    where = f"{path}, line {row.line}"
    part = row.cells.get(SPLIT, "")
    if part and part.casefold() not in _PARTS:
        expected = "train, validation or test; empty: the rule decides"
        raise ScanError(f"split {part[:40]!r}", where=where, expected=expected)
    missing = [channel for channel in channels if not row.cells[channel]]
    if missing:
        raise ScanError(
            f"missing: {', '.join(missing)}",
            where=where,
            expected=f"a file for each of {', '.join(channels)}",
            remedy="write its path into the cell, or do without the channel: --channels",
        )
    label = row.cells.get(LABEL, "")
    return ScanFiles(
        id=row.cells[ID],
        naming="the table",
        channel_files=tuple(_file(row.cells[channel], path, where) for channel in channels),
        label_file=_file(label, path, where) if label else None,
        label_values=labels.values,
        patient=row.cells.get(PATIENT, ""),
        ignore_value=labels.ignore,
        part=_PARTS.get(part.casefold(), ""),
        aliases=labels.aliases,
    )


def _file(cell: str, table: Path, where: str) -> Path:
    """The file that is meant, which must be there."""
    path = table.parent / Path(cell).expanduser()
    if not is_file(path):
        raise ScanError(
            f"missing: {cell[:200]}",
            where=where,
            expected="a file; paths are relative to the table",
            remedy="correct the path, or copy the file there",
        )
    if not ends_with(cell, ScanTable.endings):
        raise not_readable(path, ScanTable.endings)
    return path
