"""Which rows are repetitions of one experiment, and how a table names those that are not.

Rows merge over seeds alone. Whatever else tells two cells apart belongs to one of three aspects (task, method, attack),
and what of it differs within a table is part of the name of a line or a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Literal

import pandas as pd

from assay.results import configs
from assay.results.errors import ResultsError
from assay.results.schema import COLUMNS

Row = Mapping[str, Any]
SEEDS: Final = ("victim_seed", "attack_seed")


@dataclass(frozen=True)
class _Part:
    """A column of an aspect: a configuration (JSON), a version, a hash (shown as far as it tells apart), or a word."""

    column: str
    kind: Literal["config", "version", "hash", "word"]
    prefix: str = ""  # of a configuration's parameters, or of the value


@dataclass(frozen=True)
class Aspect:
    """One of the three sides of a cell.

    Attributes:
        name: its column, whose value every label begins with.
        parts: the columns that its label names where they differ, in this order.
        bundle: whether the first part is a name for all others, which are then compared within its values alone.
    """

    name: str
    parts: tuple[_Part, ...]
    bundle: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns, the key first."""
        return (self.name, *(part.column for part in self.parts))


TASK: Final = Aspect(
    "task",
    (
        _Part("profile", "word", "profile="),
        _Part("task_config", "config"),
        _Part("numerics", "config"),
        _Part("data", "hash", "data="),
    ),
    bundle=True,
)
METHOD: Final = Aspect(
    "method",
    (
        _Part("method_version", "version"),
        _Part("method_source", "hash", "source="),
        _Part("method_config", "config"),
        _Part("calibration_config", "config", "calibration."),
    ),
)
ATTACK: Final = Aspect(
    "attack",
    (
        _Part("attack_version", "version"),
        _Part("attack_source", "hash", "source="),
        _Part("attack_config", "config"),
        _Part("split", "word", "split="),
    ),
)
IDENTITY: Final = tuple(column.name for column in COLUMNS if column.part == "asked" and column.name not in SEEDS)
"""The columns that tell experiments apart; two rows merge if they differ in none of them."""
_JSON: Final = frozenset(column.name for column in COLUMNS if column.json)


def records(rows: pd.DataFrame, more: Iterable[str] = ()) -> list[Row]:
    """Return rows as dicts with the cell's key, its identity, its seeds and these columns; null is None, never NaN."""
    names = tuple(dict.fromkeys(("cell_key", *IDENTITY, *SEEDS, *more)))
    columns = [_plain(rows[name]) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _plain(column: pd.Series) -> list[Any]:
    values, null = column.tolist(), column.isna()
    return [None if gone else value for value, gone in zip(values, null, strict=True)] if null.any() else values


# --- merging -----------------------------------------------------------------------------------------------------

_identity = itemgetter(*IDENTITY)
_seeds = itemgetter(*SEEDS)


def setting(row: Row, aspects: Iterable[Aspect] = (TASK, METHOD, ATTACK)) -> tuple[Any, ...]:
    """Return what tells a row's experiment apart, as far as these aspects go; configurations by value (1 is 1.0)."""
    return tuple(_value(row, column) for aspect in aspects for column in aspect.columns)


def _value(row: Row, column: str) -> Any:
    value = row[column]
    return configs.canonical(value) if value is not None and column in _JSON else value


def groups(rows: Iterable[Row], *aspects: Aspect) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows of each setting of these aspects, in the order of their first appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(setting(row, aspects), []).append(row)
    return found


def one_each(rows: Iterable[Row], stage: str) -> list[Row]:
    """Return the first row of each stage key; a row without one stands for itself."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row[stage] or row["cell_key"], row)
    return list(found.values())


def differing(rows: Sequence[Row], columns: Iterable[str] = IDENTITY) -> list[str]:
    """Return the columns, of those that tell experiments apart, in which rows differ."""
    return [name for name in columns if len({_value(row, name) for row in rows}) > 1]


def one_experiment(rows: Sequence[Row]) -> None:
    """Check that rows may be merged: that they differ in seeds alone, and that no two have the same seeds.

    Raises:
        ResultsError: they may not; it names two cells and what differs.
    """
    first = _identity(rows[0]) if rows else ()
    seen: dict[tuple[int, int], Row] = {}
    for row in rows:
        if _identity(row) != first and (names := differing([rows[0], row])):
            raise ResultsError(
                f"cells {_key(rows[0])} and {_key(row)} differ in {', '.join(names)}; only seeds are averaged over"
            )
        other = seen.setdefault(_seeds(row), row)
        if other is not row:
            raise ResultsError(
                f"cells {_key(other)} and {_key(row)} ({row['method']}, {row['attack']}, {row['task']}, victim "
                f"{row['victim_seed']}) are two results of one setting, and their rows do not say what differs; "
                "keep one of them"
            )


def _key(row: Row) -> str:
    return str(row["cell_key"])[:12]


# --- naming ------------------------------------------------------------------------------------------------------


def labels(rows: Sequence[Row], aspect: Aspect) -> list[str]:
    """Return for each row what a table calls its task, method or attack: the key, then what differs on its task.

    As in `adi v2 bits=64`; equal texts mean equal settings.

    Raises:
        ResultsError: two settings cannot be told apart by a text.
    """
    return [f"{row[aspect.name]}{more}" for row, more in zip(rows, suffixes(rows, aspect), strict=True)]


def suffixes(rows: Sequence[Row], aspect: Aspect) -> list[str]:
    """Return for each row what follows the key in its label; empty where nothing differs."""
    settings = [setting(row, (aspect,)) for row in rows]
    scopes: dict[tuple[str, str], dict[tuple[Any, ...], Row]] = {}
    for row, own in zip(rows, settings, strict=True):
        scopes.setdefault((row["task"], row[aspect.name]), {}).setdefault(own, row)
    named = {scope: _named(found, aspect) for scope, found in scopes.items()}
    return [named[row["task"], row[aspect.name]][own] for row, own in zip(rows, settings, strict=True)]


def _named(found: Mapping[tuple[Any, ...], Row], aspect: Aspect) -> dict[tuple[Any, ...], str]:
    """Return the suffix of each setting of one key."""
    if len(found) == 1:
        return dict.fromkeys(found, "")
    for exact in (False, True):  # numbers are rounded unless that makes two of them look the same
        texts = dict(zip(found, _texts(list(found.values()), aspect, exact), strict=True))
        if len(set(texts.values())) == len(texts):
            return texts
    twice = next(text for text in texts.values() if list(texts.values()).count(text) > 1)
    first, second = [row for own, row in found.items() if texts[own] == twice][:2]
    raise ResultsError(
        f"cells {_key(first)} and {_key(second)}: {first[aspect.name]}{twice} names both, but they differ in "
        f"{', '.join(differing([first, second], aspect.columns))}; keep one of them"
    )


def _texts(rows: list[Row], aspect: Aspect, exact: bool) -> list[str]:
    parts = aspect.parts
    words: list[list[str]] = [[] for _ in rows]
    if aspect.bundle:
        for own, text in zip(words, _words(rows, parts[0], exact), strict=True):
            own.append(text)
        within: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            within.setdefault(row[parts[0].column], []).append(place)
        scopes, parts = list(within.values()), parts[1:]
    else:
        scopes = [list(range(len(rows)))]
    for scope in scopes:
        for part in parts:
            for place, text in zip(scope, _words([rows[i] for i in scope], part, exact), strict=True):
                if text not in words[place]:  # a configuration may have named a column's value
                    words[place].append(text)
    return ["".join(f" {text}" for text in own if text) for own in words]


def _words(rows: list[Row], part: _Part, exact: bool) -> Iterator[str]:
    """Yield how each row's value of a part is written; empty texts if all are the same."""
    values = [_value(row, part.column) for row in rows]
    if len(set(values)) == 1:
        yield from [""] * len(rows)
        return
    known = [row[part.column] for row in rows if row[part.column] is not None]
    names = configs.varying(known) if part.kind == "config" else ()
    digits = _digits([str(value) for value in known if value]) if part.kind == "hash" else 0
    for row in rows:
        value = row[part.column]
        if value is None:
            yield f"{part.column}=unknown"
        elif part.kind == "config":
            yield configs.parameters(value, names, part.prefix, exact=exact)
        elif part.kind == "version":
            yield f"v{value}"
        elif part.kind == "hash":
            yield f"{part.prefix}{value[:digits] or 'shipped'}"
        else:
            yield f"{part.prefix}{value}"


def _digits(hashes: list[str]) -> int:
    """Return how many digits tell hashes apart, at least four."""
    longest = max((len(text) for text in hashes), default=0)
    return next((n for n in range(4, longest) if len({text[:n] for text in hashes}) == len(set(hashes))), longest)
