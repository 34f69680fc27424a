"""What every convention must do: subclass `ConventionSuite` in a file of its own, say how a data
set of it is written, and pytest runs the rest."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewscan.storage.catalog import Selection
from fewscan.storage.conventions import registry
from fewscan.storage.conventions.convention import Convention
from fewscan.storage.errors import ScanError
from fewscan.storage.find import find_scan, find_scans
from fewscan.storage.prepare import prepare
from fewscan.storage.slices import SliceStore


class ConventionSuite:
    """The contract of `Convention`, on tiny data sets."""

    kind: type[Convention]
    ids: tuple[str, str, str]
    """of three patients, sorted"""
    time_points: tuple[str, str]
    """two scans of one patient"""
    patient: str
    """that one"""
    bids: tuple[str, str] = ("sub-01_ses-1", "sub-01_ses-2")

    def write(self, folder: Path, ids: Sequence[str]) -> None:
        """Write a data set of these scans, each with images of its own and a segmentation."""
        raise NotImplementedError

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """A data set of the three scans."""
        self.write(tmp_path / "data", self.ids)
        return tmp_path / "data"

    def test_it_is_registered_and_named_in_what_people_read(self) -> None:
        (own,) = (c for c in registry.CONVENTIONS if type(c) is self.kind)
        assert own.name in registry.NAMES
        assert own.layout in registry.LAYOUTS
        assert own.expected in registry.EXPECTED
        assert own.labels in registry.LABELS
        assert set(own.endings) <= set(registry.ENDINGS)

    def test_a_folder_is_known_by_its_looks(self, data: Path, tmp_path: Path) -> None:
        assert self.kind().looks_like(data)
        assert find_scans(data) == self.kind().find(data, Selection())
        (tmp_path / "empty").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("mine")
        for name in ("empty", "other", "none"):
            assert not self.kind().looks_like(tmp_path / name)

    def test_the_catalog_is_complete_and_ordered(self, data: Path) -> None:
        catalog = find_scans(data)
        assert catalog.problems == {}
        assert tuple(scan.id for scan in catalog.scans) == self.ids
        assert tuple(scan.patient for scan in catalog.scans) == tuple(
            self.kind().patient_of(id_) for id_ in self.ids
        )
        assert len({scan.patient for scan in catalog.scans}) == len(self.ids)
        for scan in catalog.scans:
            assert len(scan.channel_files) == len(catalog.channels)
            assert len(scan.label_values) == len(catalog.classes)
            assert scan.label_file is not None
            files = (*scan.channel_files, scan.label_file)
            assert len(set(files)) == len(files)
            assert all(file.is_file() for file in files)
            assert all(file.name.endswith(self.kind.endings) for file in scan.channel_files)

    def test_nothing_depends_on_where_the_folder_lies(self, data: Path, tmp_path: Path) -> None:
        before = find_scans(data)
        after = find_scans(Path(shutil.move(data, tmp_path / "elsewhere")))
        assert [scan.id for scan in after.scans] == [scan.id for scan in before.scans]
        for old, new in zip(before.scans, after.scans, strict=True):
            files = zip(old.channel_files, new.channel_files, strict=True)
            assert all(
                a.relative_to(data) == b.relative_to(tmp_path / "elsewhere") for a, b in files
            )

    def test_time_points_are_of_one_patient(self, tmp_path: Path) -> None:
        self.write(tmp_path, (*self.time_points, *self.bids, self.ids[0]))
        patients = {scan.id: scan.patient for scan in find_scans(tmp_path).scans}
        assert {patients[id_] for id_ in self.time_points} == {self.patient}
        assert {patients[id_] for id_ in self.bids} == {"sub-01"}
        assert len(set(patients.values())) == 3

    def test_a_name_of_a_patient_or_scan_stays(self) -> None:
        convention = self.kind()
        for id_ in (*self.ids, *self.time_points, *self.bids):
            patient, newest = convention.patient_of(id_), convention.same_scan(id_)
            assert convention.patient_of(patient) == patient
            assert convention.same_scan(newest) == newest

    def test_a_scan_that_lacks_a_channel_does_not_stop_the_others(self, data: Path) -> None:
        first, *others = find_scans(data).scans
        first.channel_files[-1].unlink()
        catalog = find_scans(data)
        assert [scan.id for scan in catalog.scans] == [scan.id for scan in others]
        problem = catalog.problems[first.id]
        assert first.channel_files[-1].name in problem.found
        assert problem.where
        assert problem.expected
        assert problem.remedy

    def test_a_scan_without_a_segmentation_is_a_scan(self, data: Path) -> None:
        label_file = find_scans(data).scans[1].label_file
        assert label_file is not None
        label_file.unlink()
        found = {scan.id: scan.label_file for scan in find_scans(data).scans}
        assert found[self.ids[1]] is None
        assert found[self.ids[0]] is not None

    def test_one_scan_by_its_files_in_any_order(self, data: Path) -> None:
        catalog = find_scans(data)
        scan = catalog.scans[1]
        for paths in (scan.channel_files, scan.channel_files[::-1]):
            found = self.kind().find_one(paths, catalog.channels, catalog.classes)
            assert found == find_scan(paths, catalog.channels, catalog.classes)
            assert found is not None
            assert (found.id, found.patient) == (scan.id, scan.patient)
            assert found.channel_files == scan.channel_files
            assert found.label_file is None
            assert len(found.label_values) == len(catalog.classes)

    def test_files_of_no_convention_are_left_to_others(self, tmp_path: Path) -> None:
        paths = [tmp_path / name for name in ("a.nii.gz", "b.nii.gz")]
        for path in paths:
            path.write_bytes(b"")
        assert self.kind().find_one(paths, ["a", "b"], ["lesion"]) is None
        assert self.kind().find_one([tmp_path], ["a", "b"], ["lesion"]) is None

    def test_several_scans_and_other_channels_are_no_scan(self, data: Path) -> None:
        catalog = find_scans(data)
        channels, classes = catalog.channels, catalog.classes
        two = [file for scan in catalog.scans[:2] for file in scan.channel_files]
        with pytest.raises(ScanError, match="2 scans"):
            self.kind().find_one(two, channels, classes)
        files = catalog.scans[0].channel_files
        with pytest.raises(ScanError):
            self.kind().find_one(files[:-1], channels, classes)
        with pytest.raises(ScanError, match="channels") as caught:
            self.kind().find_one(files, channels[:-1], classes)
        assert caught.value.expected

    def test_it_becomes_a_store(self, tmp_path: Path) -> None:
        self.write(tmp_path / "data", (*self.time_points, self.ids[0]))
        report = prepare(tmp_path / "data", tmp_path / "store", size=16, workers=1)
        assert (report.subjects, report.patients, report.skipped) == (3, 2, ())
        store, catalog = SliceStore.open(tmp_path / "store"), find_scans(tmp_path / "data")
        assert (store.channels, store.classes) == (catalog.channels, catalog.classes)
        assert {store.patient(id_) for id_ in self.time_points} == {self.patient}
        parameters = store.manifest.parameters
        assert parameters.normalisation == catalog.normalisation
        if catalog.axis is not None:
            assert parameters.axis == catalog.axis
