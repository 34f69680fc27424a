"""A table of scans from patterns of file names, for `conventions.table` to read.

Files of one scan are known by what they share: what `*` stands for in their names
(`P01_t1.nii.gz`, `P01_mask.nii.gz`), or the folder that they lie in. The first of these that tells
all files of a channel apart is the scans' id; a regular expression may say it instead.
"""

import csv
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewscan.storage.atomic import write_bytes
from fewscan.storage.conventions.convention import is_image, require_map, walk
from fewscan.storage.conventions.registry import patient_of
from fewscan.storage.conventions.table import ENDINGS, ID, LABEL, PATIENT, SPLIT
from fewscan.storage.errors import ScanError

_SHOWN = 5


@dataclass(frozen=True)
class FoundTable:
    """The table that was written, and what did not go into it."""

    scans: int
    labelled: int
    incomplete: dict[str, str]
    """scans that lack a channel, which prepare will name: id → what is missing"""
    unmatched: tuple[str, ...]
    """label files of no scan, by their paths in the folder"""
    not_matched: int
    """images that no pattern means"""
    unreadable: tuple[str, ...]
    """folders that may not be read"""


@dataclass(frozen=True)
class Match:
    """A file that a pattern means."""

    path: Path
    """in the folder"""
    star: str
    """what its first * stands for"""


def write_table(
    folder: Path,
    out: Path,
    channels: Mapping[str, str],
    label: str = "",
    id_pattern: str = "",
    patient_pattern: str = "",
    labels: str = "",
    lesion: Sequence[str] = (),
    overwrite: bool = False,
) -> FoundTable:
    """Write the table `out` of the files under `folder` that the patterns of the channels mean.

    A pattern is of the file's name, or of its path in the folder if it has a /; * is anything.
    `id_pattern` and `patient_pattern` are regular expressions for a file's path: their first group,
    or all they match, is the id, the patient. `labels` is VALUE=CLASS,….

    Raises `ScanError` if a pattern means no file, or two files of a scan.
    """
    _require_sound(folder, out, channels, overwrite)
    unreadable: dict[str, ScanError] = {}
    images = [
        (place / name).relative_to(folder)
        for place, _, names in walk(folder, unreadable)
        for name in names
        if is_image(name)
    ]
    patterns = {**channels, **({LABEL: label} if label else {})}
    matches = {column: _matches(images, pattern) for column, pattern in patterns.items()}
    for column, found in matches.items():
        if not found:
            raise ScanError(
                f"no file for {column}={patterns[column]}",
                where=folder,
                expected=f"one of {len(images)} images, such as {', '.join(map(str, images[:2]))}",
                remedy="correct the pattern: in quotes, and with a / if it is of a path",
            )
    rows = _rows(matches, folder, id_pattern)
    scans = {i: files for i, files in sorted(rows.items()) if set(files) & set(channels)}
    patients = {i: _patient(i, files, patient_pattern) for i, files in scans.items()}
    text = _head(labels, lesion, bool(label)) + _lines(scans, list(patterns), patients, folder, out)
    write_bytes(out, text.encode())
    used = {path for files in rows.values() for path in files.values()}
    return FoundTable(
        scans=len(scans),
        labelled=sum(LABEL in files for files in scans.values()),
        incomplete={
            i: ", ".join(c for c in channels if c not in files)
            for i, files in scans.items()
            if set(channels) - set(files)
        },
        unmatched=tuple(str(files[LABEL]) for i, files in sorted(rows.items()) if i not in scans),
        not_matched=len(set(images) - used),
        unreadable=tuple(unreadable),
    )


def _require_sound(folder: Path, out: Path, channels: Mapping[str, str], overwrite: bool) -> None:
    if not folder.is_dir():
        raise ScanError("no such folder", where=folder, expected="a folder of images")
    own = {ID, PATIENT, LABEL, SPLIT} & {name.casefold() for name in channels}
    if own or not channels:
        raise ScanError(
            f"the channel {next(iter(own))}" if own else "no channel",
            where="--channel",
            expected=f"at least one name that is not {ID}, {PATIENT}, {LABEL} or {SPLIT}",
        )
    if not out.name.lower().endswith(ENDINGS):
        raise ScanError(f"the name {out.name}", where=out, expected=" or ".join(ENDINGS))
    if out.exists() and not overwrite:
        remedy = "choose another name, or give --overwrite"
        raise ScanError("the file is there already", where=out, remedy=remedy)


def _matches(images: Sequence[Path], pattern: str) -> list[Match]:
    regex = re.compile("".join(_translated(pattern)), re.DOTALL)
    found = []
    for path in images:
        match = regex.fullmatch(path.as_posix() if "/" in pattern else path.name)
        if match:
            stars = [text.strip("_-. /") for text in match.groups()]
            found.append(Match(path, next(filter(None, stars), "")))
    return found


def _translated(pattern: str) -> list[str]:
    """A regular expression with a group for each *, which stays within a name; ** does not."""
    parts = re.split(r"(\*\*/?|\*|\?)", pattern)
    of = {"*": "([^/]*)", "**": "(?:.*)", "**/": "(?:.*/)?", "?": "[^/]"}
    return [of.get(part, re.escape(part)) for part in parts]


def _rows(
    matches: Mapping[str, Sequence[Match]], folder: Path, id_pattern: str
) -> dict[str, dict[str, Path]]:
    """Scan → column → file, by the first way to name a scan that tells all files apart."""
    regex = _regex(id_pattern, "--id")
    ways: list[Callable[[Match], str]] = [
        lambda match: match.star,
        lambda match: match.path.parent.name,
        lambda match: "_".join(match.path.parent.parts),
        lambda match: "_".join((*match.path.parent.parts, match.star)),
    ]
    if regex is not None:
        ways = [lambda match: _first(regex, match.path)]
    clash = None
    for way in ways:
        rows, clash_here = _grouped(matches, way)
        if clash_here is None:
            return rows
        clash = clash or clash_here
    column, files = clash or ("", [])
    raise ScanError(
        f"files of {column} that cannot be told apart: {', '.join(map(str, files[:_SHOWN]))}",
        where=folder,
        expected="for each scan one file, with an id in its name or its folder's",
        remedy="make the pattern narrower, or say what an id looks like: --id 'P[0-9]+'",
    )


def _grouped(
    matches: Mapping[str, Sequence[Match]], way: Callable[[Match], str]
) -> tuple[dict[str, dict[str, Path]], tuple[str, list[Path]] | None]:
    """The rows, and the column with the first files that would be one scan or none."""
    rows: dict[str, dict[str, Path]] = defaultdict(dict)
    for column, found in matches.items():
        by_id: dict[str, list[Path]] = defaultdict(list)
        for match in found:
            by_id[way(match)].append(match.path)
        alike = next((files for i, files in sorted(by_id.items()) if not i or len(files) > 1), None)
        if alike:
            return {}, (column, alike)
        for scan_id, (path,) in by_id.items():
            rows[scan_id][column] = path
    return dict(rows), None


def _regex(pattern: str, option: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        expected = "a regular expression, such as P[0-9]+"
        raise ScanError(f"{pattern!r}: {error}", where=option, expected=expected) from error


def _first(regex: re.Pattern[str], path: Path) -> str:
    match = regex.search(path.as_posix())
    return "" if match is None else (match[1] if regex.groups else match[0]) or ""


def _patient(scan_id: str, files: Mapping[str, Path], pattern: str) -> str:
    regex = _regex(pattern, "--patient")
    if regex is None:
        return patient_of(scan_id)
    return _first(regex, next(iter(files.values())))


def _head(labels: str, lesion: Sequence[str], is_labelled: bool) -> str:
    """The lines behind #: JSON, which is YAML too."""
    meaning = require_map(labels)
    lines = []
    if meaning is not None:
        values: dict[str, int | list[int]] = {}
        for name, value in zip(meaning.classes, meaning.values, strict=True):
            more = [other for other, meant in meaning.aliases if meant == value]
            values[name] = [value, *more] if more else value
        lines.append(f"classes: {json.dumps(values, ensure_ascii=False)}")
        lines += [] if meaning.ignore is None else [f"ignore: {meaning.ignore}"]
    elif is_labelled:
        lines.append('classes: {"lesion": 1}')
    lines += [f"lesion: {json.dumps(list(lesion), ensure_ascii=False)}"] if lesion else []
    return "".join(f"# {line}\n" for line in lines)


def _lines(
    scans: Mapping[str, Mapping[str, Path]],
    columns: Sequence[str],
    patients: Mapping[str, str],
    folder: Path,
    out: Path,
) -> str:
    text = io.StringIO()
    delimiter = "\t" if out.suffix.lower() == ".tsv" else ","
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    with_patients = any(patients[scan_id] != scan_id for scan_id in scans)
    writer.writerow([ID, *([PATIENT] if with_patients else []), *columns])
    for scan_id, files in scans.items():
        cells = [
            Path(os.path.relpath(folder / files[c], out.parent)).as_posix() if c in files else ""
            for c in columns
        ]
        writer.writerow([scan_id, *([patients[scan_id]] if with_patients else []), *cells])
    return text.getvalue()
