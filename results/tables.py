"""Tables of a sweep: methods x attacks, measured beside published, and the counts for a status line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from assay.results import configs
from assay.results.render import Format, Keys, Table, percent, render
from assay.results.reproduction import published
from assay.results.schema import OUTCOMES, STATUSES
from assay.results.statistics import over_victims

__all__ = ["Format", "Table", "matrix", "published", "render", "summary"]

_ABSENT: Final = "-"
_NOT_RUN: Final = {"failed": "failed", "blocked": "blocked", "not_applicable": "n/a"}  # worst first
_SEVERITY: Final = ("removed", "useless", "failed", "retained")  # worst for the owner first
_LEGEND: Final = (
    "outcome at the strict threshold (false claims at most 1e-3), then accuracy · watermark score in percent, "
    "± the 95 % t half-width over victim seeds",
    "removed: at most 5 points of accuracy lost and the mark not verified; retained: as much and verified; "
    "useless: more lost, not verified; failed: more lost and verified",
    "'paper:' and 'SoK:' say whether the mark verifies at the paper's own and at SoK's threshold, where strict says "
    "otherwise; 'rival': the attacker's own claim; k/n counts cells",
    "unverified before: in the victim itself, before any attack, the mark did not verify; removed says nothing then",
    "pointless: the attacker's data alone, without the victim, give a model at least as accurate",
)


# --- methods x attacks -------------------------------------------------------------------------------------------


@dataclass
class _Notes:
    """Footnotes, numbered in the order of their first use."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        return [f"[{number}] {text}" for number, text in enumerate(self.texts, start=1)]


def matrix(rows: pd.DataFrame) -> Table:
    """Return the default table of a sweep: one line per method, one column per attack, one block per task.

    Configurations that differ within a method (or an attack) on a task become lines (or columns) of their own, named by
    what differs. A cell that did not run says why in a footnote and is never a number.

    Args:
        rows: as returned by `parquet.read_rows`.
    """
    frame = rows.sort_values("cell_key")
    profiles = frame["profile"].nunique() > 1
    labelled = frame.assign(_block=frame["task"] + (" (" + frame["profile"] + ")" if profiles else ""))
    labelled = labelled.assign(_line=_labels(labelled, "method"), _column=_labels(labelled, "attack"))
    blocks = sorted(labelled["_block"].unique(), key=configs.natural)
    attacks = sorted(labelled["_column"].unique(), key=lambda name: _order(name, "none"))
    groups = dict(iter(labelled.groupby(["_block", "_line", "_column"], sort=False)))
    usual = _usual_count(list(groups.values()))
    notes = _Notes()
    texts, keys = [], []
    for block in blocks:
        methods = labelled.loc[labelled["_block"] == block, "_line"].unique()
        for method in sorted(methods, key=lambda name: _order(name, "clean")):
            found = [groups.get((block, method, attack)) for attack in attacks]
            lead = (block, method) if len(blocks) > 1 else (method,)
            texts.append((*lead, *(_ABSENT if group is None else _cell(group, usual, notes) for group in found)))
            empty: list[Keys] = [()] * len(lead)
            keys.append((*empty, *(() if group is None else tuple(group["cell_key"]) for group in found)))
    title = "Methods x attacks" + (f" on {blocks[0]}" if len(blocks) == 1 else "")
    headings = ("task", "method") if len(blocks) > 1 else ("method",)
    legend = [*_LEGEND, f"n = {usual} victim seed{'s' * (usual != 1)} unless stated"] if usual else []
    remarks = legend if blocks else ["no cells"]
    return Table(title, (*headings, *attacks), tuple(texts), (*notes.lines(), *remarks), tuple(keys), len(headings))


def _labels(frame: pd.DataFrame, plugin: str) -> pd.Series:
    """Return for each row its method (or attack) with the parameters that differ within its block."""
    labels: dict[tuple[Any, ...], str] = {}
    for (block, key), group in frame.groupby(["_block", plugin], sort=False):
        texts = group[f"{plugin}_config"].unique()
        names = configs.varying(texts)
        labels |= {(block, key, text): configs.label(str(key), text, names) for text in texts}
    rows = zip(frame["_block"], frame[plugin], frame[f"{plugin}_config"], strict=True)
    return pd.Series([labels[row] for row in rows], index=frame.index, dtype=object)


def _order(name: str, first: str) -> tuple[Any, ...]:
    return (name.split(" ")[0] != first, configs.natural(name))


def _usual_count(groups: Sequence[pd.DataFrame]) -> int:
    """Return the most frequent number of victims of a cell with results; 0 if there is none."""
    counts = Counter(group.loc[group["status"] == "ok", "victim_seed"].nunique() for group in groups)
    counts.pop(0, None)
    return max(counts, key=lambda n: (counts[n], n)) if counts else 0


def _cell(group: pd.DataFrame, usual: int, notes: _Notes) -> str:
    done = group[group["status"] == "ok"]
    marks = " ".join(notes.mark(text) for text in _reasons(group, partly=len(done) > 0))
    if done.empty:
        status = next(word for key, word in _NOT_RUN.items() if (group["status"] == key).any())
        return f"{status}: see {marks}"
    victims = done["victim_seed"].astype(int)
    means = [over_victims(done[name], victims) for name in ("main_after", "score_after")]
    numbers = " · ".join(percent(mean) if mean.n else _ABSENT for mean in means) if any(m.n for m in means) else ""
    count = victims.nunique()
    parts = [
        _outcome(done),
        *_unverified(done),
        *_pointless(done),
        numbers,
        *_verdicts(done),
        *_rival(done),
        "" if count == usual else f"n={count}",
        marks,
    ]
    return " ".join(part for part in parts if part)


def _unverified(done: pd.DataFrame) -> Iterator[str]:
    """Return that victims did not carry a verified mark to begin with, if so."""
    known = done.loc[done["outcome"].notna(), "detected_before"].dropna()  # an unmarked model has no outcome
    if no := int((~known.astype(bool)).sum()):
        yield "unverified before" if no == len(known) else f"unverified before {no}/{len(known)}"


def _pointless(done: pd.DataFrame) -> Iterator[str]:
    """Return that the attacker's data alone would have given as good a model, if so."""
    known = [metrics["pointless"] for metrics in done["metrics"] if "pointless" in metrics]
    if yes := int(sum(known)):
        yield "pointless" if yes == len(known) else f"pointless {yes}/{len(known)}"


def _reasons(group: pd.DataFrame, *, partly: bool) -> Iterator[str]:
    """Return why cells did not run: one text per status and reason."""
    for status, word in _NOT_RUN.items():
        missing = group[group["status"] == status]
        for reason, cells in missing.groupby("reason", sort=True):
            share = f" ({len(cells)} of {len(group)} cells)" if partly or len(cells) < len(group) else ""
            yield f"{word}{share}: {str(reason) or 'no reason recorded'}"


def _outcome(done: pd.DataFrame) -> str:
    counts = Counter(done["outcome"].dropna())
    if not counts:
        return ""
    top = max(_SEVERITY, key=lambda name: counts[name])  # the first of equals: the worst for the owner
    return top if counts[top] == len(done) else f"{top} {counts[top]}/{len(done)}"


def _verdicts(done: pd.DataFrame) -> Iterator[str]:
    """Return the paper's and SoK's verdicts where they are not those at `strict`."""
    for name, column in (("paper", "verdict_paper"), ("SoK", "verdict_sok")):
        known = done[done[column].notna() & done["detected_after"].notna()]
        if (known[column] != known["detected_after"]).any():
            yes = int(known[column].sum())
            share = f" {yes}/{len(known)}" if 0 < yes < len(known) else ""
            yield f"{name}: {'yes' if yes else 'no'}{share}"


def _rival(done: pd.DataFrame) -> Iterator[str]:
    """Return whether an attacker's own claim verifies, for attacks that leave one."""
    known = done["rival_verified"].dropna()
    if len(known):
        yes = int(known.sum())
        share = f" {yes}/{len(known)}" if 0 < yes < len(known) else ""
        yield f"rival {'verified' if yes else 'rejected'}{share}"


# --- status ------------------------------------------------------------------------------------------------------


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Return a sweep's counts as plain values.

    Returns:
        `cells`; `status` and `outcomes`: counts by class, zeros included; `failures` and `not_applicable`: one entry
        per reason with `reason`, `cells` (how many), `method`, `attack`, `task` (those it happened to) and `keys`.
        Failures also name their `status`: `failed` first, then `blocked`.
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
        entries.append({"reason": str(reason), "cells": len(group), **where, "keys": sorted(group["cell_key"])})
    return sorted(entries, key=lambda entry: -int(entry["cells"]))
