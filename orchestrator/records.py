"""What a stage measured, as typed records: stages write them, rows and estimates read them. Nothing here decides.

clean      ModelRecord     an unmarked model, the owner's, the attacker's, or an attacked one
calibrate  NullRecord      never-embedded keys on unmarked models
embed      MarkRecord      a marked model, read beside its unmarked twin
attack     AttackRecord    what an attack left behind, read with the owner's secret
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from assay.methods.null import Null
from assay.methods.reading import Reading
from assay.orchestrator.planning.plan import StageKind


class Record(BaseModel):
    """Base of all records: plain values, strict on reading, never changed. A figure that is no number is None."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class ReadingRecord(Record):
    """A reading as `assay.methods.reading.Reading` describes it."""

    score: float | None
    chance: float | None
    paper_threshold: float | None
    p_value: float | None
    accepted: bool
    test: str
    hits: int | None = None
    trials: int | None = None
    applicable: bool = True
    reason: str = ""
    metrics: dict[str, float | None] = {}

    @staticmethod
    def of(reading: Reading) -> ReadingRecord:
        """Return the record of a reading."""
        return ReadingRecord(**dataclasses.asdict(reading))

    def as_row(self) -> dict[str, Any]:
        """Return what a row keeps of the reading; `metrics` become figures of the row."""
        return self.model_dump(exclude={"test", "metrics"})


class ModelRecord(Record):
    """A model: its accuracy on the owner's test set."""

    main: float


class NullRecord(Record):
    """A null: see `assay.methods.null.Null`."""

    scores: list[list[float]]
    hits: list[list[int]]
    trials: int
    models: list[str]

    @staticmethod
    def of(null: Null) -> NullRecord:
        """Return the record of a null."""
        return NullRecord(**dataclasses.asdict(null))


class MarkRecord(ModelRecord):
    """A marked model as it is served, and the owner's mark read from it and from the unmarked model of its seed."""

    reading: ReadingRecord
    on_clean: ReadingRecord


class AttackRecord(Record):
    """What an attack left behind.

    Attributes:
        not_applicable: why the attack does not apply to this network, known only when they met; then nothing is read.
        main: accuracy on the owner's test set.
        readings: the owner's mark in the surrogate (`after`), and what else was read: `rival`, the rival's claim;
            `as_left`, before factors were multiplied out; `beside`, the surrogate of the unmarked model.
        architecture: key of the surrogate's architecture; None if it is none that a store can rebuild.
        compared: figures of the surrogate beside the victim, and of what the attacker had.
        report: the attack's own figures.
    """

    not_applicable: str = ""
    main: float | None = None
    readings: dict[str, ReadingRecord] = {}
    architecture: str | None = None
    compared: dict[str, float | None] = {}
    report: dict[str, float | None] = {}


_KINDS: Mapping[StageKind, type[Record]] = {
    "clean": ModelRecord,
    "calibrate": NullRecord,
    "embed": MarkRecord,
    "attack": AttackRecord,
}


def parsed(kind: StageKind, result: Mapping[str, Any]) -> Record:
    """Return the typed record of a committed stage's `result`."""
    return _KINDS[kind].model_validate(result)
