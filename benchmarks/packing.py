"""How much more a device trains when several processes share it: one process against two, four, ...

    python benchmarks/packing.py [TASK ...] [--processes 1 2 4] [--batch 128] [--steps 60] [--precision fp32]
        [--device cuda] [--json]

Every process trains the task's network on random images of its own, one thread each; all start together, after a
warm-up, and the slowest one's time counts. Goal on a GPU: two to four processes train at least 1.3 times as much as
one (a training step of a small network is too short for Python to keep a GPU busy). Exit status 1 if it is missed.

One H100, float32, batches of 128: ResNet-18 118, 171 and 172 steps per second with 1, 2 and 4 processes (1.45 times);
ResNet-8 201 and 624 with 1 and 4 (3.1 times). Hence the halves and quarters of `RESOURCES`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
import torch.multiprocessing as mp

from assay.orchestrator.work.environment import require
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import AssayError
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.trainer import fit

GOAL = 1.3
_START_S = 120


def train(task: Task, steps: int, device: str, start: Any, seconds: Any) -> None:
    """Train in a process of its own: a warm-up, then, with all others, what counts."""
    torch.set_num_threads(1)
    place = torch.device(device)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (steps * task.schedule.batch_size, *task.shape), generator=draws, dtype=torch.uint8)
    data = Labelled(images, torch.randint(0, task.classes, (len(images),), generator=draws)).to(place)
    for counts in (False, True):
        model = task.build("benchmark").to(place)
        if counts:
            start.wait(_START_S)
        started = time.perf_counter()
        fit(model, data, Recipe(), task.schedule, seed="benchmark")  # ends by reading the weights: nothing is pending
        if counts:
            seconds.put(time.perf_counter() - started)


def rate(task: Task, processes: int, steps: int, device: str) -> float:
    """Return the steps per second of all processes together."""
    context = mp.get_context("spawn")
    start, seconds = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=train, args=(task, steps, device, start, seconds)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    slowest = max(seconds.get(timeout=2 * _START_S) for _ in workers)
    for worker in workers:
        worker.join()
    return processes * steps / slowest


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=["cifar10-resnet18"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    settings = {"epochs": 1, "batch_size": arguments.batch, "augment": "none", "precision": arguments.precision}
    try:
        require(arguments.device)
        tasks = [resolve_task(key, "paper", settings) for key in arguments.tasks]
    except AssayError as why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    rows = []
    for task in tasks:
        rates = {count: rate(task, count, arguments.steps, arguments.device) for count in arguments.processes}
        single = rates.get(1) or rates[min(rates)] / min(rates)
        rows += [
            {"task": task.key, "processes": count, "steps_per_s": value, "gain": value / single}
            for count, value in rates.items()
        ]
        if not arguments.json:
            told = ", ".join(f"{count}: {value:.0f} steps/s ({value / single:.2f})" for count, value in rates.items())
            print(f"{task.key}, batch {arguments.batch}, {arguments.precision}, {arguments.device}: {told}", flush=True)
    if arguments.json:
        print(json.dumps({"device": arguments.device, "goal": GOAL, "rows": rows}))
    gains = [max(row["gain"] for row in rows if row["task"] == task.key) for task in tasks]
    return int(arguments.device != "cpu" and min(gains) < GOAL)


if __name__ == "__main__":
    sys.exit(main())
