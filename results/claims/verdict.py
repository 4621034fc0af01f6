"""From a claim and a sweep to a verdict: holds, fails, or not tested and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Final, Literal

from assay.results import papers
from assay.results.claims.cells import Cells
from assay.results.claims.expressions import Expression, Part
from assay.results.claims.settings import GRIDS
from assay.results.configs import same, show

Word = Literal["holds", "fails", "not tested"]
Role = Literal["test", "control", "report"]

_LEAST_ACCURACY: Final = 0.5  # of the unmarked model; below it a setting decides no claim about accuracy
_SHOWN: Final = 2  # reasons of one kind that are spelled out


@dataclass(frozen=True)
class Printed:
    """Numbers of a published table, chosen by column; parameters are chosen by `params`, whichever column has them."""

    table: str
    where: Mapping[str, Any]
    params: Mapping[str, Any]

    def numbers(self) -> list[dict[str, Any]]:
        """Return the chosen numbers: table, what is printed, and the value (a fraction for rates).

        Raises:
            ResultsError: there is no such table.
        """
        paper, number = papers.parse(self.table)
        frame = papers.load(paper)
        rows = frame[frame["table"] == number].to_dict("records")
        return [
            {"table": self.table, "text": _name(row), "value": float(row["value"])} for row in rows if self._fits(row)
        ]

    def _fits(self, row: Mapping[Any, Any]) -> bool:
        stated = {**row["wm_params"], **row["attack_params"]}
        if any(name not in stated or not _among(stated[name], value) for name, value in self.params.items()):
            return False
        return all(_among(row[name], value) for name, value in self.where.items())


def printed(table: str, params: Mapping[str, Any] | None = None, /, **where: Any) -> Printed:
    """Return a choice of published numbers; a tuple means "one of"."""
    return Printed(table, where, params or {})


def _among(found: Any, wanted: Any) -> bool:
    return any(same(found, value) for value in (wanted if isinstance(wanted, tuple) else (wanted,)))


def _name(row: Mapping[Any, Any]) -> str:
    def plugin(key: str, params: Mapping[str, Any]) -> str:
        return " ".join([key, *(f"{name}={show(value)}" for name, value in params.items())])

    attack = "" if row["attack"] == "none" else f" | {plugin(row['attack'], row['attack_params'])}"
    stage = "" if row["stage"] in ("na", "after") else f" {row['stage']}"
    return f"{row['dataset']}-{row['model']} {plugin(row['method'], row['wm_params'])}{attack}: {row['metric']}{stage}"


@dataclass(frozen=True)
class Claim:
    """One checkable statement of a paper.

    Attributes:
        id: e.g. `S0-1`; a letter behind it marks a second verdict on the same statement.
        title: the statement in our words.
        on: keys of the tasks that decide it.
        tests: comparisons that must all hold.
        controls: comparisons without which a task decides nothing.
        reports: figures worth a look that decide nothing.
        published: the numbers that the paper prints.
        figures: what the paper only plots or argues.
        note: what the reader of a verdict should know.
    """

    id: str
    title: str
    on: tuple[str, ...]
    tests: tuple[Part, ...]
    controls: tuple[Part, ...] = ()
    reports: tuple[Expression, ...] = ()
    published: tuple[Printed, ...] = ()
    figures: str = ""
    note: str = ""

    @property
    def grid(self) -> str:
        """What the names of the shipped grids that feed it begin with."""
        return GRIDS[self.id[:2]]


@dataclass(frozen=True)
class Reading:
    """One comparison (or reported figure) on one task; numbers are None where it was not measured."""

    task: str
    role: Role
    text: str
    verdict: Word | Literal["reported"]
    value: float | None
    margin: float | None
    se: float | None
    n: int
    borderline: bool
    reason: str
    slack: float
    cells: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        names = ("task", "role", "text", "verdict", "value", "margin", "se", "n", "borderline", "reason", "cells")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim; value, margin, se and n are those of the tightest comparison that was decided."""

    claim: Claim
    verdict: Word
    tightest: Reading | None
    readings: tuple[Reading, ...]
    reason: str

    @property
    def borderline(self) -> bool:
        """Whether the verdict hangs on a comparison that lies within a standard error of its margin."""
        return self.verdict != "not tested" and self.tightest is not None and self.tightest.borderline

    def published(self) -> list[dict[str, Any]]:
        """Return the numbers that the paper prints, as `Printed.numbers` does."""
        return [number for choice in self.claim.published for number in choice.numbers()]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        tight = self.tightest
        return {
            "claim": self.claim.id,
            "title": self.claim.title,
            "verdict": self.verdict,
            "value": tight.value if tight else None,
            "margin": tight.margin if tight else None,
            "se": tight.se if tight else None,
            "n": tight.n if tight else 0,
            "borderline": self.borderline,
            "parts": [reading.as_dict() for reading in self.readings],
            "reason": self.reason,
            "published": self.published(),
            "figures": self.claim.figures,
            "grid": self.claim.grid,
            "note": self.claim.note,
        }


# --- judging -----------------------------------------------------------------------------------------------------


def judge(claim: Claim, cells: Cells) -> Finding:
    """Return the verdict on a claim.

    A claim fails if a task refutes it, holds if a task confirms it and none refutes it; a task confirms it if all of
    its comparisons hold, refutes it if one fails, and says nothing if a control was violated or not run.
    """
    present = [task for task in claim.on if task in cells.tasks]
    readings = [reading for task in present for reading in _read(claim, cells, task)]
    words: dict[str, Word] = {}
    reasons = []
    for task in present:
        words[task], why = _of_task([reading for reading in readings if reading.task == task])
        reasons += [f"{task}: {why}"] if why else []
    if absent := [task for task in claim.on if task not in cells.tasks]:
        reasons.append(f"no cells on {', '.join(absent)} (shipped grids: {claim.grid}*)")
    found = set(words.values())
    verdict: Word = "fails" if "fails" in found else "holds" if "holds" in found else "not tested"
    deciding = [r for r in readings if r.role == "test" and r.verdict != "not tested" and words[r.task] == verdict]
    tightest = min(deciding, key=lambda r: r.slack, default=None) if verdict != "not tested" else None
    return Finding(claim, verdict, tightest, tuple(readings), "; ".join(reasons))


def _read(claim: Claim, cells: Cells, task: str) -> Iterator[Reading]:
    accuracy = cells.clean_accuracy(task)
    for role, parts in (("control", claim.controls), ("test", claim.tests)):
        for part in parts:
            if part.tasks is None or task in part.tasks:
                yield _compare(part, cells, task, role, accuracy)  # type: ignore[arg-type]
    for figure in claim.reports:
        yield _compare(figure, cells, task, "report", accuracy)


def _compare(what: Part | Expression, cells: Cells, task: str, role: Role, accuracy: float | None) -> Reading:
    part = what if isinstance(what, Part) else None
    expression = part.value if part else what
    assert isinstance(expression, Expression)
    text, margin = (part.text, part.margin) if part else (expression.text, None)
    measured = expression.measure(cells, task)
    about_accuracy = any(figure.accuracy for figure in expression.figures())
    blocking = list(measured.missing)
    if part and about_accuracy and accuracy is not None and accuracy < _LEAST_ACCURACY:
        blocking.append(f"the unmarked model's accuracy of {accuracy:.2f} is too low to decide about accuracy")
    if blocking:
        return Reading(task, role, text, "not tested", None, margin, None, 0, False, _short(blocking), math.inf, ())
    values = list(measured.by_victim.values())
    value, se = fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    remarks = _short(measured.remarks)
    if part is None:
        return Reading(
            task, role, text, "reported", value, None, se, len(values), False, remarks, math.inf, measured.keys
        )
    slack = part.slack(value)
    return Reading(
        task, role, text, "holds" if slack >= 0 else "fails", value, margin, se, len(values),
        se is not None and abs(value - part.margin) < se, remarks, slack, measured.keys,
    )  # fmt: skip


def _of_task(readings: list[Reading]) -> tuple[Word, str]:
    """Return what a task says of a claim, and why it says nothing (or on what its word does not rest)."""
    for reading in readings:
        if reading.role == "control" and reading.verdict != "holds":
            what = reading.reason if reading.verdict == "not tested" else f"{reading.value:.3f}"
            state = "not run" if reading.verdict == "not tested" else "violated"
            return "not tested", f"control {state}: {reading.text} ({what})"
    tests = [reading for reading in readings if reading.role == "test"]
    absent = _short(reading.reason for reading in tests if reading.verdict == "not tested")
    remarks = _short(reading.reason for reading in tests if reading.verdict != "not tested" and reading.reason)
    if any(reading.verdict == "fails" for reading in tests):
        return "fails", "; ".join(text for text in (absent, remarks) if text)
    if absent or not tests:
        return "not tested", absent or "nothing of it is tested here"
    return "holds", remarks


def _short(reasons: Iterable[str]) -> str:
    """Return the first few different reasons, and how many more there are."""
    every = list(dict.fromkeys(part for reason in reasons for part in reason.split("; ")))
    more = f"; and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return "; ".join(every[:_SHOWN]) + more


def findings(cells: Cells, claims: Iterable[Claim]) -> list[Finding]:
    """Return the verdicts on claims, in their order."""
    return [judge(claim, cells) for claim in claims]
