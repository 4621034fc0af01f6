"""Contracts that methods and attacks share: documentation, names, settings."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from assay.orchestrator.checks.workbench import ContractBroken, Workbench
from assay.orchestrator.planning.configs import configured
from assay.orchestrator.planning.registry import Plugin
from assay.tasks.errors import BadInput

_FIELDS = ("Paper:", "Access:", "Differs from the paper:")
_OUTSIDE: dict[str, Callable[[float], float]] = {
    "exclusiveMinimum": lambda bound: bound,
    "exclusiveMaximum": lambda bound: bound,
    "minimum": lambda bound: bound - 1,
    "maximum": lambda bound: bound + 1,
}


def says_what_it_is(bench: Workbench, cls: type[Plugin]) -> None:
    """The module's docstring gives the idea in one line, `Paper:`, `Access:` and `Differs from the paper:`."""
    text = (sys.modules[cls.__module__].__doc__ or "").strip()
    lines = [line.strip() for line in text.splitlines()]
    if not lines or not lines[0].endswith((".", ":")):
        raise ContractBroken("the module's docstring must open with the idea: one sentence on one line")
    for field in _FIELDS:
        if not any(line.startswith(field) and len(line) > len(field) for line in lines):
            hint = " (`none known` if it does not)" if field == _FIELDS[-1] else ""
            raise ContractBroken(f"the module's docstring needs a line that starts with `{field}`{hint}")


def is_named_like_its_file(bench: Workbench, cls: type[Plugin]) -> None:
    """The file is called like the key, with `_` for `-`."""
    file = Path(sys.modules[cls.__module__].__file__ or "").stem
    if file != cls.key.replace("-", "_"):
        raise ContractBroken(
            f"key {cls.key!r} in {file}.py: rename one so that the file is {cls.key.replace('-', '_')}.py"
        )


def has_sound_settings(bench: Workbench, cls: type[Plugin]) -> None:
    """Every setting has a valid default and, if it is a number, bounds; `laptop` is valid; unknown names raise."""
    config: Any = cls.Config
    any_class: Any = cls  # methods and attacks are configured alike
    required = [name for name, field in config.model_fields.items() if field.is_required()]
    if required:
        raise ContractBroken(f"Config.{required[0]} has no default; give the paper's value")
    try:
        configured(any_class, config().model_dump())
        configured(any_class, cls.laptop)
    except BadInput as error:
        raise ContractBroken(f"Config refuses its own default or `laptop` value: {error}") from None
    for name, kind in _numbers(config.model_json_schema()):
        if not any(bound in kind for bound in _OUTSIDE):
            raise ContractBroken(f"Config.{name} accepts any number; give Field(...) a bound (gt, ge, lt or le)")
    _refused(cls, {"no-such-setting": 1}, "an unknown setting")


def refuses_what_is_out_of_range(bench: Workbench, cls: type[Plugin]) -> None:
    """A number outside its bounds, or of another type, raises; nothing is clamped or guessed."""
    for name, kind in _numbers(cls.Config.model_json_schema()):
        for bound, outside in _OUTSIDE.items():
            if bound in kind:
                value = outside(kind[bound])
                _refused(cls, {name: math.ceil(value) if kind["type"] == "integer" else float(value)}, f"Config.{name}")
        if isinstance(kind.get("default"), int | float):
            _refused(cls, {name: str(kind["default"])}, f"Config.{name}")


def _refused(cls: type[Plugin], values: dict[str, Any], what: str) -> None:
    try:
        cls.Config.model_validate(values)
    except ValidationError:
        return
    raise ContractBroken(
        f"{what} accepts {next(iter(values.values()))!r}; derive Config from the base class's and keep it strict"
    )


def _numbers(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the numeric settings (not lists of numbers) with the part of the JSON schema that bounds them."""
    for name, field in schema["properties"].items():
        for option in (field, *field.get("anyOf", ())):
            if option.get("type") in ("integer", "number"):
                yield name, option


COMMON_CHECKS = (says_what_it_is, is_named_like_its_file, has_sound_settings, refuses_what_is_out_of_range)
