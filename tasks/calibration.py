"""What a null is read from: how many unmarked models, which of them attacked, and how many never-embedded keys.

docs/protocol.md §5 says what nulls are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from assay.tasks.training.schedule import Frozen, parse

PROCESSES = ("fine-tune", "distill", "prune")
"""Attacks that a reference model may have gone through: they change how often a mark is read by chance."""


class Calibration(Frozen):
    """Where the null of a method on a task comes from. It is part of the null's key, and of no model's.

    Example:
        >>> Calibration(references=2, processed=1).roles
        ('reference-0', 'reference-1', 'reference-0|fine-tune', 'reference-0|distill', 'reference-0|prune')
    """

    references: int = Field(5, ge=1)  # independent unmarked models: 3 smoke, 5 laptop, 10 paper
    keys: int = Field(100, ge=10)  # fresh keys, each read from every model
    processed: int = Field(1, ge=0)  # references that are also read fine-tuned, distilled and pruned, a model each

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the unmarked models, `reference-<i>` and `reference-<i>|<process>`, in the order of reading."""
        plain = tuple(f"reference-{i}" for i in range(self.references))
        return plain + tuple(f"{role}|{process}" for role in plain[: self.processed] for process in PROCESSES)


_SIZES: Mapping[str, Mapping[str, int]] = {
    "paper": {"references": 10},
    "smoke": {"references": 3, "keys": 20, "processed": 0},
}


def resolve_calibration(profile: str, overrides: Mapping[str, Any], where: str = "calibration") -> Calibration:
    """Return the calibration of a profile with a grid's own settings on top.

    Args:
        profile: `paper`, `laptop` or `smoke`; any other name has the laptop's sizes.
        overrides: fields by name, as YAML gives them.
        where: file and key, opens an error.

    Raises:
        BadInput: an unknown field or a value out of its range.
    """
    return parse(Calibration, {**_SIZES.get(profile, {}), **overrides}, where)
