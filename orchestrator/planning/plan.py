"""The plan of a sweep: cells, and the DAG of stages that they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

StageKind = Literal["clean", "calibrate", "embed", "attack"]


@dataclass(frozen=True)
class Stage:
    """A unit of work.

    Attributes:
        key: content key of `identity`.
        kind: clean, calibrate, embed or attack.
        identity: canonical JSON values; enough to run the stage (task, plugin keys, configs, seeds, parents by role).
        parents: keys of the stages that must be committed first.
        seconds: estimated duration on one worker.
        cheap: about as long as an evaluation; cheap stages of one parent travel together.
        label: for people, e.g. `attack prune | adi | digits-cnn-mini | seed 0`.
        resource: resource class, a key of `orchestrator.execution.ledger.RESOURCES`.
    """

    key: str
    kind: StageKind
    identity: dict[str, Any] = field(compare=False, hash=False)
    parents: tuple[str, ...]
    seconds: float
    cheap: bool
    label: str
    resource: str = "cpu"


@dataclass(frozen=True)
class Cell:
    """One point of the grid and one row of the results; without an attack stage it is impossible, `reason` says why."""

    key: str
    task: str
    dataset: str
    model: str
    profile: str
    split: str
    method: str
    method_config: str
    attack: str
    attack_config: str
    victim_seed: int
    attack_seed: int
    clean_key: str | None
    embed_key: str | None
    attack_key: str | None
    reason: str = ""


@dataclass
class Plan:
    """All cells of a grid and the stages they need, parents before children."""

    name: str
    profile: str
    cells: list[Cell]
    stages: dict[str, Stage]

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """Stages that wait for each stage."""
        found: dict[str, list[str]] = {key: [] for key in self.stages}
        for stage in self.stages.values():
            for parent in stage.parents:
                found[parent].append(stage.key)
        return found

    @cached_property
    def critical(self) -> dict[str, float]:
        """Seconds on the longest path from each stage's start to the end of the sweep."""
        path: dict[str, float] = {}
        for key in reversed(list(self.stages)):
            path[key] = self.stages[key].seconds + max((path[child] for child in self.children[key]), default=0.0)
        return path

    def missing(self, committed: Iterable[str]) -> set[str]:
        """Return the stages to execute: not committed, and needed by a cell whose attack stage is not committed."""
        have = set(committed)
        wanted: set[str] = set()
        front = [key for cell in self.cells for key in (cell.attack_key,) if key is not None]
        while front:
            key = front.pop()
            if key in wanted or key in have:
                continue
            wanted.add(key)
            front.extend(self.stages[key].parents)
        return wanted
