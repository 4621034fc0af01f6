"""Which classes a trigger set joins, which images of theirs, and what it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from assay.tasks.data.splits import Labelled
from assay.tasks.errors import CapacityError
from assay.tasks.task import Task

Pair = Annotated[tuple[int, int], Field(strict=False)]
SOURCE_PROBES = 100  # held-out images of each source class, at most


@dataclass(frozen=True)
class Rule:
    """Which classes a trigger set joins and what it asks for; None is drawn, `barred` is no target."""

    sources: tuple[int, int] | None = None
    target: int | None = None
    barred: int | None = None


def check_classes(sources: Pair | None, target: int | None) -> None:
    """Refuse classes that coincide or are negative.

    Raises:
        ValueError: which ones.
    """
    given = [*(sources or ()), *([] if target is None else [target])]
    if len(set(given)) != len(given) or any(label < 0 for label in given):
        raise ValueError(f"sources and target must be different classes from 0 on, got {given}")


def pairs(first: int, second: int, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs from `first` and `second` images: positions (m,) in each, count <= m <= 2 count.

    The first `count` are drawn with replacement, the others from pairs that are not among them; few images leave fewer.
    """
    left = torch.randint(0, first, (3 * count,), generator=draws)
    right = torch.randint(0, second, (3 * count,), generator=draws)
    code = left * second + right
    fresh = count + torch.nonzero(~torch.isin(code[count:], code[:count])).flatten()[:count]
    chosen = torch.cat([torch.arange(count), fresh])
    return left[chosen], right[chosen]


def usable_classes(train: Labelled, classes: int) -> list[int]:
    """Return the classes with two images or more."""
    counts = torch.bincount(train.labels.cpu(), minlength=classes)
    return torch.nonzero(counts >= 2).flatten().tolist()


def plain_images(held_out: Labelled, sources: Sequence[int]) -> dict[str, Tensor]:
    """Return held-out images of the source classes, as they are."""
    probes = Labelled.join(*(held_out.of_class(label).take(slice(0, SOURCE_PROBES)) for label in sources))
    return {"source_inputs": probes.inputs.cpu(), "source_labels": probes.labels.cpu()}


def choose_sources(
    rule: Rule, train: Labelled, task: Task, draws: torch.Generator
) -> tuple[tuple[int, int], list[int]]:
    """Return the source classes and the targets to try, in order."""
    order = torch.randperm(task.classes, generator=draws).tolist()
    usable = usable_classes(train, task.classes)
    sources = list(rule.sources or [label for label in order if label in usable and label != rule.target][:2])
    if len(sources) < 2 or not set(sources) <= set(usable):
        raise CapacityError(f"source classes {sources} need two training images each; classes with two: {usable}")
    if rule.target is not None:
        return (sources[0], sources[1]), [rule.target]
    free = [label for label in order if label not in sources]
    return (sources[0], sources[1]), [label for label in free if label != rule.barred] or free


def choose_target(targets: Sequence[int], answers: Sequence[Sequence[int]], most: float) -> int:
    """Return the first target that no unmarked model gives to more than `most` triggers, else the least given.

    Args:
        targets: the classes allowed.
        answers: for each unmarked model, how many triggers it gives to each class.
        most: hits that are tolerated.
    """
    largest = {label: max((count[label] for count in answers), default=0) for label in targets}
    return next((label for label in targets if largest[label] <= most), min(targets, key=lambda t: largest[t]))
