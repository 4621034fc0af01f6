"""A small workbench for the tests of methods: tasks on digits, labs, and unmarked models trained once per run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import nn

from assay.methods import METHODS
from assay.methods.base import Method
from assay.methods.embedding import Mark, embed, verify
from assay.methods.reading import Reading
from assay.methods.rival import Rival
from assay.methods.suspect import Suspect
from assay.results.decisions import DEFAULT, Decision, Null, decide, thresholds
from assay.tasks.calibration import Calibration
from assay.tasks.data.splits import Labelled, Splits
from assay.tasks.lab import Lab
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.recipe import Batch, Recipe, Terms
from assay.tasks.training.trainer import fit

settings.register_profile("methods", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("methods")

CPU = torch.device("cpu")


class Workbench:
    """Builds what a method needs, and keeps what is dear."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._kept: dict[Any, Any] = {}

    def task(self, key: str = "digits-cnn-mini", **changes: Any) -> Task:
        """Return a task of the laptop profile."""
        return resolve_task(key, "laptop", changes)

    def splits(self, task: Task, seed: int = 0) -> Splits:
        key = ("splits", task, seed)
        if key not in self._kept:
            self._kept[key] = task.data(None, seed, CPU)
        return self._kept[key]

    def method(self, key: str, **changes: Any) -> Method[Any]:
        """Return a method in the laptop profile, with changes."""
        cls = METHODS[key]
        return cls(cls.Config(**{**cls.laptop, **changes}))

    def lab(self, plugin: str, task: Task, seed: int = 0, train_seed: str = "victim", **changes: Any) -> Lab:
        """Return an owner's lab with two references and 20 keys; `changes` are further fields (`data`, `role`)."""
        count = self._kept["labs"] = self._kept.get("labs", 0) + 1
        given = {
            "task": task,
            "data": changes["data"] if "data" in changes else self.splits(task).owner,
            "role": "owner",
            "calibration": Calibration(references=2, processed=0, keys=20),
            "unmarked": lambda role: self.unmarked(task, role),
            **changes,
        }
        return Lab(
            plugin=plugin, seed=seed, device=CPU, scratch=self.scratch / str(count), train_seed=train_seed, **given
        )

    def attacker(self, plugin: str, task: Task, seed: int = 0, **changes: Any) -> Lab:
        """Return an attacker's lab: its own data, no unmarked models."""
        given = {"data": self.splits(task).attacker, "role": "attacker", "unmarked": _nothing, **changes}
        return self.lab(plugin, task, seed, "attack", **given)

    def unmarked(self, task: Task, role: str) -> nn.Module:
        """Return a copy of an unmarked model; `clean` shares the victim's streams."""
        key = ("unmarked", task.key, task.schedule, task.samples, role)
        if key not in self._kept:
            seed = "victim" if role == "clean" else role
            trained = self.lab("clean", task, train_seed=seed).fit(task.build(seed), self.splits(task).owner.train)
            self._kept[key] = trained.model
        return copy.deepcopy(self._kept[key])

    def marked(self, method: Method[Any], task: Task) -> Mark:
        """Return the mark of victim seed 0, embedded once."""
        key = ("marked", method.key, method.config, task)
        if key not in self._kept:
            self._kept[key] = embed(method, self.lab(method.key, task))
        return self._kept[key]

    def decide(self, method: Method[Any], task: Task, secret: Any, reading: Reading) -> Decision:
        """Return what a reading means given the null of two references, read once for a secret."""
        key = ("null", method.key, method.config, task, None if method.shares_null else id(secret))
        if key not in self._kept:
            lab = self.lab(method.key, task, role="claimant")
            self._kept[key] = method.null(lab, None if method.shares_null else secret), secret
        null = Null(**asdict(self._kept[key][0]))
        on_clean = verify(method, self.unmarked(task, "clean"), secret)
        return decide(asdict(reading), thresholds(method.family, null, asdict(on_clean), DEFAULT), DEFAULT)

    def rival(self, method: Method[Any], **config: Any) -> Rival[Any]:
        """Return the adversary who knows the method, with settings of its own."""
        return method.rival(method, method.rival.Config(**config))

    def fresh_keys(self, method: Method[Any], task: Task, count: int = 20) -> list[Any]:
        """Return keys that nobody embeds."""
        lab = self.lab(method.key, task, role="claimant")
        return [method.draw(lab.for_key(index)) for index in range(count)]

    def suspect(self, method: Method[Any], model: nn.Module) -> Suspect:
        return Suspect(model, method.access, method.key)


def _nothing(role: str) -> nn.Module:
    raise KeyError(f"an attacker has no unmarked model {role!r}")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    torch.set_num_threads(1)
    return Workbench(tmp_path_factory.mktemp("bench"))


class _Imitate(Recipe):
    """Distillation at temperature 4, without labels."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        with torch.no_grad():
            target = (self.teacher(batch.inputs) / 4).log_softmax(1)
        own = (model(batch.inputs) / 4).log_softmax(1)
        return {"match": 16 * F.kl_div(own, target, log_target=True, reduction="batchmean")}


@pytest.fixture
def student() -> Callable[[Task, Splits, nn.Module], nn.Module]:
    """Return how a student of the same architecture learns a teacher's soft answers on the attacker's data."""

    def learn(task: Task, data: Splits, teacher: nn.Module) -> nn.Module:
        taught = Labelled.join(data.attacker.train, data.attacker.held_out)
        longer = task.schedule.but(epochs=25)
        return fit(task.build("student"), taught, _Imitate(teacher), longer, seed="student").model

    return learn
