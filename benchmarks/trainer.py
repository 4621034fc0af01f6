"""How fast `tasks.training.trainer.fit` is, next to a plain DataLoader loop and to a bare loop over tensors.

All three train the same network on the same images with the same batch size, optimiser and augmentation, on one thread,
in one process and in turns; the table shows medians over the turns. The memory layout is the task's own for `fit` and
the bare loop, and PyTorch's default for the DataLoader loop.

    python benchmarks/trainer.py --data-root DIR [--samples 6000] [--repetitions 7] [--json]

Goals: at least 1.7 times the samples per second of the DataLoader loop without augmentation and 2.5 times with random
crops and flips; a step of at most 1.1 times the bare loop's. Exit status 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

from assay.tasks.data.splits import Labelled
from assay.tasks.errors import AssayError
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import build_optimizer, fit

AGAINST_LOADER = {"none": 1.7, "crop-flip": 2.5}
AGAINST_BARE = 1.1
PAD = 4


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Samples the way torchvision's own data sets give them: a PIL image, then transforms, normalisation among them."""

    def __init__(self, data: Labelled, augment: str, normalize: nn.Module) -> None:
        steps: list[object] = []
        if augment == "crop-flip":
            steps = [transforms.RandomCrop(data.inputs.shape[-1], padding=PAD), transforms.RandomHorizontalFlip()]
        mean, deviation = (normalize.get_buffer(name).flatten() for name in ("mean", "std"))
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, deviation)])
        self.data = data.to(torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = self.data.inputs[index].numpy()
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        return self.transform(image), int(self.data.labels[index])


def with_fit(model: nn.Module, data: Labelled, schedule: Schedule) -> None:
    """One epoch of ours."""
    fit(model, data, Recipe(), schedule, seed="benchmark")


def with_loader(model: nn.Module, data: Labelled, schedule: Schedule) -> None:
    """One epoch of a plain DataLoader loop, with the optimiser as PyTorch builds it by default."""
    optimizer = torch.optim.Adam(model.parameters(), schedule.lr, weight_decay=schedule.weight_decay)
    dataset: TensorDataset | Images = TensorDataset(data.inputs, data.labels)
    if data.inputs.dim() == 4:
        # Such loops normalise in the transforms, so their network must not do it again.
        normalize, model.normalize = model.get_submodule("normalize"), nn.Identity()
        dataset = Images(data, schedule.augment, normalize)
    loader = DataLoader(dataset, schedule.batch_size, shuffle=True)
    model.train()
    device = data.labels.device
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()


def bare(model: nn.Module, data: Labelled, schedule: Schedule) -> None:
    """One epoch of the least Python that trains on tensors, in our layout: no streams, no counting, no curves."""
    layout = torch.channels_last if schedule.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = build_optimizer(model.parameters(), schedule)
    order = torch.randperm(len(data))
    size = data.inputs.shape[-1]
    padded = F.pad(data.inputs, (PAD, PAD, PAD, PAD)) if schedule.augment == "crop-flip" else None
    windows = None if padded is None else padded.unfold(2, size, 1).unfold(3, size, 1)
    model.train()
    for index in order.split(schedule.batch_size):
        if windows is None:
            images = data.inputs[index]
        else:
            down, right = torch.randint(0, 2 * PAD + 1, (2, len(index)))
            images = windows[index, :, down, right]
            images = torch.where(torch.rand(len(index), 1, 1, 1) < 0.5, images.flip(3), images)
        optimizer.zero_grad()
        inputs = images.float().div_(255).contiguous(memory_format=layout)
        F.cross_entropy(model(inputs), data.labels[index]).backward()
        optimizer.step()


LOOPS: dict[str, Callable[[nn.Module, Labelled, Schedule], None]] = {
    "fit": with_fit,
    "loader": with_loader,
    "bare": bare,
}


@dataclass(frozen=True)
class Row:
    """One augmentation's outcome: samples per second, milliseconds per step, and the two ratios."""

    augment: str
    fit_rate: float
    loader_rate: float
    bare_rate: float
    fit_step_ms: float
    bare_step_ms: float
    against_loader: float
    loader_goal: float
    against_bare: float
    bare_goal: float

    @property
    def passed(self) -> bool:
        """Whether both goals are met."""
        return self.against_loader >= self.loader_goal and self.against_bare <= self.bare_goal


def measure(task: Task, data: Labelled, augment: str, repetitions: int) -> Row:
    """Time one epoch of each loop in turns and compare the medians."""
    schedule = task.schedule.but(epochs=1, augment=augment)
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    warm_up = data.take(slice(0, 4 * schedule.batch_size))
    for loop in LOOPS.values():
        loop(task.build("benchmark"), warm_up, schedule)
    for turn in range(repetitions):
        names = list(LOOPS)
        for name in names[turn % 3 :] + names[: turn % 3]:
            model = task.build("benchmark")
            started = time.perf_counter()
            LOOPS[name](model, data, schedule)
            seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    # A ratio within each turn, because the machine's speed drifts between turns.
    loader = statistics.median(b / a for a, b in zip(seconds["fit"], seconds["loader"], strict=True))
    plain = statistics.median(a / b for a, b in zip(seconds["fit"], seconds["bare"], strict=True))
    steps = -(-len(data) // schedule.batch_size)
    return Row(
        augment=augment,
        fit_rate=len(data) / middle["fit"],
        loader_rate=len(data) / middle["loader"],
        bare_rate=len(data) / middle["bare"],
        fit_step_ms=1e3 * middle["fit"] / steps,
        bare_step_ms=1e3 * middle["bare"] / steps,
        against_loader=loader,
        loader_goal=AGAINST_LOADER[augment],
        against_bare=plain,
        bare_goal=AGAINST_BARE,
    )


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(f"{'augment':<10} {'fit/s':>8} {'loader/s':>9} {'bare/s':>8} {'fit ms':>7} {'bare ms':>8}", end="")
    print(f" {'x loader':>9} {'goal':>6} {'x bare':>7} {'goal':>7}")
    for row in rows:
        print(f"{row.augment:<10} {row.fit_rate:>8.0f} {row.loader_rate:>9.0f} {row.bare_rate:>8.0f}", end="")
        print(f" {row.fit_step_ms:>7.2f} {row.bare_step_ms:>8.2f}", end="")
        print(f" {row.against_loader:>9.2f} {'>=' + format(row.loader_goal, '.1f'):>6}", end="")
        print(f" {row.against_bare:>7.2f} {'<=' + format(row.bare_goal, '.1f'):>7}  {'pass' if row.passed else 'FAIL'}")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder with the data sets (default: $ASSAY_DATA)")
    parser.add_argument("--task", default="mnist-lenet5", help="task key (default: mnist-lenet5)")
    parser.add_argument("--samples", type=int, default=6000, help="training images used (default: 6000)")
    parser.add_argument("--repetitions", type=int, default=7, help="turns of the three loops (default: 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        task = resolve_task(arguments.task, "laptop", {"samples": arguments.samples, "optimizer": "adam"})
        # All that is asked for trains: the split into parties does not matter for speed.
        splits = task.data(arguments.data_root, 0, torch.device("cpu"))
    except AssayError as why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    data = Labelled.join(splits.owner.train, splits.owner.held_out, splits.attacker.train, splits.attacker.held_out)
    rows = [measure(task, data, augment, arguments.repetitions) for augment in AGAINST_LOADER]
    if arguments.json:
        facts = {"task": task.key, "samples": len(data), "threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps({**facts, "rows": [{**asdict(row), "passed": row.passed} for row in rows]}))
    else:
        print(
            f"{task.key}, {len(data)} samples, batch {task.schedule.batch_size}, one thread, torch {torch.__version__}"
        )
        show(rows)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
