"""What embedding and verifying are for every method: the start, the training run, the gate, the declared access."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.tasks.errors import Diverged, NotEmbedded, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.training.schedule import Schedule

if TYPE_CHECKING:
    from assay.methods.base import Method, Secret


@dataclass
class Mark:
    """What embedding returns.

    Attributes:
        model: the marked network, plain architecture, eval mode.
        secret: what the owner keeps.
        notes: remarks for the record.
    """

    model: nn.Module
    secret: Secret
    notes: list[str] = field(default_factory=list)


def embed(method: Method[Any], lab: Lab) -> Mark:
    """Mark a model of `lab.task` trained on the owner's data, and pass the gate.

    Raises:
        NotEmbedded: the mark's own score stays below the gate (unless `allow_weak`).
        Diverged: a loss stopped being finite.
    """
    secret = method.draw(lab)
    if not method.embeds:
        return Mark(lab.unmarked("clean"), secret)
    fresh = method.needs(lab.task).start == "scratch"
    start = lab.task.build(lab.train_seed) if fresh else lab.unmarked("clean")
    mark = implant(method, start, secret, lab, method.schedule(lab.task))
    reading = verify(method, method.served(mark.model, mark.secret), mark.secret)
    if reading.score < method.gate:
        message = f"{method.key} on {lab.task.key}: score {reading.score:.4f} is below the gate {method.gate}"
        if not method.config.allow_weak:
            raise NotEmbedded(f"{message}; train longer or set allow_weak")
        mark.notes.append(f"weak: {message}")
    return mark


def implant(method: Method[Any], model: nn.Module, secret: Secret, lab: Lab, schedule: Schedule) -> Mark:
    """Train `secret` into `model` by `schedule`; an owner embeds so, and a rival overwrites.

    Raises:
        Diverged: a loss stopped being finite.
    """
    lab = lab.under(schedule)
    recipe = method.recipe(lab, secret)
    trained = lab.fit(model, lab.data.train, recipe, schedule)
    if trained.diverged:
        raise Diverged(f"{method.key} on {lab.task.key}: a loss is not finite after {len(trained.history)} epochs")
    return Mark(recipe.finish(trained.model).eval(), secret, list(recipe.notes))


def verify(method: Method[Any], model: nn.Module, secret: Secret) -> Reading:
    """Read the mark under the declared access; a suspect that cannot carry it gives `applicable=False`."""
    try:
        return method.read(Suspect(model, method.access, method.key), secret)
    except UnsupportedModel as why:
        return Reading.not_applicable(str(why))
