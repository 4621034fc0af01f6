"""How accurate unmarked networks are: named tasks under one profile, several seeds, next to the goals.

Each seed has its own split into owner and attacker; the owner's training part (72 % of the training images) trains, the
whole test part judges. Nothing is selected: the last epoch counts.

    python benchmarks/accuracy.py [TASK ...] [--profile laptop] [--seeds 3] [--threads 1] [--data-root DIR] [--json]

Without TASK, all tasks that have a goal. Exit status 1 if a mean stays below its goal or a training takes too long.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from assay.tasks.errors import AssayError
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.trainer import evaluate, fit


@dataclass(frozen=True)
class Goal:
    """The least mean accuracy of the laptop profile, and the most seconds of one training (two threads)."""

    accuracy: float
    wall_s: float | None = None


GOALS: Mapping[str, Goal] = {
    "mnist-lenet5": Goal(0.98),
    "mnist-mlp-1200x2": Goal(0.975),
    "mnist-conv2-fc2": Goal(0.985),
    "cifar10-resnet8": Goal(0.75, 900),
    "gtsrb-conv6-fc3": Goal(0.90),
    "trec-textcnn": Goal(0.82),
    "trec-lstm": Goal(0.75),
    "imdb-textcnn": Goal(0.80),
}


@dataclass(frozen=True)
class Row:
    """A task's outcome: accuracy and seconds of each seed's training."""

    task: str
    accuracies: tuple[float, ...]
    wall_s: tuple[float, ...]
    goal: Goal | None

    @property
    def mean(self) -> float:
        """The mean accuracy over seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def passed(self) -> bool:
        """Whether there is no goal, or it is met."""
        if self.goal is None:
            return True
        return self.mean >= self.goal.accuracy and max(self.wall_s) <= (self.goal.wall_s or float("inf"))


def train(task: Task, seed: int, root: Path | None, device: torch.device) -> tuple[float, float]:
    """Train one unmarked network on the owner's part; return test accuracy and seconds."""
    data = task.data(root, seed, device)
    model = task.build("accuracy", seed)
    started = time.perf_counter()
    trained = fit(model, data.owner.train, Recipe(), task.schedule, seed=f"accuracy|{seed}", select="last")
    return evaluate(trained.model, data.test), time.perf_counter() - started


def show(row: Row) -> None:
    """Print one line of the table."""
    seeds = " ".join(f"{accuracy:.4f}" for accuracy in row.accuracies)
    goal = "-" if row.goal is None else f"{row.goal.accuracy:.3f}"
    limit = "" if row.goal is None or row.goal.wall_s is None else f" (at most {row.goal.wall_s:.0f})"
    verdict = "" if row.goal is None else "pass" if row.passed else "FAIL"
    print(f"{row.task:<22} {row.mean:.4f} {goal:>6}  {verdict:<4}  {max(row.wall_s):>6.0f} s{limit}  seeds: {seeds}")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="task keys (default: all with a goal)")
    parser.add_argument("--profile", default="laptop", help="goals are the laptop profile's (default)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per task (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data-root", type=Path, help="folder with the data sets (default: $ASSAY_DATA)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), list[Row]()
    if not arguments.json:
        print(f"{'task':<22} {'mean':<6} {'goal':>6}  {'':<4}  longest training")
    try:
        for key in arguments.tasks or GOALS:
            task = resolve_task(key, arguments.profile, {})
            runs = [train(task, seed, arguments.data_root, device) for seed in range(arguments.seeds)]
            accuracies, walls = zip(*runs, strict=True)
            goal = GOALS.get(key) if arguments.profile == "laptop" else None
            rows.append(Row(key, accuracies, walls, goal))
            if not arguments.json:
                show(rows[-1])
                sys.stdout.flush()
    except AssayError as why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    if arguments.json:
        facts = {"profile": arguments.profile, "threads": arguments.threads, "torch": torch.__version__}
        print(json.dumps({**facts, "rows": [{**asdict(r), "mean": r.mean, "passed": r.passed} for r in rows]}))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
