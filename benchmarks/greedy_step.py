"""What greedy residuals add to a training step, for either of the two ways to take it.

    python benchmarks/greedy_step.py [--task cifar10-resnet18] [--batch 64] [--steps 4] [--repetitions 5] [--device cpu]
        [--json]

One thread on the CPU; random images of the task's shape, so no data set is needed. The unmarked network and the two
marked ones train in turns; a turn's ratio is of times that lie side by side, the table shows the median and the span.

Goal: a marked step takes at most 1.15 times an unmarked one. Exit status 1 if it is missed.

Met on the CPU (ResNet-18, batches of 64: joint 1.00, separate 1.04). A fast GPU waits for Python there, some 8 ms a
step, and then counts kernels instead of sums: one H200, medians of 12 turns, joint 1.16 and 1.19, separate 1.28 and
1.19; one H100, joint 1.15.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from assay.methods.greedy_residuals import GreedyResiduals
from assay.orchestrator.work.environment import require
from assay.tasks.data.splits import Labelled, Party
from assay.tasks.errors import AssayError, BadInput
from assay.tasks.lab import Lab
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.trainer import fit

GOAL = 1.15


STEPS: tuple[Literal["joint", "separate"], ...] = ("joint", "separate")


@dataclass(frozen=True)
class Row:
    """One way to take the step: milliseconds, and the ratios to the unmarked step over the turns."""

    step: str
    step_ms: float
    ratio: float
    least: float
    largest: float

    @property
    def passed(self) -> bool:
        """Whether the goal is met."""
        return self.ratio <= GOAL


def marked(task: Task, data: Labelled, step: Literal["joint", "separate"], scratch: Path) -> Recipe:
    """Return the recipe of an owner with the paper's settings."""
    method = GreedyResiduals(GreedyResiduals.Config(step=step))
    lab = Lab(
        task=task, data=Party(data, data), role="owner", plugin=method.key, seed=0, device=data.labels.device,
        scratch=scratch / step, train_seed="benchmark",
    )  # fmt: skip
    return method.recipe(lab, method.draw(lab))


def measure(task: Task, steps: int, repetitions: int, device: torch.device, scratch: Path) -> list[Row]:
    """Train the three in turns, each for some steps."""
    count = steps * task.schedule.batch_size
    images = torch.randint(0, 256, (count, *task.shape), dtype=torch.uint8)
    data = Labelled(images, torch.randint(0, task.classes, (count,))).to(device)
    recipes = {"unmarked": Recipe()}
    recipes |= {step: marked(task, data, step, scratch) for step in STEPS}
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for turn in range(repetitions + 1):
        for name, recipe in recipes.items():
            model = task.build("benchmark").to(device)
            started = time.perf_counter()
            fit(model, data, recipe, task.schedule, seed="benchmark")  # ends by reading the weights: nothing is pending
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    rows = []
    for step in STEPS:
        ratios = [a / b for a, b in zip(seconds[step], seconds["unmarked"], strict=True)]
        step_ms = 1e3 * statistics.median(seconds[step]) / steps
        rows.append(Row(step, step_ms, statistics.median(ratios), min(ratios), max(ratios)))
    return rows


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cifar10-resnet18", help="task key (default: cifar10-resnet18)")
    parser.add_argument("--batch", type=int, default=64, help="batch size (default: 64)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn (default: 4)")
    parser.add_argument("--repetitions", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        require(arguments.device)
        task = resolve_task(arguments.task, "paper", {"epochs": 1, "batch_size": arguments.batch, "augment": "none"})
        if task.info.kind != "image":
            raise BadInput(f"--task: {task.key} holds {task.info.kind}; the benchmark draws images")
        with tempfile.TemporaryDirectory() as scratch:
            rows = measure(task, arguments.steps, arguments.repetitions, torch.device(arguments.device), Path(scratch))
    except AssayError as why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    if arguments.json:
        facts = {
            "task": task.key,
            "batch": arguments.batch,
            "device": arguments.device,
            "torch": torch.__version__,
            "goal": GOAL,
        }
        print(json.dumps({**facts, "rows": [{**asdict(row), "passed": row.passed} for row in rows]}))
    else:
        print(f"{task.key}, batch {arguments.batch}, {arguments.device}, one thread, torch {torch.__version__}")
        print(f"{'step':<10} {'ms':>8} {'x unmarked':>11} {'span':>13} {'goal':>7}")
        for row in rows:
            span = f"{row.least:.3f}-{row.largest:.3f}"
            passed = "pass" if row.passed else "FAIL"
            print(f"{row.step:<10} {row.step_ms:>8.0f} {row.ratio:>11.3f} {span:>13} {'<=' + str(GOAL):>7}  {passed}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
