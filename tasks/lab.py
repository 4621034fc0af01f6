"""What a stage may use: device, named random streams, training, unmarked models, curves, a scratch folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from assay.tasks.data.splits import Labelled
from assay.tasks.streams import stream
from assay.tasks.training.meter import Meter
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Observer, Recipe, Rolling, Trained, fit


@dataclass
class Lab:
    """Handed to `embed`, `run`, `overwrite` and `forge`.

    Attributes:
        plugin: key of the method or attack at work; it opens the names of its streams.
        seed: the victim seed (embedding) or the attack seed.
        device: where models and data live.
        scratch: a folder of this stage alone; survives a kill, removed when the stage is committed.
        train_seed: name of the training streams. Embedding shares the clean model's, so that methods compare in pairs.
        unmarked: returns a declared unmarked model of the owner by role (`clean`, `reference-0`, …), eval mode, a copy.
        other: returns (training part, test part) of a declared further data set, on the device.
        probe: called with (step, model) by attacks; the evaluator measures outside and returns nothing.
        meter: what this stage spends.
        curves: rows of per-epoch or per-step values.
        checkpoint_s: seconds between rolling checkpoints.
    """

    plugin: str
    seed: int
    device: torch.device
    scratch: Path
    train_seed: str
    unmarked: Callable[[str], nn.Module] = field(default=lambda role: _no_model(role))
    other: Callable[[str], tuple[Labelled, Labelled]] = field(default=lambda key: _no_data(key))
    probe: Callable[[int, nn.Module], None] = field(default=lambda step, model: None)
    meter: Meter = field(default_factory=Meter)
    curves: list[dict[str, Any]] = field(default_factory=list)
    checkpoint_s: float = 30.0
    _calls: Counter[str] = field(default_factory=Counter, init=False, repr=False)

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
        """Train with the one loop (`trainer.fit`), counted, resumable and recorded as curves under `name`."""
        result = fit(
            model.to(self.device),
            data,
            recipe or Recipe(),
            schedule or Schedule(),
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
        """Record one point of a curve."""
        self.curves.append({"curve": name, "step": step, **values})


def _values(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key != "epoch"}


def _no_model(role: str) -> nn.Module:
    raise KeyError(f"this stage declares no unmarked model {role!r}")


def _no_data(key: str) -> tuple[Labelled, Labelled]:
    raise KeyError(f"this stage declares no further data set {key!r}")
