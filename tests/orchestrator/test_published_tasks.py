"""Every task that a paper prints numbers for trains, and every other data set and architecture once: two steps.

On real data where they are, else on their shape.
"""

from __future__ import annotations

import math

import pytest
import torch

from assay.orchestrator.planning.catalogue import published_tasks
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import MissingData
from assay.tasks.task import Task, named_tasks, resolve_task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.trainer import fit

pytestmark = pytest.mark.slow
BATCH = 4


def samples(task: Task) -> Labelled:
    try:
        return task.data(None, 0, torch.device("cpu")).owner.train.take(slice(0, 2 * BATCH))
    except MissingData:
        draws = torch.Generator().manual_seed(0)
        high, kind = (task.info.vocabulary, torch.int64) if task.info.kind == "text" else (256, torch.uint8)
        inputs = torch.randint(0, high, (2 * BATCH, *task.shape), generator=draws, dtype=kind)
        return Labelled(inputs, torch.randint(0, task.classes, (2 * BATCH,), generator=draws))


def covering() -> list[str]:
    """Return the published tasks, and of the others the first with each data set or architecture not yet among them."""
    chosen = sorted(published_tasks())
    seen = {part for key in chosen for part in parts(key)}
    for key in named_tasks():
        if not seen.issuperset(parts(key)):
            chosen.append(key)
            seen.update(parts(key))
    return chosen


def parts(key: str) -> tuple[str, str]:
    task = resolve_task(key, "laptop", {})
    return task.dataset, task.model


@pytest.mark.parametrize("key", covering())
def test_a_task_trains_two_steps(key: str) -> None:
    torch.set_num_threads(1)
    task = resolve_task(key, "paper", {"batch_size": BATCH, "epochs": 1, "precision": "fp32"})
    model = task.build("two steps")
    before = {name: value.clone() for name, value in model.named_parameters()}
    trained = fit(model, samples(task), Recipe(), task.schedule, seed="two steps")
    assert not trained.diverged
    assert math.isfinite(trained.history[0]["task"])
    moved = [name for name, value in trained.model.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) >= len(before) // 2, "training reaches the network, not its head alone"
