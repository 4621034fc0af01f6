"""The plan of a sweep: cells, and the DAG of stages that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from assay.orchestrator.store import Store

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
        keep: a later link of a chain needs the surrogate; no part of the key, since it changes no result.
        label: for people, e.g. `attack prune | adi | digits-cnn-mini | seed 0`.
        resource: resource class, a key of `orchestrator.execution.driver.RESOURCES`.
    """

    key: str
    kind: StageKind
    identity: dict[str, Any] = field(compare=False, hash=False)
    parents: tuple[str, ...]
    seconds: float
    cheap: bool
    label: str
    resource: str = "cpu"
    keep: bool = False

    def done(self, store: Store) -> bool:
        """Return whether the store holds all that the stage shall leave: the record, and a surrogate that is needed."""
        if not store.committed(self.key):
            return False
        if not self.keep or store.has_model(self.key):
            return True
        try:  # there is none to keep where the attack did not apply, or left an architecture that is not stored
            return store.record(self.key)["result"]["architecture"] is None
        except KeyError:
            return False


@dataclass(frozen=True)
class Cell:
    """One point of the grid and one row of the results; without an attack stage it is impossible, `reason` says why.

    Attributes:
        point: the columns of the row that say what was asked for (`results.schema`), part `asked`.
        chain: keys of the attack stages, the last one's surrogate is read; empty if the cell is impossible.
        null_key: the stage whose null decides; None if the method verifies nothing.
    """

    key: str
    point: Mapping[str, Any] = field(hash=False)
    clean_key: str | None = None
    embed_key: str | None = None
    chain: tuple[str, ...] = ()
    null_key: str | None = None
    reason: str = ""

    @property
    def attack_key(self) -> str | None:
        """The stage whose result the row shows."""
        return self.chain[-1] if self.chain else None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that must be committed for the row, ancestors not counted."""
        return (*self.chain, *([self.null_key] if self.null_key else []))


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

    def done(self, store: Store) -> set[str]:
        """Return the stages whose results the store holds."""
        have = store.committed_keys() & self.stages.keys()
        return {key for key in have if not self.stages[key].keep or self.stages[key].done(store)}

    def missing(self, committed: Iterable[str]) -> set[str]:
        """Return the stages to execute: not committed, and needed by a cell whose own stages are not all committed."""
        have = set(committed)
        wanted: set[str] = set()
        front = [key for cell in self.cells for key in cell.stages]
        while front:
            key = front.pop()
            if key in wanted or key in have:
                continue
            wanted.add(key)
            front.extend(self.stages[key].parents)
        return wanted
