"""What a stage may use: device, named random streams, training, unmarked models, curves, a scratch folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from assay.tasks.calibration import Calibration
from assay.tasks.data.splits import Labelled, Party
from assay.tasks.streams import stream
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Observer, Recipe, Rolling, Trained, fit

Role = Literal["owner", "attacker", "claimant"]


@dataclass
class Lab:
    """What a method or an attack works with: the only argument besides what it works on.

    Attributes:
        task: data set, network and training schedule; public.
        data: the samples of the party at work, on the device.
        role: who is at work: `owner` embeds, `attacker` attacks, `claimant` draws evidence that nobody embeds.
        plugin: key of the method or attack at work; it opens the names of its streams.
        seed: the victim seed (embedding) or the attack seed.
        device: where models and data live.
        scratch: a folder of this stage alone; survives a kill, removed when the stage is committed.
        train_seed: name of the training streams. Embedding shares the clean model's, so that methods compare in pairs.
        calibration: which unmarked models and how many keys a null is read from; for `Method.null` alone.
        unmarked: returns a declared unmarked model of the owner by role (`clean`, `reference-0`, …), eval mode, a copy.
        other: returns (training part, test part) of a declared further data set, on the device.
        probe: called with (step, model) by attacks; the evaluator measures outside and returns nothing.
        meter: what this stage spends.
        curves: rows of per-epoch or per-step values.
        checkpoint_s: seconds between rolling checkpoints.
        vary: what an attacker makes of a method's recipe in the main training run (`train`); others are left alone.
        watch: observers of every epoch of the main training run.
    """

    task: Task
    data: Party
    role: Role
    plugin: str
    seed: int
    device: torch.device
    scratch: Path
    train_seed: str
    calibration: Calibration = field(default_factory=Calibration)
    unmarked: Callable[[str], nn.Module] = field(default=lambda role: _no_model(role))
    other: Callable[[str], tuple[Labelled, Labelled]] = field(default=lambda key: _no_data(key))
    probe: Callable[[int, nn.Module], None] = field(default=lambda step, model: None)
    meter: Meter = field(default_factory=Meter)
    curves: list[dict[str, Any]] = field(default_factory=list)
    checkpoint_s: float = 30.0
    vary: Callable[[Recipe], Recipe] = field(default=lambda recipe: recipe)
    watch: tuple[Observer, ...] = ()
    _schedule: Schedule | None = field(default=None, repr=False)
    _calls: Counter[str] = field(default_factory=Counter, repr=False)

    @property
    def schedule(self) -> Schedule:
        """The schedule of the training run at hand: the task's, unless `under` gave another."""
        return self._schedule or self.task.schedule

    def under(self, schedule: Schedule) -> Lab:
        """Return this lab for a run by `schedule`; everything else is shared."""
        return replace(self, _schedule=schedule)

    def for_key(self, index: int) -> Lab:
        """Return a lab for never-embedded key `index`: streams and scratch of its own, the rest shared.

        Curves are not kept: those of many keys would share their steps.
        """
        name = f"key-{index}"
        return replace(
            self, plugin=f"{self.plugin}|{name}", scratch=self.scratch / name,
            train_seed=f"{self.train_seed}|{name}", curves=[],
        )  # fmt: skip

    def stream(self, *parts: str | int) -> torch.Generator:
        """Return the CPU generator named `<plugin>|<parts>|<seed>`; parts: secret, inject, mask, detector, probe, …"""
        return stream(self.plugin, *parts, self.seed)

    def fit(
        self,
        model: nn.Module,
        data: Labelled,
        recipe: Recipe | None = None,
        schedule: Schedule | None = None,
        *,
        name: str = "train",
        seed: str | None = None,
        validation: Labelled | None = None,
        select: Literal["last", "val_best"] = "last",
        observers: Sequence[Observer] = (),
    ) -> Trained:
        """Train with the one loop (`trainer.fit`), counted, resumable and recorded as curves under `name`.

        Args:
            model: trained itself, not a copy of it; moved to the lab's device.
            data: samples (N, ...) with labels (N,), resident on the device.
            recipe: what is varied of training; None: plain cross-entropy.
            schedule: epochs, rates, batch size; None: the lab's.
            name: of the run, its curve and its streams; `train` is the main run of embedding.
            seed: name of the run's streams; None: `train_seed` of the main run, with the run's name of any other.
            validation: samples whose accuracy is measured after each epoch.
            select: `last` keeps the final state, `val_best` the earliest of the best validation accuracy.
            observers: called with (epoch, model, means) after each epoch; one that returns True stops training.

        Returns:
            The trained model in eval mode, its history and whether a loss stopped being finite (`diverged`).
        """
        recipe = recipe or Recipe()
        if name == "train":
            recipe, observers = self.vary(recipe), (*observers, *self.watch)
        result = fit(
            model.to(self.device),
            data,
            recipe,
            schedule or self.schedule,
            seed=seed or (self.train_seed if name == "train" else f"{self.train_seed}|{name}"),
            validation=validation,
            select=select,
            observers=observers,
            resume=Rolling(self.scratch / self._file(name), self.checkpoint_s),
            meter=self.meter,
        )
        self.curves.extend({"curve": name, "step": int(row["epoch"]), **_values(row)} for row in result.history)
        return result

    def _file(self, name: str) -> str:
        """Return a file name of its own for each training of the stage, the same whenever the stage runs again."""
        self._calls[name] += 1
        words = re.sub(r"[^0-9A-Za-z_.-]+", "_", f"{self.plugin}-{self.seed}-{name}-{self._calls[name]}")
        return f"{words}.safetensors"

    def curve(self, name: str, step: int, **values: float) -> None:
        """Record one point of a curve.

        Args:
            name: of the curve, as `forge`; `train` is the main run's.
            step: an epoch or another count; (name, step) must be new.
            values: figures by name; numbers, not tensors.
        """
        self.curves.append({"curve": name, "step": step, **values})


def _values(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != "epoch"}


def _no_model(role: str) -> nn.Module:
    raise KeyError(f"this stage declares no unmarked model {role!r}")


def _no_data(key: str) -> tuple[Labelled, Labelled]:
    raise KeyError(f"this stage declares no further data set {key!r}")
