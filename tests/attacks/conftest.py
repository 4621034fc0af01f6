"""A tiny task, its data and a trained network; `attack_range` holds what runs attacks on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attack_range import Range, Zoo
from torch import nn

from assay.tasks.data.splits import Splits
from assay.tasks.task import Task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import fit

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> tuple[Task, Splits, nn.Module]:
    """Return the tiny task, its data and a network trained on them."""
    task = Task(dataset="digits", model="cnn-mini", samples=600, schedule=Schedule(epochs=5, batch_size=64, lr=2e-3))
    splits = task.data(None, 0, torch.device("cpu"))
    trained = fit(task.build("tiny"), splits.owner.train, Recipe(), task.schedule, seed="train|0")
    trained.model.zero_grad()  # gradients of the last step are no part of a stolen network
    return task, splits, trained.model


@pytest.fixture
def field(tmp_path: Path, tiny: tuple[Task, Splits, nn.Module]) -> Range:
    """Return the means to run attacks; the network may not be changed."""
    return Range(tmp_path, *tiny)


@pytest.fixture(scope="session")
def zoo() -> type[Zoo]:
    """Return the networks."""
    return Zoo
