from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fewscan.experiments.anomaly import voxels_in
from fewscan.experiments.schemes import SCHEMES
from fewscan.harness.study_file import dump_study, load_study, parse_study
from fewscan.storage.errors import StudyError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def document(**finetune: Any) -> dict[str, Any]:
    training = {"iterations": 10, "validate_every": 5}
    return {
        "name": "x",
        "store": "slices.zarr",
        "folder": "study",
        "pretrain": {"denoise": {"training": dict(training)}},
        "finetune": {"label_counts": [1, "all"], "training": training, **finetune},
    }


@pytest.mark.parametrize("name", sorted(file.name for file in EXPERIMENTS.glob("*.yaml")))
def test_the_shipped_studies_are_valid(name: str) -> None:
    study = load_study(EXPERIMENTS / name)
    assert parse_study(yaml.safe_load(dump_study(study)), "dump") == study


def test_the_paper_is_the_paper() -> None:
    """The published constants that a study file states."""
    paper = load_study(EXPERIMENTS / "paper.yaml")
    denoise = paper.pretrain["denoise"]
    assert (paper.network.width, paper.network.depth) == (64, 4)
    assert (denoise.scheme.noise.resolution, denoise.scheme.noise.std) == (16, 0.2)
    assert denoise.training.iterations == 67200 == 2100 * 32
    assert denoise.training.lr_half_period == 100 * 32
    assert (denoise.training.lr, denoise.training.weight_decay) == (1e-4, 1e-5)
    assert (denoise.training.batch_size, denoise.training.clip_norm) == (16, 0.5)
    alive = paper.pretrain["denoise_alive"]
    assert alive == replace(denoise, training=replace(denoise.training, decay_norms=False))
    assert {it.precision for it in (denoise.training, paper.finetune.training)} == {"fp32"}
    assert denoise.seeds == paper.finetune.seeds
    assert (paper.finetune.label_counts[0], paper.finetune.label_counts[-1]) == (1, 938)
    assert paper.finetune.targets == ("binary", "multiclass")
    assert voxels_in(paper.evaluation.min_component_mm3, (1.0, 240 / 128, 240 / 128)) == 20


def test_words_that_were_once_true_are_words(tmp_path: Path) -> None:
    """`on` is a key of `finetune.tune`, and YAML 1.1 reads it as true."""
    text = "a: {on: {labels: 4}}\nb: [yes, no, off]\nc: [true, False]\n"
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(document()) + text)
    with pytest.raises(StudyError) as caught:
        load_study(file)
    assert "a: unknown key" in str(caught.value)
    tune = "finetune.tune={lr: [0.001], on: {labels: 2, seed: 7}}"
    file.write_text(yaml.safe_dump(document()))
    found = load_study(file, [tune]).finetune.tune
    assert found is not None
    assert (found.on.labels, found.on.seed) == (2, 7)


def test_a_mistyped_setting_of_a_scheme_is_named_with_its_place() -> None:
    wrong = document()
    scheme = {"kind": "denoise", "noise": {"resoluton": 4}, "nois": 3}
    wrong["pretrain"]["denoise"]["scheme"] = scheme
    with pytest.raises(StudyError) as caught:
        parse_study(wrong, "my.yaml")
    text = str(caught.value)
    assert "pretrain.denoise.scheme.nois: unknown key; did you mean 'noise'?" in text
    place = "pretrain.denoise.scheme.noise.resoluton"
    assert f"{place}: unknown key; did you mean 'resolution'?" in text


def test_a_key_of_an_earlier_version_is_told_its_new_name_and_unit() -> None:
    wrong = document() | {"evaluation": {"min_component_voxels": 20}}
    with pytest.raises(StudyError, match=r"it is min_component_mm3 now, a volume: 20 .* 70\.3125"):
        parse_study(wrong, "my.yaml")


def test_every_mistake_is_named_at_once_with_the_nearest_key() -> None:
    wrong = document(seed=[0], targets=["binry"])
    wrong["pretrain"]["denoise"]["training"]["iteration"] = 5
    wrong["stor"] = wrong.pop("store")
    with pytest.raises(StudyError) as caught:
        parse_study(wrong, "my.yaml")
    text = str(caught.value)
    assert "finetune.seed: unknown key; did you mean 'seeds'?" in text
    assert "pretrain.denoise.training.iteration: unknown key; did you mean 'iterations'?" in text
    assert "stor: unknown key; did you mean 'store'?" in text
    assert "store: is missing" in text
    assert "finetune.targets.0: Input should be 'binary' or 'multiclass', found 'binry'" in text
    assert "where: my.yaml" in text
    assert "remedy:" in text


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"label_counts": []}, "at least one value"),
        ({"label_counts": [1, 1]}, "none twice"),
        ({"label_counts": [0]}, "whole number from 1"),
        ({"label_counts": ["most"]}, "found 'most'"),
        ({"seeds": [0, 0]}, "none twice"),
        ({"training": {"iterations": 0, "validate_every": 5}}, "iterations is 0"),
        ({"training": {"iterations": 5, "validate_every": 5, "lr": -1}}, "lr is -1"),
    ],
)
def test_values_without_sense_are_refused(finetune: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(document(**finetune), "my.yaml")


CITED = {"label": "theirs", "citation": "A. Author, 2001, Table 1", "metric": "pooled_ap"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**CITED}, "either a value or points"),
        ({**CITED, "value": 0.5, "points": [[1, 0.5]]}, "either a value or points"),
        ({**CITED, "value": 76}, "write 0.76 for 76 %"),
        ({**CITED, "points": [[1, 0.5], [1, 0.6]]}, "each number of scans once"),
        ({**CITED, "value": 0.5, "citation": " "}, "must say something"),
        ({**CITED, "value": 0.5, "metric": "dice"}, "pooled_ap"),
        ({**CITED, "value": 0.5, "cite": "x"}, "did you mean 'citation'"),
    ],
)
def test_published_figures_are_checked(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(document() | {"published": [entry]}, "x")


def test_published_figures_survive_a_dump() -> None:
    entries = [{**CITED, "value": 0.5}, {**CITED, "points": [[1, 0.5], [8, 0.6]]}]
    study = parse_study(document() | {"published": entries}, "x")
    assert parse_study(yaml.safe_load(dump_study(study)), "dump") == study


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"finetune": {"devices": 0}}, r"resources.finetune.devices: .* greater than 0, found 0"),
        ({"score": {"cpus": 0}}, r"resources.score.cpus: .* greater than 0"),
        ({"finetune": {"gpu_share": 1.5}}, r"resources.finetune.gpu_share: .* equal to 1, found"),
        ({"finetune": {"gpu_share": 0}}, r"resources.finetune.gpu_share: .* greater than 0"),
        ({"system_metrics_every_s": 0}, r"resources.system_metrics_every_s: .* greater than 0"),
        ({"score": {"device": 1}}, "resources.score.device: unknown key; did you mean 'devices'"),
        ({"niceness": -1}, r"resources.niceness: .* greater than or equal to 0, found -1"),
        ({"niceness": 20}, r"resources.niceness: .* less than or equal to 19, found 20"),
    ],
)
def test_what_a_run_gets_has_a_range(resources: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(document() | {"resources": resources}, "my.yaml")


def test_ddp_needs_whole_devices() -> None:
    wrong = document() | {"resources": {"finetune": {"devices": 2, "gpu_share": 0.5}}}
    with pytest.raises(StudyError, match="DDP needs whole GPUs"):
        parse_study(wrong, "my.yaml")


def test_paths_are_relative_to_the_file_and_those_of_overrides_to_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = document()
    values["pretrain"]["denoise"]["store"] = "../unlabelled.zarr"
    (tmp_path / "studies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "studies" / "study.yaml"
    file.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (file, Path("../studies/study.yaml")):
        study = load_study(name, ["folder=mine"])
        assert study.store == tmp_path / "studies" / "slices.zarr"
        assert study.pretrain["denoise"].store == tmp_path / "unlabelled.zarr"
        assert study.folder == tmp_path / "elsewhere" / "mine"


def test_a_study_of_when_paths_began_elsewhere_is_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "study").mkdir()
    file = tmp_path / "experiments" / "study.yaml"
    file.write_text(yaml.safe_dump(document()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"write folder: \.\./study"):
        load_study(file)
    file.write_text(yaml.safe_dump({**document(), "folder": "../study"}))
    assert load_study(file).folder == tmp_path / "study"


def test_overrides_change_and_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(document()))
    study = load_study(path, ["finetune.seeds=[3]", "network.width=8", "finetune.training.lr=1e-3"])
    assert study.finetune.seeds == (3,)
    assert study.network.width == 8
    assert study.finetune.training.lr == 1e-3
    with pytest.raises(StudyError, match="did you mean 'seeds'"):
        load_study(path, ["finetune.seed=[3]"])
    with pytest.raises(StudyError, match=r"cannot understand the override 'seeds'"):
        load_study(path, ["seeds"])
    with pytest.raises(StudyError, match="holds the value 'x'"):
        load_study(path, ["name.first=1"])


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "cannot be read"), ("- 1\n", "holds list, not a mapping")]
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError, match=message):
        load_study(path)
    with pytest.raises(StudyError, match="No such file"):
        load_study(tmp_path / "other.yaml")


def test_slurm_settings_are_checked_and_survive_a_dump() -> None:
    slurm = {"partition": "gpu", "gpus": 2, "max_workers": 8, "setup": ["module load cuda"]}
    wish = document() | {"slurm": slurm | {"sbatch": {"mail-type": "FAIL"}}}
    study = parse_study(wish, "given")
    assert study.slurm is not None
    assert study.slurm.setup == ("module load cuda",)
    assert parse_study(yaml.safe_load(dump_study(study)), "dump") == study
    with pytest.raises(StudyError, match="did you mean 'partition'"):
        parse_study(document() | {"slurm": {"partitions": "gpu"}}, "given")
    with pytest.raises(StudyError, match="min_workers 3 is more than max_workers 1"):
        parse_study(document() | {"slurm": {"min_workers": 3}}, "given")


@given(
    seeds=st.lists(st.integers(0, 100), min_size=1, max_size=4, unique=True),
    counts=st.lists(st.integers(1, 900) | st.just("all"), min_size=1, max_size=4, unique=True),
    lr=st.floats(1e-8, 1.0),
)
def test_a_dumped_study_reads_back_the_same(seeds: list, counts: list, lr: float) -> None:
    wish = document(seeds=seeds, label_counts=counts)
    wish["finetune"]["training"]["lr"] = lr
    study = parse_study(wish, "given")
    assert parse_study(yaml.safe_load(dump_study(study)), "dump") == study


def test_published_metrics_are_those_of_the_panels() -> None:
    entry = {"label": "a", "citation": "b", "metric": "accuracy", "value": 0.5}
    expected = "expected one of: pooled_ap, pooled_best_dice, class_dice_mean"
    with pytest.raises(StudyError, match=expected):
        parse_study(document() | {"published": [entry]}, "x")


@pytest.mark.parametrize("kind", SCHEMES)
def test_any_scheme_is_named_by_its_kind(kind: str, tiny_document: dict[str, Any]) -> None:
    training = tiny_document["pretrain"]["denoise"]["training"]
    wish = {"other": {"scheme": {"kind": kind}, "training": training}}
    document = tiny_document | {"pretrain": wish}
    document["finetune"] = {**document["finetune"], "inits": ["scratch", "other"]}
    study = parse_study(document, "given")
    assert study.pretrain["other"].scheme == SCHEMES[kind]()
    assert parse_study(yaml.safe_load(dump_study(study)), "dump") == study


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ({"kind": "mae", "ratios": 0.5}, "did you mean 'ratio'"),
        ({"kind": "mae", "ratio": 2}, "ratio is 2"),
        ({"kind": "inpaint", "fill": "black"}, "'zero', 'noise' or 'swap'"),
        ({"kind": "denoise", "noise": {"pitch_mm": 0}}, "pitch_mm is 0"),
    ],
)
def test_mistakes_in_a_scheme_are_named(
    scheme: dict[str, Any], expected: str, tiny_document: dict[str, Any]
) -> None:
    wish = tiny_document["pretrain"]["denoise"] | {"scheme": scheme}
    with pytest.raises(StudyError, match=expected):
        parse_study(tiny_document | {"pretrain": {"denoise": wish}}, "wrong")


def test_noise_alone_is_the_published_scheme(tiny_document: dict[str, Any]) -> None:
    long = parse_study(tiny_document, "long")
    wish = tiny_document["pretrain"]["denoise"]
    short = {key: value for key, value in wish.items() if key != "scheme"}
    short["noise"] = wish["scheme"]["noise"]
    assert parse_study(tiny_document | {"pretrain": {"denoise": short}}, "short") == long
    both = {"denoise": wish | {"noise": {"resolution": 2}}}
    with pytest.raises(StudyError, match=r"pretrain\.denoise\.noise: unknown key"):
        parse_study(tiny_document | {"pretrain": both}, "both")
    wrong = {"denoise": short | {"noise": {"resolution": 0}}}
    with pytest.raises(StudyError, match="resolution"):
        parse_study(tiny_document | {"pretrain": wrong}, "wrong")
