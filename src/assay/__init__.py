"""assay: experiments on watermarks of neural networks, a method x task x attack x seed grid on Ray Tune.

>>> import assay
>>> sweep = assay.run("quickstart", out="runs/quickstart")
>>> sweep.rows, print(sweep.table())

Names are imported when they are asked for: torch and Ray take seconds.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.attacks.base import Attack, AttackConfig, Claims, Needs, Outcome, Victim
    from assay.methods.base import Method, MethodConfig, MethodNeeds
    from assay.methods.embedding import Mark
    from assay.methods.null import Null
    from assay.methods.reading import Reading
    from assay.methods.rival import Forgery, Rival, RivalConfig
    from assay.methods.suspect import Suspect
    from assay.orchestrator.api import Sweep, decide, read, run
    from assay.results.decisions import Rules
    from assay.tasks.errors import AssayError, BadInput, UnsupportedModel
    from assay.tasks.lab import Lab
    from assay.tasks.task import Task
    from assay.tasks.training.recipe import Batch, Recipe, Terms

_HOMES = {
    "assay.attacks.base": ("Attack", "AttackConfig", "Claims", "Needs", "Outcome", "Victim"),
    "assay.methods.base": ("Method", "MethodConfig", "MethodNeeds"),
    "assay.methods.embedding": ("Mark",),
    "assay.methods.null": ("Null",),
    "assay.methods.reading": ("Reading",),
    "assay.methods.rival": ("Forgery", "Rival", "RivalConfig"),
    "assay.methods.suspect": ("Suspect",),
    "assay.orchestrator.api": ("Sweep", "decide", "read", "run"),
    "assay.results.decisions": ("Rules",),
    "assay.tasks.errors": ("AssayError", "BadInput", "UnsupportedModel"),
    "assay.tasks.lab": ("Lab",),
    "assay.tasks.task": ("Task",),
    "assay.tasks.training.recipe": ("Batch", "Recipe", "Terms"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AssayError", "Attack", "AttackConfig", "BadInput", "Batch", "Claims", "Forgery", "Lab", "Mark", "Method",
    "MethodConfig", "MethodNeeds", "Needs", "Null", "Outcome", "Reading", "Recipe", "Rival", "RivalConfig", "Rules",
    "Suspect", "Sweep", "Task", "Terms", "UnsupportedModel", "Victim", "decide", "read", "run",
]  # fmt: skip

try:
    __version__ = version("assay")
except PackageNotFoundError:  # the sources alone, as a cluster's job has them
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
