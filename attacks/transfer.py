"""Transfer learning: turn the stolen network to another task, then let the owner look for the mark.

Paper: section 8.4 of Piracy Resistant Watermarks (null embedding), https://arxiv.org/abs/1910.01226; section 4 of
    Function-Coupled Watermarks, https://arxiv.org/abs/2302.10296; greedy residuals, ICML 2021 (there "fine-tuning")
Access: weights, and labelled samples of another task.
Differs from the paper: the new head is the network's own last layer with fresh weights; no dense layers are added
    before it. The kept epoch is the best on a held-out part of the new task. If the new task's data are not at hand, a
    part of the classes of the attacker's own data stands in. On shorter tasks the epochs shrink with the owner's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from assay.attacks.base import Adapted, Attack, AttackConfig, Needs, Outcome, Recovery, Victim
from assay.attacks.parts.graph import logit_layer
from assay.attacks.parts.heads import Part, fresh_head, layers, repeats_added, trained_layers, with_head
from assay.attacks.parts.training import (
    FineTuning,
    divergence,
    fine_tuning,
    needs_samples,
    only_trainable,
    share_of_epochs,
)
from assay.methods.base import Method
from assay.tasks.data.other import TRANSFER, TRANSFER_STAND_IN, adapt, classes_of, held_out, shares_images
from assay.tasks.data.sources import DATASETS
from assay.tasks.data.splits import Labelled, Party
from assay.tasks.errors import unknown
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Trained

Probe = Callable[[int, nn.Module], None]
_EPOCHS = {"null_embedding": 200, "greedy_residuals": 100}


class Config(AttackConfig):
    """Settings of transfer; the defaults are those of null embedding.

    Function-coupled watermarks: head reuse, lr 1e-4, 10 trials. Greedy residuals: lr 0.001, paper greedy_residuals.
    """

    target: str | None = None  # key of the other task's data; None: a paper's, or a stand-in; `own`: a class split
    stand_in: bool = False  # a stand-in even where a paper names a data set
    classes: int | None = Field(None, ge=2)  # of the other task, drawn; None: all, or (`own`) half of them
    samples: int | None = Field(None, ge=10)  # of the other task's training part; None: all
    head: Literal["replace", "reuse"] = "replace"  # reuse: as many classes as the victim has, and its head kept
    mode: Part = "all"  # what trains
    epochs: int | None = Field(None, ge=0)  # None: those of `paper`, as a share of the owner's
    paper: Literal["null_embedding", "greedy_residuals"] = "null_embedding"  # 200 or 100 epochs
    lr: Annotated[float, Field(ge=0)] | Literal["last"] = 0.01
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    trials: int = Field(0, ge=0)  # rounds, each on top of the last (function-coupled marks); 0: one run
    epochs_per_trial: int = Field(1, ge=1)
    # How the owner looks for the mark; auto: directly with the head kept or where weights are read, else original_head.
    recovery: Literal["auto", "none", "original_head", "retrain_head"] = "auto"
    recovery_epochs: int | None = Field(None, ge=0)  # retrain_head: None: 6, as a share of the owner's

    @field_validator("target")
    @classmethod
    def _known(cls, key: str | None) -> str | None:
        if key not in (None, "own", *DATASETS):
            raise ValueError(str(unknown("data set", str(key), ("own", *DATASETS))))
        return key


class Transfer(Attack[Config]):
    """Train the stolen network on another task."""

    key = "transfer"
    title = "Transfer learning"
    source = "Li et al. (null embedding), section 8.4; tables of function-coupled marks and greedy residuals"
    access = "weights"
    uses_data = True
    laptop: ClassVar = {"stand_in": True, "samples": 2000, "momentum": 0.9}
    identity: ClassVar = {"epochs": 0, "head": "reuse"}
    Config = Config

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return the usual needs, the other task's data set unless it is the attacker's own, and the unmarked twin."""
        key = self._target(task)
        return replace(super().needs(task, method), datasets=() if key == "own" else (key,), twin=True)

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is no other task to turn to, or why the mode repeats another, or None."""
        if reason := repeats_added(task.dataset, task.model, self.config.mode):
            return reason
        key = self._target(task)
        if key == "own":
            return needs_samples(self.config) or self._too_few(task)
        if task.info.kind != "image" or DATASETS[key].kind != "image":
            return f"{key} cannot be turned into inputs for {task.dataset}: only images can"
        if shares_images(key, task.dataset):
            return f"{key} holds images of {task.dataset}, the owner's among them; target own splits the attacker's"
        return self._too_few(task)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the network on the other task, and what the owner needs to look for the mark in it."""
        data = lab.data
        config, task, model = self.config, victim.task, victim.module()
        name = logit_layer(model)
        old_head = copy.deepcopy(model.get_submodule(name))
        train, validation, test = self._data(task, data, lab)
        replaced = config.head == "replace"
        if replaced:
            fresh = fresh_head(model, name, self._count(task), lab.plugin, "init", lab.seed)
            model = with_head(model, name, fresh)
        trained = trained_layers(model, config.mode)
        part = None if config.mode == "all" else layers(model, trained)

        def probe(step: int, state: nn.Module) -> None:
            # On the old task the evaluator can only measure the new body under the old head.
            lab.probe(step, with_head(state, name, old_head) if replaced else state)

        with nullcontext() if part is None else only_trainable(model, part):
            done = self._train(lab, model, FineTuning(head=part), (train, validation), task, probe)
        again = config.recovery_epochs
        recovery = self._schedule(task, share_of_epochs(task, "null_embedding", 6) if again is None else again)
        adapted = Adapted(test, name, trained, self._recovery(victim.method), recovery)
        return Outcome(
            done.model, structure="changed" if replaced else "same", notes=divergence(done), adapted=adapted
        )  # fmt: skip

    def _train(
        self, lab: Lab, model: nn.Module, recipe: FineTuning, data: tuple[Labelled, Labelled], task: Task, probe: Probe
    ) -> Trained:
        """Train as `FineTune` does, once or in rounds, but on the other task's `data`: training and validation part."""
        config, (train, validation) = self.config, data
        if not config.trials:
            return lab.fit(
                model, train, recipe, self._schedule(task, self._epochs(task)), validation=validation,
                select="val_best", observers=[lambda epoch, state, means: probe(epoch + 1, state)],
            )  # fmt: skip
        schedule = self._schedule(task, config.epochs_per_trial)
        for trial in range(1, config.trials + 1):
            done = lab.fit(model, train, recipe, schedule, name=f"trial-{trial}", validation=validation)
            probe(trial, done.model)
        return done

    def _epochs(self, task: Task) -> int:
        paper: str = self.config.paper
        given: int | None = self.config.epochs
        return share_of_epochs(task, paper, _EPOCHS[paper]) if given is None else given

    def _schedule(self, task: Task, epochs: int) -> Schedule:
        config = self.config
        return fine_tuning(task, epochs, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

    def _recovery(self, method: Method[Any]) -> Recovery:
        if self.config.recovery != "auto":
            chosen: Recovery = self.config.recovery
            return chosen
        return "none" if self.config.head == "reuse" or method.access == "weights" else "original_head"

    def _target(self, task: Task) -> str:
        named = () if self.config.stand_in else TRANSFER.get(task.dataset, ())
        return self.config.target or next(iter(named), TRANSFER_STAND_IN.get(task.dataset, "own"))

    def _available(self, task: Task) -> int:
        key = self._target(task)
        return task.classes if key == "own" else DATASETS[key].classes

    def _count(self, task: Task) -> int:
        """Return how many of the other task's classes are used."""
        if self.config.head == "reuse":
            return task.classes
        available = self._available(task)
        return self.config.classes or (available // 2 if self._target(task) == "own" else available)

    def _too_few(self, task: Task) -> str | None:
        wanted, available = self._count(task), self._available(task)
        if 2 <= wanted <= available:
            return None
        return f"{self._target(task)} has {available} classes, and the other task would have {wanted}"

    def _data(self, task: Task, data: Party, lab: Lab) -> tuple[Labelled, Labelled, Labelled]:
        """Return training, validation and test part of the other task, as the victim takes inputs."""
        key = self._target(task)
        train, test = (data.train, data.held_out) if key == "own" else lab.other(key)
        drawn = torch.randperm(self._available(task), generator=lab.stream("select", "classes"))[: self._count(task)]
        train, test = classes_of(train, drawn.tolist()), classes_of(test, drawn.tolist())
        if self.config.samples is not None and self.config.samples < len(train):
            some = torch.randperm(len(train), generator=lab.stream("select", "samples"))[: self.config.samples]
            train = train.take(some.to(train.labels.device))
        if key != "own":
            train, test = adapt(train, task.shape), adapt(test, task.shape)
        return *held_out(train, lab.stream("select", "validation")), test
