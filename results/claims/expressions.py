"""Expressions over cells, with one value for each victim seed; a comparison of one is a part of a claim."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from assay.results.claims.cells import Cells, Choice, Missing
from assay.results.merging import Row

Reader = Callable[[Row], float | None]


@dataclass(frozen=True)
class Measured:
    """An expression on one task: its value by victim seed, the cells behind it, and what stands in the way."""

    by_victim: Mapping[int, float]
    keys: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


# --- expressions -------------------------------------------------------------------------------------------------


class Expression(ABC):
    """Something that has a value for each victim."""

    text: str

    @abstractmethod
    def measure(self, cells: Cells, task: str) -> Measured:
        """Return its values on a task."""

    @abstractmethod
    def figures(self) -> Iterator[Figure]:
        """Yield the figures that it is made of."""

    def __sub__(self, other: Expression) -> Expression:
        return Combined(f"{self.text} - {other.text}", (self, other), lambda a, b: a - b)

    def __add__(self, other: Expression) -> Expression:
        return Combined(f"{self.text} + {other.text}", (self, other), lambda a, b: a + b)

    def __abs__(self) -> Expression:
        return Combined(f"|{self.text}|", (self,), abs)

    def below(self, limit: float) -> Expression:
        """Return 1 for victims whose value lies below `limit`, else 0: the mean is their share."""
        return Combined(f"share of victims with {self.text} < {limit:g}", (self,), lambda a: float(a < limit))

    def __ge__(self, margin: float) -> Part:
        return Part(self, ">=", margin)

    def __le__(self, margin: float) -> Part:
        return Part(self, "<=", margin)


@dataclass(frozen=True, eq=False)
class Figure(Expression):
    """One number of each of the chosen cells; attack seeds of a victim are averaged.

    Attributes:
        text: how it is written.
        choices: which cells; the first choice that is in the sweep counts.
        read: from a row to the number; None where it was not measured.
        accuracy: whether it is an accuracy on the main task.
        curve: name of a curve of the attack stage (of the embed stage without attack); `summary` reads it and the row.
    """

    text: str
    choices: tuple[Choice, ...]
    read: Reader | None = None
    accuracy: bool = False
    curve: str = ""
    summary: Callable[[Sequence[Mapping[str, float]], Row], float | None] | None = None

    def figures(self) -> Iterator[Figure]:
        """Yield itself."""
        yield self

    def measure(self, cells: Cells, task: str) -> Measured:
        """Return its values on a task."""
        reasons = []
        for choice in self.choices:
            try:
                found = cells.find(task, choice)
            except Missing as why:
                reasons.append(str(why))
                continue
            values, keys = {}, []
            for victim, rows in found.by_victim.items():
                known = [(row, value) for row in rows if (value := self._value(cells, row)) is not None]
                if known:
                    values[victim] = fmean(value for _, value in known)
                    keys += [row["cell_key"] for row, _ in known]
            if values:
                return Measured(values, tuple(keys), (), found.remarks)
            reasons.insert(0, f"{choice.label}: {self.text} was not measured")  # nearer than a cell that is not there
        return Measured({}, missing=(reasons[0],))

    def _value(self, cells: Cells, row: Row) -> float | None:
        value = self.read(row) if self.read else None
        if self.summary is not None:
            key = row["embed_key" if self.choices[0].attack is None else "attack_key"]
            value = self.summary(list(cells.points(key, self.curve).values()), row)
        return None if value is None or math.isnan(value) else float(value)


@dataclass(frozen=True, eq=False)
class Combined(Expression):
    """A function of other expressions, victim by victim; victims that lack an operand are left out."""

    text: str
    operands: tuple[Expression, ...]
    function: Callable[..., float]

    def figures(self) -> Iterator[Figure]:
        """Yield the figures of its operands."""
        for operand in self.operands:
            yield from operand.figures()

    def measure(self, cells: Cells, task: str) -> Measured:
        """Return its values on a task."""
        parts = [operand.measure(cells, task) for operand in self.operands]
        missing = tuple(dict.fromkeys(why for part in parts for why in part.missing))
        remarks = tuple(dict.fromkeys(remark for part in parts for remark in part.remarks))
        if missing:
            return Measured({}, (), missing, remarks)
        common = set.intersection(*(set(part.by_victim) for part in parts))
        if not common:
            return Measured({}, (), (f"{self.text}: no victim has all of its cells",), remarks)
        keys = tuple(dict.fromkeys(key for part in parts for key in part.keys))
        values = {victim: self.function(*(part.by_victim[victim] for part in parts)) for victim in sorted(common)}
        return Measured(values, keys, (), remarks)


def mean(expressions: Iterable[Expression], text: str) -> Expression:
    """Return the mean of expressions, victim by victim."""
    return Combined(text, tuple(expressions), lambda *values: fmean(values))


def least(expressions: Iterable[Expression], text: str) -> Expression:
    """Return the smallest of expressions, victim by victim."""
    return Combined(text, tuple(expressions), min)


def most(expressions: Iterable[Expression], text: str) -> Expression:
    """Return the largest of expressions, victim by victim."""
    return Combined(text, tuple(expressions), max)


# --- comparisons -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """An expression against a margin; `tasks` are those on which it counts, None: all of the claim's."""

    value: Expression
    relation: Literal[">=", "<="]
    margin: float
    tasks: tuple[str, ...] | None = None

    def on(self, *tasks: str) -> Part:
        """Return the same part, on these tasks alone."""
        return replace(self, tasks=tasks)

    @property
    def text(self) -> str:
        """The part as it is written."""
        return f"{self.value.text} {self.relation} {self.margin:g}"

    def holds(self, value: float) -> bool:
        """Return whether a value is on the right side; the margin itself is."""
        return self.slack(value) >= 0

    def slack(self, value: float) -> float:
        """Return how far a value lies on the right side; up to rounding, which 0.1 + 0.2 should not decide."""
        gap = value - self.margin if self.relation == ">=" else self.margin - value
        return 0.0 if abs(gap) < 1e-12 else gap
