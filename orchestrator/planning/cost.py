"""What stages will cost: a network's operations, and how long stages of the same kind took before.

Only the order of the trials and what `assay plan` prints rest on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store
from assay.tasks.task import Task

# Sustained by small networks in training, on one CPU thread and on one GPU.
_FLOPS_PER_SECOND = {"cpu": 4e10, "cuda": 4e12}
_EVALUATION_S = 0.3
_SAMPLED = 5  # records read per kind of stage; more tell nothing new


@dataclass(frozen=True)
class Size:
    """Floating point operations of one sample's forward pass, and the number of parameters."""

    flops: float
    parameters: int


@lru_cache(maxsize=256)
def size(dataset: str, model: str) -> Size:
    """Measure an architecture on inputs of a data set's shape."""
    task = Task(dataset=dataset, model=model)
    network = task.architecture(model).eval()
    total = 0.0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        # torch's own counter takes 4 s to import.
        if isinstance(module, nn.LSTM):
            # Every weight meets every step once; data of packed sequences and batches alike end with the features.
            steps = inputs[0].data.numel() / module.input_size
            total += 2.0 * steps * sum(p.numel() for p in module.parameters() if p.dim() == 2)
        else:
            # Each output element is one dot product with a row of the weight.
            total += 2.0 * output.numel() * module.get_parameter("weight")[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.LSTM):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(example(task, 1))
    return Size(total, sum(p.numel() for p in network.parameters()))


def example(task: Task, count: int) -> Tensor:
    """Return inputs (count, ...) of a task's shape: black images, or texts without padding."""
    text = task.info.kind == "text"
    return torch.ones(count, *task.shape, dtype=torch.int64) if text else torch.zeros(count, *task.shape)


def seconds(passes: float, flops: float, device: str) -> float:
    """Return the estimated duration of a stage.

    Args:
        passes: forward passes of one sample; a backward pass counts as two.
        flops: of one forward pass.
        device: cpu or cuda.
    """
    return _EVALUATION_S + passes * flops / _FLOPS_PER_SECOND[device]


def corrected(plan: Plan, store: Store, have: Collection[str]) -> tuple[Plan, int]:
    """Scale the estimates by what committed stages of the plan took, measured by estimated.

    A stage follows those of its task, kind and plugin; else those of its kind; else all.

    Args:
        plan: the plan.
        store: where its committed stages lie.
        have: keys of the committed stages of the plan.

    Returns:
        the plan with better estimates, and how many durations they rest on.
    """
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    read: dict[Hashable, int] = defaultdict(int)
    for key in sorted(have):
        stage = plan.stages[key]
        groups = _groups(stage)
        if read[groups[0]] == _SAMPLED:
            continue
        try:
            took = float(store.record(key)["costs"]["wall_s"])
        except KeyError:  # damaged, and set aside: it will be computed again
            continue
        read[groups[0]] += 1
        for group in groups:
            sums[group][0] += took
            sums[group][1] += stage.seconds
    factor = {group: took / estimated for group, (took, estimated) in sums.items()}

    def correct(stage: Stage) -> Stage:
        known = (factor[group] for group in _groups(stage) if group in factor)
        return replace(stage, seconds=stage.seconds * next(known, 1.0))

    stages = {key: correct(stage) for key, stage in plan.stages.items()}
    return replace(plan, stages=stages), sum(read.values())


def _groups(stage: Stage) -> tuple[Hashable, ...]:
    """Return the groups of stages that tell something of this one, nearest first."""
    identity = stage.identity
    task = identity["task"]
    plugin = (identity.get("attack") or identity.get("method") or {}).get("key")
    return (stage.kind, task["dataset"], task["model"], plugin), stage.kind, "all"
