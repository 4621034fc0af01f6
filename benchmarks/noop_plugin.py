"""A method and an attack that do nothing, to measure what the driver costs; `index` only makes cells."""

from __future__ import annotations

from pydantic import Field

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.tasks.lab import Lab


class NoopConfig(MethodConfig):
    """The cell's number."""

    index: int = Field(0, ge=0)


class NoopMethod(Method[NoopConfig]):
    """Marks nothing and always reads a full score.

    Paper: none.
    Access: nothing; the model is not looked at.
    Differs from the paper: not applicable.
    """

    key = "noop"
    title = "nothing"
    paper = "none"
    access = "nothing"
    family = "bits"
    embeds = False
    Config = NoopConfig

    def draw(self, lab: Lab) -> Secret:
        """Return the cell's number."""
        return {"index": self.config.index}

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Return a full score without looking."""
        return Reading(1.0, 0.5, 0.9, 1e-6, True, "none")


class NoopAttackConfig(AttackConfig):
    """The cell's number."""

    index: int = Field(0, ge=0)


class NoopAttack(Attack[NoopAttackConfig]):
    """Leaves the victim as it is: what remains of a cell's time is the driver's.

    Paper: none.
    Access: weights; the model is not looked at.
    Differs from the paper: not applicable.
    """

    key = "noop-attack"
    title = "nothing"
    source = "none"
    kind = "detection"
    access = "weights"
    cheap = True
    Config = NoopAttackConfig

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the cell's number as the report."""
        return Outcome(report={"index": float(self.config.index)})
