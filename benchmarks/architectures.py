"""How fast `tasks.training.trainer.fit` trains each architecture: against a DataLoader loop and the peak, and in bf16.

    python benchmarks/architectures.py [KEY ...] [--batch 32] [--steps 3] [--repetitions 3] [--device cpu] [--json]

One thread on the CPU; random inputs of the shape of a data set that the papers train the network on, so no data set is
needed. A column each: samples per second of `fit`; the share that its products (three times the forward pass's) are of
what a large float32 matrix product reaches here; `fit` over the DataLoader loop of `benchmarks/trainer.py` (no
augmentation); bf16 with channels innermost over float32 with channels outermost, for convolutional networks.

Goals: `fit` is nowhere slower than the DataLoader loop (0.95 at least, for noise); where the device has matrix units
for bf16 (tensor cores, AMX tiles), convolutional networks of some size gain at least 1.8 times. A processor with dot
products of bf16 vectors alone (AVX-512) is no such device: a large product gains there what the first line says, and
depthwise convolutions and the optimizer, which move memory, gain nothing. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from trainer import with_fit, with_loader

from assay.orchestrator.planning.cost import size
from assay.tasks.data.splits import Labelled
from assay.tasks.networks.architectures import ARCHITECTURES, kind_of
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.schedule import Schedule

SHAPES = {"conv2-fc2": "mnist", "deepid": "youtube_faces", "lenet5": "mnist", "conv6-fc3": "gtsrb", "lstm": "trec"}
LEAST_AGAINST_LOADER = 0.95
LEAST_BF16 = 1.8
SMALL_FLOPS = 2e7  # of a forward pass; below it memory and Python, not products, set the pace


@dataclass(frozen=True)
class Row:
    """One architecture's outcome; `bf16` is None where there are no convolutions."""

    key: str
    forward_mflops: float
    rate: float
    peak_share: float
    against_loader: float
    bf16: float | None
    bf16_goal: float | None

    @property
    def passed(self) -> bool:
        """Whether the goals are met."""
        return self.against_loader >= LEAST_AGAINST_LOADER and (self.bf16 or 0) >= (self.bf16_goal or 0)


def task_of(key: str) -> Task:
    """Return a task whose inputs the architecture takes."""
    default = "trec" if kind_of(key) == "text" else "mnist" if key.startswith("mlp") else "cifar10"
    return resolve_task(f"{SHAPES.get(key, default)}-{key}", "laptop", {})


def samples(task: Task, count: int, device: torch.device) -> Labelled:
    """Return random samples of a task's shape."""
    draws = torch.Generator().manual_seed(0)
    high, dtype = (task.info.vocabulary, torch.int64) if task.info.kind == "text" else (256, torch.uint8)
    inputs = torch.randint(0, high, (count, *task.shape), generator=draws, dtype=dtype)
    return Labelled(inputs, torch.randint(0, task.classes, (count,), generator=draws)).to(device)


def has_bf16_matrix_units(device: torch.device) -> bool:
    """Return whether the device multiplies tiles of bf16 matrices in one instruction."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the floating-point operations per second of a large matrix product."""
    one, other = torch.rand(2, 1024, 1024, device=device, dtype=dtype)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(4):
            one @ other
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 4 * 2 * 1024**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def race(
    task: Task, data: Labelled, loops: dict[str, Callable[[nn.Module], None]], turns: int
) -> dict[str, list[float]]:
    """Return each loop's seconds per turn, the loops in changing order, after a warm-up."""
    device = data.labels.device
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(-1, turns):
        names = list(loops)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            model = task.build("benchmark").to(device)
            started = time.perf_counter()
            loops[name](model)
            _wait(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(key: str, batch: int, steps: int, turns: int, device: torch.device, top: float) -> Row:
    """Measure one architecture."""
    task = task_of(key)
    data = samples(task, batch * steps, device)
    own = task.schedule.but(epochs=1, batch_size=batch, augment="none", optimizer="adam", lr=1e-4, precision="fp32")
    flops = size(task.dataset, task.model).flops
    convolutional = any(isinstance(module, nn.Conv2d) for module in task.build("benchmark").modules())

    def trains(schedule: Schedule) -> Callable[[nn.Module], None]:
        return lambda net: with_fit(net, data, schedule)

    loops = {"fit": trains(own), "loader": lambda net: with_loader(net, data, own)}
    if convolutional:
        loops["fp32"] = trains(own.but(channels_last=False))
        loops["bf16"] = trains(own.but(channels_last=True, precision="bf16"))
    seconds = race(task, data, loops, turns)
    rate = len(data) / statistics.median(seconds["fit"])

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))

    large = flops >= SMALL_FLOPS and has_bf16_matrix_units(device)
    return Row(
        key=task.key,
        forward_mflops=flops / 1e6,
        rate=rate,
        peak_share=3 * flops * rate / top,
        against_loader=ratio("loader", "fit"),
        bf16=ratio("fp32", "bf16") if convolutional else None,
        bf16_goal=LEAST_BF16 if convolutional and large else None,
    )


def show(row: Row) -> None:
    """Print one line of the table."""
    bf16 = f"{row.bf16:.2f}" if row.bf16 is not None else "-"
    goal = f">={row.bf16_goal:.1f}" if row.bf16_goal is not None else ""
    print(f"{row.key:<26} {row.forward_mflops:>9.1f} {row.rate:>9.0f} {row.peak_share:>7.0%}", end="")
    print(f" {row.against_loader:>9.2f} {bf16:>6} {goal:>6}  {'pass' if row.passed else 'FAIL'}", flush=True)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", metavar="KEY", help="architectures (default: all)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="training steps per turn")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of the loops")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    if unknown := set(arguments.keys) - set(ARCHITECTURES):
        print(f"error: unknown architectures {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    top, top_bf16 = peak(device), peak(device, torch.bfloat16)
    if not arguments.json:
        print(f"batch {arguments.batch}, {device}, one thread, torch {torch.__version__}, ", end="")
        print(f"peak {top / 1e9:.0f} GFLOP/s, in bf16 {top_bf16 / top:.2f} times as much")
        print(f"{'':<26} {'MFLOP':>9} {'fit/s':>9} {'of peak':>7} {'x loader':>9} {'x bf16':>6} {'goal':>6}")
    rows = []
    for key in arguments.keys or sorted(ARCHITECTURES):
        rows.append(measure(key, arguments.batch, arguments.steps, arguments.repetitions, device, top))
        if not arguments.json:
            show(rows[-1])
    if arguments.json:
        values = [{**asdict(row), "passed": row.passed} for row in rows]
        print(json.dumps({"peak": top, "peak_bf16": top_bf16, "rows": values}))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
