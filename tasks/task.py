"""A task: data set x architecture x training schedule, by key `<dataset>-<model>`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from assay.tasks.data.sources import DATASETS, DatasetInfo, load
from assay.tasks.data.splits import ATTACKER_SHARE, Splits, split
from assay.tasks.errors import BadInput, UnsupportedModel, nearest, unknown
from assay.tasks.networks.architectures import ARCHITECTURES, Normalize, kind_of
from assay.tasks.streams import global_stream
from assay.tasks.training.schedule import Frozen, Schedule, parse, prefix
from assay.tasks.training.schedules import settings


class Task(Frozen):
    """A frozen description; all fields are part of the stages' keys."""

    dataset: str
    model: str
    schedule: Schedule = Schedule()
    samples: int | None = Field(None, ge=50)  # training images used, before the owner/attacker split; None: all
    test_samples: int | None = Field(None, ge=10)  # None: all
    attacker_share: float = Field(ATTACKER_SHARE, ge=0.05, le=0.5)  # of the training set, disjoint from the owner's

    @property
    def key(self) -> str:
        """The task's key, `<dataset>-<model>`."""
        return f"{self.dataset}-{self.model}"

    @property
    def info(self) -> DatasetInfo:
        """Facts of the data set."""
        return DATASETS[self.dataset]

    @property
    def shape(self) -> tuple[int, ...]:
        """Input shape: (C, H, W) of images, (L,) of texts."""
        return self.info.shape

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.info.classes

    def build(self, *names: str | int) -> nn.Module:
        """Return a fresh network in eval mode; its initial weights depend on the stream names alone."""
        with global_stream(*names, "init"):
            return self.architecture(self.model).eval()

    def architecture(self, model: str) -> nn.Module:
        """Return an untrained network of any architecture for this task's data (e.g. a student's)."""
        if model not in ARCHITECTURES:
            raise unknown("architecture", model, ARCHITECTURES)
        info = self.info
        if info.kind != kind_of(model):
            raise UnsupportedModel(f"{model} takes {kind_of(model)} inputs, {info.key} has {info.kind} inputs")
        third = info.vocabulary if info.kind == "text" else Normalize(info.mean, info.std)
        return ARCHITECTURES[model](self.shape, self.classes, third)

    def data(self, root: Path | None, seed: int, device: torch.device) -> Splits:
        """Return the splits of one victim seed, on `device`.

        Raises:
            MissingData: the data set is not under `root`; the message names the command that fetches it.
        """
        train, test = load(self.dataset, root, self.samples, self.test_samples)
        return split(train, test, seed, self.info.vocabulary, self.attacker_share).to(device)


# Sizes by profile: `paper` is as large as the papers, `laptop` keeps the claims alive on two CPU cores, `smoke` only
# exercises the code. Schedules by profile are in `tasks.training.schedules`.
_SIZES: Mapping[str, Mapping[str, int]] = {
    "paper": {},
    "laptop": {},
    "smoke": {"samples": 512, "test_samples": 256},
}
# Networks that run faster, or no slower, with the channels innermost: max pooling and batch norm gain most. On one CPU
# thread a step of LeNet-5 took 9.2 ms instead of 10.7; gains go from none (VGG-16) to half the time (DeepID, cnn-mini).
_CHANNELS_LAST = frozenset(key for key in ARCHITECTURES if kind_of(key) == "image" and not key.startswith("mlp-"))
_TASK_FIELDS = ("samples", "test_samples", "attacker_share")


def profiles() -> tuple[str, ...]:
    """Return the names of the built-in profiles."""
    return tuple(_SIZES)


def named_tasks() -> tuple[str, ...]:
    """Return every `<dataset>-<model>` key whose architecture takes the data set's kind of input."""
    pairs = ((dataset, model) for dataset in sorted(DATASETS) for model in sorted(ARCHITECTURES))
    return tuple(f"{dataset}-{model}" for dataset, model in pairs if DATASETS[dataset].kind == kind_of(model))


def unknown_task(key: str, where: str = "") -> BadInput:
    """Build the error for a task that does not exist, with the nearest one; there are too many to list them all."""
    return BadInput(f"{where}unknown task {key!r}{nearest(key, named_tasks())} (see: assay list tasks)")


def resolve_task(key: str, profile: str, overrides: Mapping[str, Any], where: str = "") -> Task:
    """Build a task from its key, a profile and overrides of the schedule (`epochs`, `lr`, …) or sizes (`samples`, …).

    The override `paper` says whose schedule the profile `paper` takes, where several papers train the same network; it
    is no part of the task.

    Raises:
        BadInput: unknown task or field, or a value out of its range; one line with the nearest match.
    """
    dataset = next((d for d in sorted(DATASETS, key=len, reverse=True) if key.startswith(f"{d}-")), None)
    model = key[len(dataset) + 1 :] if dataset else ""
    if dataset is None or model not in ARCHITECTURES:
        raise unknown_task(key, prefix(where))
    if (kind := DATASETS[dataset].kind) != kind_of(model):
        raise BadInput(
            f"{prefix(where)}task {key!r}: {model} takes {kind_of(model)} inputs, {dataset} has {kind} inputs"
        )
    allowed = {*Schedule.model_fields, *_TASK_FIELDS, "paper"}
    if strange := sorted(set(overrides) - allowed):
        raise BadInput("\n".join(str(unknown("setting", name, allowed, where.rstrip(": "))) for name in strange))
    given = dict(overrides)
    try:
        own = settings(dataset, model, profile, given.pop("paper", None))
    except BadInput as error:
        raise BadInput(f"{prefix(where)}{error}") from None
    base: dict[str, Any] = {
        "channels_last": model in _CHANNELS_LAST,
        **own,
        **_SIZES.get(profile, _SIZES["laptop"]),
        **given,
    }
    sizes = {name: base.pop(name) for name in _TASK_FIELDS if name in base}
    schedule = parse(Schedule, base, where)
    return parse(Task, {"dataset": dataset, "model": model, "schedule": schedule.model_dump(), **sizes}, where)
