"""What every convention must do: subclass `ConventionSuite` in a file of its own, say how a data
set of it is written, and pytest runs the rest."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewscan.storage.catalog import ScanFiles, Selection
from fewscan.storage.conventions import registry
from fewscan.storage.conventions.convention import Convention
from fewscan.storage.errors import FewscanError, ScanError
from fewscan.storage.find import find_scan, find_scans
from fewscan.storage.prepare import prepare
from fewscan.storage.scans import read_scan
from fewscan.storage.slices import SliceStore


def volumes_of(scan: ScanFiles) -> tuple[int, ...]:
    """For each channel the place in its file; 0 where a file is a channel."""
    return scan.volumes or (0,) * len(scan.channel_files)


def error_of(data: Path) -> FewscanError | None:
    """Why scans are not found in `data`; anything but an error for people is raised."""
    try:
        find_scans(data)
    except FewscanError as error:
        return error
    return None


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
    texts: tuple[str, ...] = ()
    """the small text files that describe a data set, by their paths in it"""
    lists_its_files = False
    """whether these texts name every file, so that there are no strangers"""
    takes_unlabelled = False
    """whether scans without a segmentation are in, asked for or not, because a text says so"""

    recognises_files = True
    """whether it knows a scan by the names of its files"""

    def write(self, folder: Path, ids: Sequence[str]) -> None:
        """Write a data set of these scans, each with images of its own and a segmentation."""
        raise NotImplementedError

    def given(self, folder: Path) -> Path:
        """What a person gives to `prepare` for the data set in `folder`."""
        return folder

    def unlabel(self, folder: Path, scan: ScanFiles) -> None:
        """Make it a data set in which this scan has no segmentation."""
        assert scan.label_file is not None
        scan.label_file.unlink()

    def rename(self, folder: Path, scan: ScanFiles, ending: str) -> None:
        """Let the files of a scan end so, also where a text names them."""
        assert scan.label_file is not None
        for file in {*scan.channel_files, scan.label_file}:
            new = file.with_name(file.name.replace(".nii.gz", ending))
            file.rename(new)
            for text in (folder / name for name in self.texts):
                text.write_text(text.read_text().replace(file.name, new.name))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The folder of a data set of the three scans."""
        self.write(tmp_path / "data", self.ids)
        return tmp_path / "data"

    @pytest.fixture
    def data(self, folder: Path) -> Path:
        """The data set of the three scans."""
        return self.given(folder)

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
            channels = list(zip(scan.channel_files, volumes_of(scan), strict=True))
            files = (*scan.channel_files, scan.label_file)
            assert len(set(channels)) == len(channels)
            assert scan.label_file not in scan.channel_files
            assert all(file.is_file() for file in files)
            assert all(file.name.endswith(self.kind.endings) for file in scan.channel_files)

    def test_nothing_depends_on_where_the_folder_lies(
        self, data: Path, folder: Path, tmp_path: Path
    ) -> None:
        before = find_scans(data)
        shutil.move(folder, tmp_path / "elsewhere")
        after = find_scans(self.given(tmp_path / "elsewhere"))
        assert [scan.id for scan in after.scans] == [scan.id for scan in before.scans]
        for old, new in zip(before.scans, after.scans, strict=True):
            files = zip(old.channel_files, new.channel_files, strict=True)
            assert all(
                a.relative_to(folder) == b.relative_to(tmp_path / "elsewhere") for a, b in files
            )

    def test_time_points_are_of_one_patient(self, tmp_path: Path) -> None:
        self.write(tmp_path, (*self.time_points, *self.bids, self.ids[0]))
        patients = {scan.id: scan.patient for scan in find_scans(self.given(tmp_path)).scans}
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

    def test_a_scan_without_a_segmentation_is_taken_if_wanted(
        self, data: Path, folder: Path
    ) -> None:
        self.unlabel(folder, find_scans(data).scans[1])
        wanted = find_scans(data, Selection(unlabelled=True))
        assert [scan.id for scan in wanted.scans if scan.label_file is None] == [self.ids[1]]
        assert tuple(scan.id for scan in wanted.scans) == self.ids
        catalog = find_scans(data)
        assert catalog.problems == wanted.problems == {}
        if self.takes_unlabelled:
            assert catalog == wanted
        else:
            assert tuple(scan.id for scan in catalog.scans) == (self.ids[0], self.ids[2])
            assert "--unlabelled" in catalog.left_out[self.ids[1]]
            assert self.ids[1] not in wanted.left_out

    def test_some_of_the_channels_in_the_order_that_is_wanted(self, data: Path) -> None:
        catalog = find_scans(data)
        wanted = (catalog.channels[-1], catalog.channels[0])
        some = find_scans(data, Selection(channels=wanted))
        assert some.channels == wanted
        for scan, whole in zip(some.scans, catalog.scans, strict=True):
            files = list(zip(whole.channel_files, volumes_of(whole), strict=True))
            found = list(zip(scan.channel_files, volumes_of(scan), strict=True))
            assert found == [files[-1], files[0]]
        with pytest.raises(ScanError, match="--channels") as caught:
            find_scans(data, Selection(channels=("neither",)))
        assert catalog.channels[0] in str(caught.value.expected)
        with pytest.raises(ScanError, match="--channels"):
            find_scans(data, Selection(channels=(wanted[0], wanted[0])))

    def test_a_channel_that_is_not_wanted_may_be_missing(self, data: Path) -> None:
        first = find_scans(data).scans[0]
        if len(set(first.channel_files)) == 1:
            return  # all channels lie in one file
        first.channel_files[-1].unlink()
        some = find_scans(data, Selection(channels=(find_scans(data).channels[0],)))
        assert tuple(scan.id for scan in some.scans) == self.ids
        assert some.problems == {}

    def test_lesions_and_regions_as_a_person_says_it(self, data: Path) -> None:
        catalog = find_scans(data)
        last = catalog.classes[-1]
        regions = (("everything", catalog.classes),)
        said = find_scans(data, Selection(lesion=(last,), regions=regions))
        assert (said.lesion, said.regions) == ((last,), regions)
        assert said.scans == catalog.scans
        for wrong in (
            Selection(lesion=("organ",)),
            Selection(regions=(("everything", ("organ",)),)),
            Selection(regions=((last, (last,)),)),
        ):
            with pytest.raises(ScanError) as caught:
                find_scans(data, wrong)
            assert caught.value.expected

    def test_label_values_as_a_person_says_it(self, data: Path) -> None:
        said = find_scans(data, Selection(labels="3=cyst,1=tumour,4=tumour,255=ignore"))
        assert said.classes == ("tumour", "cyst")
        for scan in said.scans:
            assert (scan.label_values, scan.aliases, scan.ignore_value) == ((1, 3), ((4, 1),), 255)
        for wrong in ("nothing", "1=a,1=b", "0=a", "x=a"):
            with pytest.raises(ScanError):
                find_scans(data, Selection(labels=wrong))

    def test_what_is_no_image_is_left_out_in_a_line(self, data: Path, folder: Path) -> None:
        catalog = find_scans(data)
        place = catalog.scans[0].channel_files[0].parent
        for name in ("Thumbs.db", "desktop.ini", "README.txt", "._README.txt", ".DS_Store"):
            (place / name).write_bytes(b"x")
        (place / f"._{catalog.scans[0].channel_files[0].name}").write_bytes(b"left by a Mac")
        after = find_scans(data)
        assert (after.scans, after.problems) == (catalog.scans, {})
        if not self.lists_its_files:
            (new,) = set(after.left_out) - set(catalog.left_out)
            assert all(name in new for name in ("Thumbs.db", "desktop.ini", "README.txt"))

    def test_endings_may_be_in_capitals(self, data: Path, folder: Path) -> None:
        self.rename(folder, find_scans(data).scans[0], ".NII.GZ")
        catalog = find_scans(data)
        assert tuple(scan.id for scan in catalog.scans) == self.ids
        assert catalog.problems == {}
        scan = catalog.scans[0]
        assert all(file.name.endswith(".NII.GZ") for file in scan.channel_files)
        assert read_scan(scan).labels_XYZ is not None
        found = self.kind().find_one(scan.channel_files, catalog.channels, catalog.classes)
        assert found is None or found.id == scan.id

    @pytest.mark.parametrize("ending", [".nrrd", ".mha"])
    def test_images_of_another_format_are_named(
        self, data: Path, folder: Path, ending: str
    ) -> None:
        self.rename(folder, find_scans(data).scans[0], ending)
        catalog = find_scans(data)
        assert tuple(scan.id for scan in catalog.scans) == self.ids[1:]
        named = [f"{name} {problem}" for name, problem in catalog.problems.items()]
        assert any(self.ids[0] in text and "convert" in text for text in named)

    def test_a_folder_that_links_to_itself_is_walked_once(self, data: Path, folder: Path) -> None:
        before = find_scans(data)
        (folder / "again").symlink_to(folder)
        after = find_scans(data)
        assert (after.scans, after.problems) == (before.scans, before.problems)

    def test_damage_in_a_text_is_named(self, data: Path, folder: Path) -> None:
        draw = random.Random(5)
        for text in (folder / name for name in self.texts):
            whole = text.read_bytes()
            for _ in range(150):
                damaged = bytearray(whole)
                for _ in range(draw.randint(1, 4)):
                    place = draw.randrange(len(whole))
                    damaged[place] = draw.choice(b'0129-.x"{}[],:;#\n\xff\x00')
                cut = draw.choice([len(whole), draw.randrange(len(whole))])
                text.write_bytes(damaged[:cut])
                error = error_of(data)
                assert error is None or error.where
                assert len(str(error)) < 3000
            text.write_bytes(whole)

    def test_one_scan_by_its_files_in_any_order(self, data: Path) -> None:
        catalog = find_scans(data)
        if not self.recognises_files:
            files = catalog.scans[0].channel_files
            assert self.kind().find_one(files, catalog.channels, catalog.classes) is None
            return
        scan = catalog.scans[1]
        for paths in (scan.channel_files, scan.channel_files[::-1]):
            found = self.kind().find_one(paths, catalog.channels, catalog.classes)
            assert found == find_scan(paths, catalog.channels, catalog.classes)
            assert found is not None
            assert volumes_of(found) == volumes_of(scan)
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
        if not self.recognises_files:
            files = catalog.scans[0].channel_files
            assert self.kind().find_one(files, catalog.channels, catalog.classes) is None
            return
        channels, classes = catalog.channels, catalog.classes
        two = [file for scan in catalog.scans[:2] for file in scan.channel_files]
        with pytest.raises(ScanError, match="2 scans"):
            self.kind().find_one(two, channels, classes)
        files = catalog.scans[0].channel_files
        if len(set(files)) > 1:
            with pytest.raises(ScanError):
                self.kind().find_one(files[:-1], channels, classes)
        with pytest.raises(ScanError, match="channels") as caught:
            self.kind().find_one(files, (*channels[:-1], "other"), classes)
        assert caught.value.expected

    def test_a_model_of_some_of_the_channels_takes_those(self, data: Path) -> None:
        catalog = find_scans(data)
        if not self.recognises_files:
            files = catalog.scans[0].channel_files
            assert self.kind().find_one(files, catalog.channels, catalog.classes) is None
            return
        scan = catalog.scans[0]
        wanted = (catalog.channels[-1], catalog.channels[0])
        found = self.kind().find_one(scan.channel_files, wanted, catalog.classes)
        assert found is not None
        files = list(zip(scan.channel_files, volumes_of(scan), strict=True))
        assert list(zip(found.channel_files, volumes_of(found), strict=True)) == [
            files[-1],
            files[0],
        ]

    def test_it_becomes_a_store(self, tmp_path: Path) -> None:
        self.write(tmp_path / "data", (*self.time_points, self.ids[0]))
        data = self.given(tmp_path / "data")
        report = prepare(data, tmp_path / "store", size=16, workers=1)
        assert (report.subjects, report.patients, report.skipped) == (3, 2, ())
        store, catalog = SliceStore.open(tmp_path / "store"), find_scans(data)
        assert (store.channels, store.classes) == (catalog.channels, catalog.classes)
        assert {store.patient(id_) for id_ in self.time_points} == {self.patient}
        parameters = store.manifest.parameters
        assert parameters.normalisation == catalog.normalisation
        if catalog.axis is not None:
            assert parameters.axis == catalog.axis
