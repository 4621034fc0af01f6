"""Several folders as one: cells are united by their keys, and the order in which the folders are named never matters.

A finished cell replaces one that failed, was blocked or did not apply. Two results of one cell that differ are named,
never chosen between.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from assay.results import parquet
from assay.results.decisions import DEFAULT, Rules, redecide
from assay.results.errors import ResultsError
from assay.results.merging import Row, records
from assay.results.schema import CURVE_ORDER, CURVES_FILE, NULL_ORDER, ROW, TIMING_COLUMNS

_RANK: Final = {"ok": 0, "failed": 1, "blocked": 2, "not_applicable": 3}  # what a reader has to know comes first
_YOUNGER: Final = frozenset(
    {
        *("null_key", "task_config", "calibration_config", "data", "numerics", "method_version", "method_source"),
        *("family", "attack_version", "attack_source", "kind", "readings"),
    }
)
"""The columns that files of schema version 2 lack: a null there contradicts nothing."""
_COMPARED: Final = tuple(name for name in ROW.names if name not in TIMING_COLUMNS)


def read(outs: Iterable[Path], rules: Rules | None = None) -> pd.DataFrame:
    """Return the rows of one or several sweeps as `parquet.read_rows` does, one for each cell.

    Args:
        outs: folders of sweeps, or Parquet files with rows.
        rules: what to decide the readings by; None: the default rules, by which rows are written.

    Raises:
        ResultsError: a folder holds no rows, two results of one cell differ, or what other rules need is not stored.
    """
    folders = list(outs)
    frames = [parquet.read_rows(out) for out in folders]
    if len(frames) == 1:
        whole = frames[0]
    else:
        frames = [frame.assign(_out=place) for place, frame in enumerate(frames)]
        whole = _once(pd.concat(frames, ignore_index=True), folders) if frames else parquet.frame_of([])
    return whole if rules in (None, DEFAULT) else redecide(whole, nulls(folders), rules)


def _once(whole: pd.DataFrame, folders: Sequence[Path]) -> pd.DataFrame:
    """Return one row per cell of rows that name their folder's place in `_out`."""
    doubled = whole[whole["cell_key"].duplicated(keep=False)]
    entries: dict[str, list[tuple[Path, Row]]] = {}
    places: dict[str, list[Any]] = {}
    plain = records(doubled, ROW.names)
    for row, out, place in zip(plain, doubled["_out"], doubled.index, strict=True):
        entries.setdefault(row["cell_key"], []).append((folders[out], row))
        places.setdefault(row["cell_key"], []).append(place)
    kept = {places[key][_chosen(found)] for key, found in entries.items()}
    dropped = [place for place in doubled.index if place not in kept]
    return whole.drop(index=dropped, columns="_out").sort_values("cell_key", ignore_index=True)


def rows(outs: Iterable[Path]) -> list[Row]:
    """Return the rows of one or several sweeps as plain dicts, one for each cell, sorted; errors as `read`."""
    entries: dict[str, list[tuple[Path, Row]]] = {}
    for out in outs:
        for row in parquet.read_records(out):
            entries.setdefault(row["cell_key"], []).append((out, row))
    return [found[_chosen(found)][1] for _, found in sorted(entries.items())]


def curves(outs: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the curves of one or several sweeps, each stage's once; a folder without curves has none.

    Raises:
        ResultsError: a file is damaged, or two curves of one stage differ.
    """
    having = [out for out in outs if (out / CURVES_FILE).is_file()]
    return _points({out: parquet.plain_curves(out) for out in having}, CURVE_ORDER)


def nulls(outs: Iterable[Path]) -> pd.DataFrame:
    """Return the nulls of one or several sweeps as `parquet.read_nulls` does, each once.

    Raises:
        ResultsError: a file is damaged, or two nulls of one key differ.
    """
    folders = list(outs)
    if len(folders) == 1:
        return parquet.read_nulls(folders[0])
    points = _points({out: parquet.plain_nulls(out) for out in folders}, NULL_ORDER)
    return pd.DataFrame(points, columns=parquet.read_nulls(folders[0]).columns)


# --- one of several ----------------------------------------------------------------------------------------------


def _chosen(found: Sequence[tuple[Path, Row]]) -> int:
    """Return which of the rows of one cell counts.

    Raises:
        ResultsError: two finished ones differ.
    """
    if len(found) == 1:
        return 0
    best = min(range(len(found)), key=lambda place: _order(found[place][1]))
    out, row = found[best]
    if row["status"] == "ok":
        others = [(place, other) for place, other in found if other["status"] == "ok" and other is not row]
        for place, other in sorted(others, key=lambda entry: str(entry[0])):
            if names := [name for name in _COMPARED if _contradict(name, row[name], other[name])]:
                one, two = sorted((str(out), str(place)))
                raise ResultsError(
                    f"cell {row['cell_key']}: {one} and {two} hold different results of it ({', '.join(names)}); "
                    "name only one of the two folders"
                )
    return best


def _order(row: Row) -> tuple[Any, ...]:
    """Return by what rows of one cell are sorted, the one that counts first; equal keys mean equal rows."""
    unknown = sum(row[name] is None for name in _YOUNGER)
    return _RANK[row["status"]], unknown, row["reason"], row["started"] or "", _text(dict(row))


def _contradict(name: str, one: Any, two: Any) -> bool:
    if name in _YOUNGER and None in (one, two):
        return False
    return _text(one) != _text(two)


def _text(value: Any) -> str:
    # Every digit of a float is written, and the sign of a zero: equal texts are equal bits.
    return json.dumps(value, sort_keys=True)


def _points(files: Mapping[Path, list[dict[str, Any]]], identity: Sequence[str]) -> list[dict[str, Any]]:
    """Return points in long form, those that several folders hold once."""
    key = identity[0]
    holders: dict[str, list[Path]] = {}
    for out, points in files.items():
        for name in dict.fromkeys(point[key] for point in points):
            holders.setdefault(name, []).append(out)
    shared: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
    kept = []
    for out, points in files.items():
        for point in points:
            if len(holders[point[key]]) == 1:
                kept.append(point)
                continue
            place = tuple(point[name] for name in identity)
            if _text(shared.setdefault(point[key], {}).setdefault(place, point)) != _text(point):
                one, two = sorted(str(holder) for holder in (out, holders[point[key]][0]))
                raise ResultsError(
                    f"{key.replace('_', ' ')} {point[key]}: {one} and {two} hold different values of it; "
                    "name only one of the two folders"
                )
    kept += [point for found in shared.values() for point in found.values()]
    return sorted(kept, key=lambda point: tuple(point[name] for name in identity))
