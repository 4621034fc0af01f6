"""Configurations as the rows carry them (JSON text): flattened, compared, and named by what varies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from assay.results.errors import ResultsError


@lru_cache(maxsize=65536)
def flat(text: str) -> Mapping[str, Any]:
    """Return a configuration with nested keys joined by dots; lists stay values."""
    try:
        config = json.loads(text)
    except ValueError as why:
        raise ResultsError(f"configuration {text[:60]!r} is no JSON: {why}") from why
    if not isinstance(config, dict):
        raise ResultsError(f"configuration {text[:60]!r} is no JSON object")
    return dict(_leaves(config, ""))


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def varying(configs: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters whose value differs between configurations, in the order in which they appear."""
    flats = [flat(text) for text in dict.fromkeys(configs)]
    names = dict.fromkeys(name for config in flats for name in config)
    return tuple(name for name in names if len({_text(config.get(name, ...)) for config in flats}) > 1)


@lru_cache(maxsize=65536)
def canonical(text: str) -> str:
    """Return a text that is the same for equal configurations, however their keys are ordered or numbers written."""
    return json.dumps({name: _text(value) for name, value in flat(text).items()}, sort_keys=True)


def label(key: str, config: str, names: Iterable[str]) -> str:
    """Return a plugin's key followed by the named parameters, as in `distill temperature=5`."""
    return " ".join(part for part in (key, parameters(config, names)) if part)


def parameters(config: str, names: Iterable[str], prefix: str = "", *, exact: bool = False) -> str:
    """Return the named parameters of a configuration, those that it has, as in `epochs=8 lr=0.001`.

    Args:
        config: the configuration.
        names: the parameters, nested ones joined by dots.
        prefix: what to write before each name.
        exact: write values as JSON, every digit of a number included.
    """
    values = flat(config)
    shown = _text if exact else show
    return " ".join(f"{prefix}{name}={shown(values[name])}" for name in names if name in values)


def show(value: Any) -> str:
    """Return a parameter's value as a person writes it."""
    if value is True or value is False or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(show(item) for item in value)
    return str(value)


def natural(text: str) -> list[tuple[int, float, str]]:
    """Return a sorting key that orders the numbers in a text by size: `ratio=0.5` before `ratio=0.75` before `1e1`."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


def _text(value: Any) -> str:
    # 1 and 1.0 are the same setting; True is not 1.
    if value is ...:
        return "(absent)"
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return json.dumps(value, sort_keys=True)


def same(ours: Any, theirs: Any) -> bool:
    """Return whether two parameter values agree; numbers up to rounding in the ninth digit."""
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return abs(ours - theirs) <= 1e-9 * max(abs(ours), abs(theirs))
    return bool(ours == theirs)
