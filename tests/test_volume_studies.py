"""3D in a study file: what is planned on a store's spacing, what is refused, what comes out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import run_in_process
from torch.autograd.graph import saved_tensors_hooks

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.cost import (
    activation_bytes,
    flops_by_part,
    forward_flops,
    parameter_count,
    training_bytes,
)
from fewscan.experiments.results import Result
from fewscan.experiments.spec import Finetune, Network, Pretrain, Score, Training
from fewscan.experiments.unet import UNet
from fewscan.harness.concerns import concerns
from fewscan.harness.plan import Plan
from fewscan.harness.planner import make_plan
from fewscan.harness.study import Architecture, Study, flat_levels
from fewscan.storage.errors import StudyError
from fewscan.storage.slices import SliceStore

MakeStudy = Callable[..., Study]
NETWORK = {"width": 4, "depth": 2, "dims": 3, "patch": [4, 8, 8]}


def of_3d(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Top-level keys of the tiny study for patches: pre-trained on all slices."""
    pretrain = {"denoise": {**document["pretrain"]["denoise"], "slices": "all"}}
    return {"network": NETWORK, "pretrain": pretrain, **changes}


@pytest.mark.parametrize(
    ("spacing_mm", "levels"),
    [
        ((1.0, 1.875, 1.875), 0),
        ((3.0, 1.875, 1.875), 0),
        ((3.75, 1.875, 1.875), 1),
        ((5.0, 1.0, 1.0), 2),
        ((8.0, 1.0, 1.2), 3),
        ((80.0, 1.0, 1.0), 4),
    ],
)
def test_flat_levels_follow_the_spacing(
    spacing_mm: tuple[float, float, float], levels: int
) -> None:
    """nnU-Net's rule: 5 mm slices of 1 mm pixels are pooled in their plane twice: 1, 2, 4 mm."""
    assert flat_levels(spacing_mm, 4) == levels
    patch = (16, 16, 16)
    assert Architecture(4, 4, 3, patch).on(spacing_mm, 32).flat_levels == levels
    assert Architecture(4, 4, 3, patch, None, 0).on(spacing_mm, 32).flat_levels == 0


def test_millimetres_become_voxels_that_can_be_halved() -> None:
    wish = Architecture(4, 3, 3, patch_mm=(50.0, 40.0, 400.0))
    assert wish.on((2.0, 1.5, 1.5), 64) == Network(4, 3, 3, (24, 28, 64), 0)
    assert wish.on((50.0, 1.5, 1.5), 64).patch == (1, 28, 64), "all levels are flat"
    assert wish.on((9.0, 1.5, 1.5), 62).patch == (6, 28, 60)
    with pytest.raises(ValueError, match="larger than a slice"):
        Architecture(4, 3, 3, (8, 16, 128)).on((1.0, 1.0, 1.0), 64)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"dims": 3}, "either patch or patch_mm"),
        ({"dims": 3, "patch": [4, 8, 8], "patch_mm": [4, 8, 8]}, "either patch or patch_mm"),
        ({"patch": [4, 8, 8]}, "dims 2 with neither"),
        ({"flat_levels": 1}, "flat_levels are for dims 3"),
        ({"dims": 4, "patch": [4, 8, 8]}, "2 or 3"),
        ({"dims": 3, "patch": [4, 8]}, "patch"),
    ],
)
def test_networks_that_cannot_be(
    network: dict[str, Any], message: str, tiny_study: MakeStudy
) -> None:
    with pytest.raises(StudyError, match=message):
        tiny_study(network={"width": 4, "depth": 2, **network})


def planned(make: MakeStudy, document: dict[str, Any], **changes: Any) -> Plan:
    return make_plan(make(**of_3d(document, **changes)))


def test_the_spec_records_patch_and_levels(
    tiny_study: MakeStudy, tiny_document: dict[str, Any]
) -> None:
    network = {"width": 4, "depth": 2, "dims": 3, "patch_mm": [4.2, 10, 10]}
    plan = planned(tiny_study, tiny_document, network=network)
    recorded = {r.spec.network for r in plan.runs if isinstance(r.spec, Pretrain | Finetune)}
    assert recorded == {Network(4, 2, 3, (4, 8, 8), 0)} == {plan.network}
    assert any("patches of 4 × 8 × 8 voxels of 1 × 1.25 × 1.25 mm" in it for it in concerns(plan))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"patch": [3, 8, 8]}, "3 slices .* multiple of 2, at least 4"),
        ({"patch": [4, 8, 32]}, "larger than a slice"),
        ({"patch": [4, 6, 2]}, "2 columns"),
    ],
)
def test_patches_that_do_not_fit_are_refused(
    network: dict[str, Any],
    message: str,
    tiny_study: MakeStudy,
    tiny_document: dict[str, Any],
) -> None:
    with pytest.raises(StudyError, match=f"(?s){message}.*network"):
        planned(tiny_study, tiny_document, network={**NETWORK, **network})


def test_patches_of_healthy_slices_alone_are_refused_where_there_are_none(
    tiny_study: MakeStudy, tiny_document: dict[str, Any]
) -> None:
    with pytest.raises(StudyError, match="no patch of 4 healthy slices to learn from"):
        make_plan(tiny_study(network=NETWORK))


def test_a_scheme_of_slices_is_refused_with_those_of_volumes(
    tiny_study: MakeStudy, tiny_document: dict[str, Any]
) -> None:
    changes = of_3d(tiny_document)
    changes["pretrain"]["denoise"]["scheme"] = {"kind": "mae"}
    with pytest.raises(StudyError, match=r"(?s)mae .*2D alone.*denoise.*inflate"):
        make_plan(tiny_study(**changes))


def with_slices(document: dict[str, Any], inits: list[Any], **own: Any) -> dict[str, Any]:
    """A 3D study with a pre-training on slices."""
    changes = of_3d(document)
    flat = {**document["pretrain"]["denoise"], "dims": 2, **own}
    changes["pretrain"] |= {"flat": flat}
    return {**changes, "finetune": {**document["finetune"], "inits": inits, "label_counts": [1]}}


@pytest.mark.parametrize(
    ("inits", "own", "message"),
    [
        (["scratch", "flat"], {}, "flat is of a 2D network, which `transfer: inflate`"),
        ([{"init": "denoise", "transfer": "inflate"}], {}, "denoise is of 3D"),
        (["scratch"], {"init": "denoise"}, "another network than denoise"),
    ],
)
def test_weights_of_another_network_are_refused(
    inits: list[Any],
    own: dict[str, Any],
    message: str,
    tiny_study: MakeStudy,
    tiny_document: dict[str, Any],
) -> None:
    with pytest.raises(StudyError, match=message):
        make_plan(tiny_study(**with_slices(tiny_document, inits, **own)))


def test_memory_that_a_device_has_not_is_refused(
    tiny_study: MakeStudy, tiny_document: dict[str, Any]
) -> None:
    plan = planned(tiny_study, tiny_document)
    spec = next(run.spec for run in plan.runs if isinstance(run.spec, Finetune))
    needs = training_bytes(spec, 4, 16)
    resources = tiny_document["resources"]
    for gb, fits in ((1.01 * needs / 1e9, True), (0.99 * needs / 1e9, False)):
        changes = of_3d(tiny_document, resources={**resources, "memory_gb": gb})
        if fits:
            make_plan(tiny_study(**changes))
        else:
            with pytest.raises(StudyError, match=r"(?s)needs about .* 4 patches of 4 × 8 × 8"):
                make_plan(tiny_study(**changes))


def kept_bytes(network: Network, batch: int, size: int) -> int:
    """What torch keeps of a batch for the backward pass, each tensor once; so that no filter is
    taken for one, the batch is as large as none has channels."""
    torch.manual_seed(0)
    model = UNet(
        3, 3, network.width, network.depth, dims=network.dims, flat_levels=network.flat_levels
    )
    seen: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim and len(tensor) == batch:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage  # alive, so that no other gets its place
        return tensor

    images = torch.rand(batch, 3, *(network.patch or (size, size)))
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(images).square().mean()
    found = sum(storage.nbytes() for storage in seen.values())
    loss.backward()
    return found


@pytest.mark.parametrize(
    "network",
    [
        Network(8, 3),
        Network(8, 2, 3, (8, 16, 16)),
        Network(8, 3, 3, (8, 16, 16), 1),
        Network(8, 3, 3, (2, 32, 32), 3),
    ],
)
def test_the_estimate_of_memory_is_what_torch_keeps(network: Network) -> None:
    """Within 4 %: what the loss keeps, and the norms' statistics, are not counted."""
    estimate = 5 * sum(activation_bytes(network, 3, 32))
    assert kept_bytes(network, 5, 32) == pytest.approx(estimate, rel=0.04)


@pytest.mark.parametrize(
    "network",
    [Network(8, 3), Network(6, 2, 3, (8, 16, 16)), Network(8, 4, 3, (8, 16, 16), 2)],
)
def test_parameters_and_arithmetic_are_counted_from_the_layers(network: Network) -> None:
    model = UNet(
        3, 2, network.width, network.depth, dims=network.dims, flat_levels=network.flat_levels
    )
    assert parameter_count(network, 3, 2) == sum(p.numel() for p in model.parameters())
    flops = 0.0

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal flops
        voxels = output[0, 0].numel()
        taps = layer.weight.shape[2:].numel()
        if isinstance(layer, torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d):
            taps = 1  # of each voxel
        flops += 2 * voxels * taps * layer.in_channels * layer.out_channels

    for layer in model.modules():
        if hasattr(layer, "in_channels"):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, *(network.patch or (32, 32))))
    assert forward_flops(network, 3, 2, 32) == pytest.approx(flops)


def test_the_published_network_has_its_parameters() -> None:
    assert parameter_count(Network(), 4, 4) == 7_703_748


def test_windows_and_tiles_are_what_a_3d_run_costs(store_path: Path) -> None:
    store = SliceStore.open(store_path)
    network = Network(4, 2, 3, (4, 8, 8))
    each = forward_flops(network, 4, 4, 16)
    training = Training(10, 5, batch_size=2)
    found = flops_by_part(Finetune("d", network, "binary", 1, training, 0), network, store)
    depths = [len(store.subjects[i].positions) for i in store.split.validation]
    patches = sum(-(-depth // 4) for depth in depths)
    assert found.training == pytest.approx(20 * 3 * each)
    assert found.validation == pytest.approx(2 * patches * each)
    from fewscan.experiments.spec import Evaluation

    score = flops_by_part(Score("d", Evaluation(), ("a",)), network, store)
    kept = [len(store.subjects[i].positions) for i in (*store.split.validation, *store.split.test)]
    windows = sum(9 * (1 + -(-(depth - 4) // 2)) for depth in kept)
    assert score.scoring == pytest.approx(windows * each)


def test_a_3d_study_from_its_file_to_the_scores(
    tiny_study: MakeStudy, tiny_document: dict[str, Any]
) -> None:
    """Pre-trained on patches and on slices, whose weights are inflated; scored and predicted."""
    inits = ["scratch", "denoise", {"init": "flat", "transfer": "inflate"}]
    changes = with_slices(tiny_document, inits)
    changes["finetune"] |= {"targets": ["multiclass"]}
    changes |= {"baselines": ["unsupervised"], "evaluation": {"nsd_tolerance_mm": None}}
    plan = make_plan(tiny_study(**changes))
    run_in_process(plan, plan.runs)
    arms = {run.place.arm.key for run in plan.grid}
    assert arms == {"scratch", "denoise", "flat (inflate)"}
    for run in plan.scores:
        test = Result.read(plan.folder_of(run)).test
        assert test
        assert all(value is None or np.isfinite(value) for value in test.values())
        assert (plan.folder_of(run).path / "cases.csv").exists()
    trained = next(r for r in plan.runs if isinstance(r.spec, Finetune) and r.spec.init)
    assert load_model(plan.folder_of(trained).model).shape.patch == (4, 8, 8)
    flat = next(r for r in plan.runs if r.spec.kind == "pretrain" and "flat" in r.name)
    assert load_model(plan.folder_of(flat).model).shape.dims == 2
    started = [
        plan.folder_of(run).committed_events()[0].attempt
        for run in plan.runs
        if isinstance(run.spec, Finetune) and run.place.arm.transfer == "inflate"
    ]
    assert all(it["loaded"] and it["replaced"] == ["last.weight", "last.bias"] for it in started)


def test_residency_changes_no_bit_of_a_3d_run(
    tiny_study: MakeStudy, tiny_document: dict[str, Any], tmp_path: Path
) -> None:
    from fewscan.experiments.devices import Devices
    from fewscan.experiments.stages import run_stage

    plan = planned(tiny_study, tiny_document)
    for kind in (Pretrain, Finetune):
        run = next(it for it in plan.runs if isinstance(it.spec, kind))
        spec = replace(run.spec, init=None) if kind is Finetune else run.spec
        found = []
        for residency in ("device", "shared", "stream"):
            folder = type(plan.folder)(tmp_path / residency).run(run.run_id)
            replace(plan.record(run), spec=spec).write(folder)
            run_stage(folder, Devices(residency=residency, node_folders=(tmp_path / "node",)))
            found.append((folder.read_result(), load_model(folder.model).state_dict()))
        for result, weights in found[1:]:
            assert result == found[0][0]
            assert all(torch.equal(weights[k], found[0][1][k]) for k in weights)
