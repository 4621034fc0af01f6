"""Networks that an attacker trains from scratch on a victim's answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from torch import nn

from assay.attacks.base import Structure
from assay.tasks.errors import unknown
from assay.tasks.lab import Lab
from assay.tasks.networks.architectures import ARCHITECTURES, kind_of
from assay.tasks.streams import global_stream
from assay.tasks.task import Task


def _known(student: str | None) -> str | None:
    if student not in (None, *ARCHITECTURES):
        raise ValueError(str(unknown("architecture", str(student), ARCHITECTURES)))
    return student


Student = Annotated[str | None, AfterValidator(_known)]
"""Key of an architecture; None: the victim's own."""


def unfit_student(student: str | None, task: Task) -> str | None:
    """Return why a student cannot learn a task, or None."""
    if student is None or kind_of(student) == task.info.kind:
        return None
    return f"student {student} takes {kind_of(student)} inputs, {task.dataset} has {task.info.kind} inputs"


def fresh_student(student: str | None, task: Task, lab: Lab) -> tuple[nn.Module, Structure]:
    """Return an untrained student, its weights drawn from the attack's own stream, and how it relates to the victim.

    Raises:
        UnsupportedModel: the architecture does not take inputs of this shape.
    """
    kind = student or task.model
    with global_stream(lab.plugin, "init", lab.seed):
        return task.architecture(kind), "same" if kind == task.model else "other_arch"
