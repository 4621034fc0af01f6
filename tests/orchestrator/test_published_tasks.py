"""Every task that a paper prints numbers for trains: two steps, on real data where they are, else on their shape."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.catalogue import published_tasks
from tasks.data import Labelled
from tasks.errors import MissingData
from tasks.recipe import Recipe
from tasks.task import Task, resolve_task
from tasks.trainer import fit

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


@pytest.mark.parametrize("key", sorted(published_tasks()))
def test_a_published_task_trains_two_steps(key: str) -> None:
    torch.set_num_threads(1)
    task = resolve_task(key, "paper", {"batch_size": BATCH, "epochs": 1, "precision": "fp32"})
    model = task.build("two steps")
    before = {name: value.clone() for name, value in model.named_parameters()}
    trained = fit(model, samples(task), Recipe(), task.schedule, seed="two steps")
    assert not trained.diverged
    assert math.isfinite(trained.history[0]["task"])
    moved = [name for name, value in trained.model.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) >= len(before) // 2, "training reaches the network, not its head alone"
