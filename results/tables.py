"""Tables of a sweep: methods x attacks, measured beside published, and the counts for a status line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from assay.results import configs
from assay.results.decisions import Rules
from assay.results.merging import ATTACK, METHOD, TASK, Row, labels, records
from assay.results.render import Format, Keys, Table, percent, render
from assay.results.reproduction import published
from assay.results.schema import OUTCOMES, STATUSES
from assay.results.statistics import over_victims

__all__ = ["Format", "Table", "matrix", "published", "render", "summary"]

_ABSENT: Final = "-"
_NOT_RUN: Final = {"failed": "failed", "blocked": "blocked", "not_applicable": "n/a"}  # worst first
_SEVERITY: Final = ("removed", "useless", "failed", "retained")  # worst for the owner first
_DEFAULT: Final = Rules()
_FIGURES: Final = (
    "attack_key", "status", "reason", "outcome", "main_after", "score_after", "detected_before", "detected_after",
    "verdict_paper", "verdict_sok", "rival_verified", "metrics",
)  # fmt: skip


def _legend(rules: Rules) -> tuple[str, ...]:
    points = f"{100 * rules.largest_loss:g} points"
    return (
        f"outcome at the strict threshold (false claims at most {rules.alpha:g}), then accuracy · watermark score in "
        "percent, ± the 95 % t half-width over victim seeds",
        f"removed: at most {points} of accuracy lost and the mark not verified; retained: as much and verified; "
        "useless: more lost, not verified; failed: more lost and verified",
        "'paper: yes' / 'SoK: no' appear only if that rule disagrees with the strict one; 'rival': the attacker's own "
        "claim; k/n counts cells",
        "unverified before: the mark did not verify even before the attack, so 'removed' is not the attack's doing",
        "pointless: the attacker's data alone, without the victim, give a model at least as accurate",
    )


# --- methods x attacks -------------------------------------------------------------------------------------------


@dataclass
class _Notes:
    """Footnotes, numbered in the order of their first use; each may name a stage whose log says more."""

    logs: dict[str, str | None] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def mark(self, text: str, log: str | None) -> str:
        number = self.numbers.setdefault(text, len(self.numbers) + 1)
        self.logs.setdefault(text, log)
        return f"[{number}]"

    def lines(self) -> list[str]:
        return [f"[{number}] {text}{_log(self.logs[text])}" for text, number in self.numbers.items()]


def _log(key: str | None) -> str:
    return f" (assay log OUT {key[:12]})" if key else ""


@dataclass(frozen=True)
class _Group:
    """The rows behind one text: all of one experiment, and those of them that have results."""

    rows: list[Row]
    done: list[Row]

    @property
    def victims(self) -> int:
        return len({row["victim_seed"] for row in self.done})


def matrix(rows: pd.DataFrame, rules: Rules = _DEFAULT) -> Table:
    """Return the default table of a sweep: one line per method, one column per attack, one block per task.

    Settings that differ within a task, a method or an attack become blocks, lines or columns of their own, named by
    what differs. A cell that did not run says why in a footnote and is never a number.

    Args:
        rows: as returned by `parquet.read_rows`.
        rules: those that the rows were decided by, for the legend.

    Raises:
        ResultsError: two cells cannot be told apart by what their rows hold.
    """
    cells = records(rows.sort_values("cell_key"), _FIGURES)
    places = list(zip(*(labels(cells, aspect) for aspect in (TASK, METHOD, ATTACK)), strict=True))
    groups = _grouped(cells, places)
    blocks = sorted({place[0] for place in places}, key=configs.natural)
    attacks = sorted({place[2] for place in places}, key=lambda name: _order(name, "none"))
    usual = _usual_count(groups.values())
    notes = _Notes()
    texts, keys = [], []
    for block, method in _lines(places, blocks):
        found = [groups.get((block, method, attack)) for attack in attacks]
        lead = (block, method) if len(blocks) > 1 else (method,)
        texts.append((*lead, *(_ABSENT if group is None else _cell(group, usual, notes) for group in found)))
        empty: list[Keys] = [()] * len(lead)
        keys.append(
            (*empty, *(() if group is None else tuple(row["cell_key"] for row in group.rows) for group in found))
        )
    title = "Methods x attacks" + (f" on {blocks[0]}" if len(blocks) == 1 else "")
    headings = ("task", "method") if len(blocks) > 1 else ("method",)
    legend = [*_legend(rules), f"n = {usual} victim seed{'s' * (usual != 1)} unless stated"] if usual else []
    remarks = legend if blocks else ["no cells"]
    return Table(title, (*headings, *attacks), tuple(texts), (*notes.lines(), *remarks), tuple(keys), len(headings))


_Place = tuple[str, ...]


def _grouped(cells: Iterable[Row], places: Iterable[_Place]) -> dict[_Place, _Group]:
    """Return the rows of each place of the table."""
    groups: dict[_Place, _Group] = {}
    for row, place in zip(cells, places, strict=True):
        group = groups.setdefault(place, _Group([], []))
        group.rows.append(row)
        if row["status"] == "ok":
            group.done.append(row)
    return groups


def _lines(places: Iterable[_Place], blocks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield block and method of each line, the unmarked model first."""
    methods: dict[str, set[str]] = {}
    for block, method, _ in places:
        methods.setdefault(block, set()).add(method)
    for block in blocks:
        for method in sorted(methods[block], key=lambda name: _order(name, "clean")):
            yield block, method


def _order(name: str, first: str) -> tuple[Any, ...]:
    return (name.split(" ")[0] != first, configs.natural(name))


def _usual_count(groups: Iterable[_Group]) -> int:
    """Return the most frequent number of victims of a cell with results; 0 if there is none."""
    counts = Counter(group.victims for group in groups)
    counts.pop(0, None)
    return max(counts, key=lambda n: (counts[n], n)) if counts else 0


def _cell(group: _Group, usual: int, notes: _Notes) -> str:
    done = group.done
    marks = " ".join(notes.mark(text, log) for text, log in _reasons(group))
    if not done:
        found = {row["status"] for row in group.rows}
        status = next(word for key, word in _NOT_RUN.items() if key in found)
        return f"{status}: see {marks}"
    means = [over_victims([row[name] for row in done], done) for name in ("main_after", "score_after")]
    numbers = " · ".join(percent(mean) if mean.n else _ABSENT for mean in means) if any(m.n for m in means) else ""
    parts = [
        _outcome(done),
        *_unverified(done),
        *_pointless(done),
        numbers,
        *_verdicts(done),
        *_rival(done),
        "" if group.victims == usual else f"n={group.victims}",
        marks,
    ]
    return " ".join(part for part in parts if part)


def _unverified(done: Iterable[Row]) -> Iterator[str]:
    """Yield that victims did not carry a verified mark to begin with, if so."""
    # An unmarked model has no outcome.
    known = [row["detected_before"] for row in done if row["outcome"] is not None]
    known = [verified for verified in known if verified is not None]
    if no := known.count(False):
        yield "unverified before" if no == len(known) else f"unverified before {no}/{len(known)}"


def _pointless(done: Iterable[Row]) -> Iterator[str]:
    """Yield that the attacker's data alone would have given as good a model, if so."""
    known = [row["metrics"]["pointless"] for row in done if "pointless" in row["metrics"]]
    if yes := int(sum(known)):
        yield "pointless" if yes == len(known) else f"pointless {yes}/{len(known)}"


def _reasons(group: _Group) -> Iterator[tuple[str, str | None]]:
    """Yield why cells did not run: one text per status and reason, and the stage whose log tells more."""
    for status, word in _NOT_RUN.items():
        found: dict[str, list[Row]] = {}
        for row in group.rows:
            if row["status"] == status:
                found.setdefault(row["reason"], []).append(row)
        for reason, cells in sorted(found.items()):
            partly = group.done or len(cells) < len(group.rows)
            share = f" ({len(cells)} of {len(group.rows)} cells)" if partly else ""
            yield f"{word}{share}: {reason or 'no reason recorded'}", cells[0]["attack_key"]


def _outcome(done: Sequence[Row]) -> str:
    counts = Counter(row["outcome"] for row in done if row["outcome"] is not None)
    if not counts:
        return ""
    top = max(_SEVERITY, key=lambda name: counts[name])  # the first of equals: the worst for the owner
    return top if counts[top] == len(done) else f"{top} {counts[top]}/{len(done)}"


def _verdicts(done: Iterable[Row]) -> Iterator[str]:
    """Yield the paper's and SoK's verdicts where they are not those at `strict`."""
    for name, column in (("paper", "verdict_paper"), ("SoK", "verdict_sok")):
        known = [(row[column], row["detected_after"]) for row in done]
        known = [pair for pair in known if None not in pair]
        if any(own != strict for own, strict in known):
            yield f"{name}: {_votes([own for own, _ in known], 'yes', 'no')}"


def _rival(done: Iterable[Row]) -> Iterator[str]:
    """Yield whether an attacker's own claim verifies, for attacks that leave one."""
    if known := [row["rival_verified"] for row in done if row["rival_verified"] is not None]:
        yield f"rival {_votes(known, 'verified', 'rejected')}"


def _votes(known: Sequence[bool], yes: str, no: str) -> str:
    count = sum(known)
    share = f" {count}/{len(known)}" if 0 < count < len(known) else ""
    return f"{yes if count else no}{share}"


# --- status ------------------------------------------------------------------------------------------------------


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Return a sweep's counts as plain values.

    Returns:
        `cells`; `status` and `outcomes`: counts by class, zeros included; `failures` and `not_applicable`: one entry
        per reason with `reason`, `cells` (how many), `method`, `attack`, `task` (those it happened to), `keys`, and
        `log`: the stage whose log tells more of the first of them, None if there is none. Failures also name their
        `status`: `failed` first, then `blocked`.
    """
    status, outcome = Counter(rows["status"]), Counter(rows["outcome"].dropna())
    failures = [
        {"status": name, **entry}
        for name in ("failed", "blocked")
        for entry in _by_reason(rows[rows["status"] == name])
    ]
    return {
        "cells": len(rows),
        "status": {name: status[name] for name in STATUSES},
        "outcomes": {name: outcome[name] for name in OUTCOMES},
        "failures": failures,
        "not_applicable": _by_reason(rows[rows["status"] == "not_applicable"]),
    }


def _by_reason(rows: pd.DataFrame) -> list[dict[str, Any]]:
    entries = []
    for reason, group in rows.groupby("reason", sort=True):
        where = {name: sorted(group[name].unique()) for name in ("method", "attack", "task")}
        logs = sorted(group["attack_key"].dropna())
        entries.append({
            "reason": str(reason), "cells": len(group), **where, "keys": sorted(group["cell_key"]),
            "log": logs[0] if logs else None,
        })  # fmt: skip
    return sorted(entries, key=lambda entry: -int(entry["cells"]))
