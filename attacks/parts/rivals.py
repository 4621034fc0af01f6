"""The rival of a victim's method, with the attacker's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import Field

from assay.attacks.base import Attack, AttackConfig, Needs
from assay.methods.base import Method
from assay.methods.rival import Rival
from assay.tasks.errors import BadInput
from assay.tasks.task import Task
from assay.tasks.training.schedule import parse


class RivalrousConfig(AttackConfig):
    """Settings of an attack whose attacker knows the method."""

    # Settings of the method's rival. If the rival lacks one of them, the attack does not apply to the method.
    rival: dict[str, Any] = Field(default_factory=dict)


R = TypeVar("R", bound=RivalrousConfig)


class KnowingAttack(Attack[R]):
    """An attack whose attacker knows the method, and draws secrets from the data sets that the method uses."""

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return the usual needs, and the data sets from which the method draws."""
        return replace(super().needs(task, method), datasets=method.needs(task).datasets)


def rival_of(method: Method[Any], settings: Mapping[str, Any]) -> Rival[Any]:
    """Return the method's rival.

    Raises:
        BadInput: a setting that this rival does not have, or a value out of its range.
    """
    cls = type(method).rival
    return cls(method, parse(cls.Config, settings, f"rival of {method.key}"))


def no_rival(method: Method[Any], settings: Mapping[str, Any]) -> str | None:
    """Return why the method has no rival with these settings, in one line, or None."""
    try:
        rival_of(method, settings)
    except BadInput as why:
        return "; ".join(str(why).splitlines())
    return None
