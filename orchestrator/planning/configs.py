"""From parameters written in a grid to a configured method or attack; the only way in, for plans and for workers."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from assay.attacks.base import Attack
from assay.methods.base import Method
from assay.tasks.training.schedule import Frozen, parse

Plugin = TypeVar("Plugin", bound=Method[Any] | Attack[Any])


def configured(cls: type[Plugin], params: Mapping[str, Any], where: str = "") -> Plugin:
    """Return `cls` with validated parameters; what is left out has the defaults of `cls.Config`.

    Raises:
        BadInput: an unknown parameter, a wrong type or a value out of range: one line, with what is allowed.
    """
    return cls(parse(cls.Config, params, where or cls.key))


def takes_list(config: type[Frozen], name: str) -> bool:
    """Return whether a parameter's own value is a list, so that only a list of lists is an axis."""
    field = config.model_fields.get(name)
    if field is None:
        return False
    options = (field.annotation, *typing.get_args(field.annotation))
    return any((typing.get_origin(option) or option) in (tuple, list, frozenset) for option in options)
