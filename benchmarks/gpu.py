"""What a GPU makes of a training: `python -m benchmarks.gpu`, in less than eight minutes.

Needs torch, numpy, zarr's codecs and this repository: no ray, no mlflow, no package to install. The
figures go into `benchmarks/results/gpu.json`, with the device and the versions; nothing is
estimated. On a CPU (`--device cpu --quick`) it shows that it runs; `--out` alone is written there.

Slices are made up, in the shapes of BraTS at 128². Every way of training is first compared with the
plain one, then timed in turn with it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_sharing, published_training, results
from benchmarks.gpu_bench import Bench
from benchmarks.gpu_findings import findings
from benchmarks.gpu_steps import Variant, variants
from benchmarks.loops import Work, loop, made_up_slices
from fewscan.experiments.anomaly import PUBLISHED_MM, reconstruction_anomaly
from fewscan.experiments.cost import forward_flops
from fewscan.experiments.data import SliceData
from fewscan.experiments.residency import InMemory
from fewscan.experiments.spec import Network
from fewscan.experiments.unet import UNet

BUDGET_S = 330.0
"""After this no further part is begun; those left out are named in the results."""
Figures = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    wish = parser.parse_args(arguments)
    if wish.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no CUDA device; try --device cpu --quick")
    figures = measure(wish.device, quick=wish.quick)
    lines = findings(figures)
    if wish.out or not wish.quick:
        results.write("gpu", lines, name_of(wish.device), wish.out, figures=figures)
    if not (wish.out or wish.quick):
        results.write_between_marks(results.README, results.table())
    for line in lines:
        print(f"{line.what}: {results.in_unit(line.result, line.unit)}  {line.here}")


def measure(device: str, quick: bool) -> Figures:
    """All figures, a part at a time."""
    begun = time.monotonic()
    work = Work(width=4, size=32, batch_size=2, slices=8) if quick else Work(slices=512)
    bench = Bench(device, work, seconds=0.0 if quick else 2.0, rounds=1 if quick else 3)
    bench.devices.set_up()
    figures: Figures = {"work": vars(work)}
    left_out = []
    for part in PARTS:
        if time.monotonic() - begun > BUDGET_S:
            left_out.append(part.__name__)
            continue
        # One way that does not run here must not cost the figures of the others.
        try:
            figures[part.__name__] = part(bench)
        except Exception as error:
            figures[part.__name__] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{part.__name__}: {figures[part.__name__]}", file=sys.stderr, flush=True)
    return figures | {"left_out": left_out, "seconds": round(time.monotonic() - begun, 1)}


def matmul(bench: Bench) -> Figures:
    """The measured rate of a bf16 matrix product, of which the steps get a share."""
    size = 8192 if bench.on_gpu else 128
    a, b = (torch.randn((size, size), device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.seconds_each(lambda: a @ b)
    return {"size": size, "bf16_tflops": 2 * size**3 / seconds / 1e12}


def training_step(bench: Bench) -> Figures:
    """Slices per second of each way of training, its ratio to the published loop, its share of the
    matrix rate, and how far its loss is from that of the plain way after the same steps."""
    work = bench.work
    images, _ = made_up_slices(work.slices, work.size)
    batches = list(images.float().split(work.batch_size))
    plain = published_training.training_step(
        published_training.network(work.width).to(bench.device), batches, bench.device
    )
    ours, failed = runnable(bench)
    differences = {name: _difference(variant, ours) for name, variant in ours.items()}
    numbers = iter(range(10**9))
    ways: dict[str, Callable[[], object]] = {"published fp32": lambda: plain(next(numbers))}
    ways |= {name: variant.step for name, variant in ours.items()}
    seconds = bench.in_turn(ways)
    published = seconds["published fp32"]
    flops = 3 * work.batch_size * _forward_flops(work)
    rate = matmul(bench)["bf16_tflops"]
    return {
        name: {
            "slices_per_s": work.batch_size / statistics.median(each),
            "times_published": [p / e for p, e in zip(published, each, strict=True)],
            "share_of_bf16_matmul": flops / statistics.median(each) / 1e12 / rate,
            "loss_differs_by": differences.get(name),
        }
        for name, each in seconds.items()
    } | failed


def runnable(bench: Bench) -> tuple[dict[str, Variant], Figures]:
    """The ways that run here, each after its first steps, and why the others do not."""
    running, failed = {}, {}
    for name, make in variants(bench.work, bench.devices, bench.folder).items():
        try:
            variant = make()
            variant.first_losses = [float(variant.step()) for _ in range(3)]
            running[name] = variant
        except Exception as error:
            failed[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    return running, failed


def _difference(variant: Variant, others: dict[str, Variant]) -> float:
    plain = others["bf16 eager"].first_losses
    return max(abs(a - b) / abs(b) for a, b in zip(variant.first_losses, plain, strict=True))


def _forward_flops(work: Work) -> float:
    return forward_flops(Network(work.width), 4, 4, work.size)


def device_idle(bench: Bench) -> Figures:
    """Share of the time in which no kernel ran, and whether a step waited for the device."""
    if not bench.on_gpu:
        return {"not_measured": "needs a GPU"}
    return {kind: _idle(bench, kind) for kind in ("pretrain", "finetune")}


def _idle(bench: Bench, kind: str) -> Figures:
    made = loop(kind, bench.work, "auto", bench.devices, bench.folder / f"idle-{kind}")
    for _ in range(5):
        made.step()
    bench.wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.step()
        waits = "no"
    except RuntimeError as error:
        waits = str(error)[:300]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    steps = 30
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        bench.wait()
        for _ in range(steps):
            made.step()
        bench.wait()
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in profile.events()
        if e.device_type.name == "CUDA"
    )
    return {"idle_share": 1 - _busy(spans) / (spans[-1][1] - spans[0][0]), "step_waits": waits}


def _busy(spans: list[tuple[float, float]]) -> float:
    """Time covered by at least one span."""
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def same_bits(bench: Bench) -> Figures:
    """Whether two runs of five steps end with the same weights."""
    return {kind: _same_bits(bench, kind) for kind in ("pretrain", "finetune")}


def _same_bits(bench: Bench, kind: str) -> bool:
    ends = []
    for attempt in range(2):
        folder = bench.folder / f"bits-{kind}{attempt}"
        made = loop(kind, bench.work, "auto", bench.devices, folder)
        for _ in range(5):
            made.step()
        ends.append({name: tensor.cpu() for name, tensor in made.model.state_dict().items()})
    return all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def residency(bench: Bench) -> Figures:
    """Slices per second with the slices on the device, and in pinned memory of the host."""
    made = loop("pretrain", bench.work, "auto", bench.devices, bench.folder / "residency")
    images, labels = made_up_slices(bench.work.slices, bench.work.size)
    if bench.on_gpu:
        images, labels = images.pin_memory(), labels.pin_memory()
    on_device = made.task.training  # type: ignore[attr-defined]
    host = SliceData(InMemory(images, labels), on_device.table, torch.float32, bench.device)

    def step_from(data: SliceData) -> Callable[[], None]:
        def step() -> None:
            made.task.training = data  # type: ignore[attr-defined]
            made.step()

        return step

    seconds = bench.in_turn({"device": step_from(on_device), "host": step_from(host)})
    return {n: bench.work.batch_size / statistics.median(s) for n, s in seconds.items()}


@torch.no_grad()
def evaluation(bench: Bench) -> Figures:
    """Slices per second of the anomaly score of the whole network, in float32, by batch size."""
    model = UNet(width=bench.work.width).to(bench.device).eval()
    found = {}
    for batch_size in (2,) if not bench.on_gpu else (64, 256, 512):
        images, _ = made_up_slices(batch_size, bench.work.size)
        images = images.to(bench.device).float()

        def score(images: Tensor = images) -> Tensor:
            return reconstruction_anomaly(images, model(images), PUBLISHED_MM)

        found[str(batch_size)] = batch_size / bench.seconds_each(score)
    return found


def sharing(bench: Bench) -> Figures:
    """Slices per second of several trainings on one device: processes against one batched model."""
    seconds = 0.2 if not bench.seconds else 6.0
    counts = (2,) if not bench.on_gpu else (1, 2, 4, 8)
    return gpu_sharing.measure(bench.work, bench.device, counts, seconds)


PARTS: tuple[Callable[[Bench], Figures], ...] = (
    matmul,
    training_step,
    device_idle,
    same_bits,
    residency,
    evaluation,
    sharing,
)


def name_of(device: str) -> str:
    """What the device is called."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


if __name__ == "__main__":
    main()
