"""A method and an attack that do nothing, to measure what the driver costs; `index` only makes cells."""

from __future__ import annotations

from assay.methods.verdict import Thresholds, Verdict
from pydantic import Field

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.methods.base import Mark, Method, MethodConfig, Secret
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Party
from assay.tasks.lab import Lab
from assay.tasks.task import Task


class NoopMethod(Method):
    """Marks nothing and always reads a full score.

    Paper: none.
    Access: none; the model is not looked at.
    Differs from the paper: not applicable.
    """

    class Config(MethodConfig):
        """The cell's number."""

        index: int = Field(0, ge=0)

    key = "noop"
    title = "nothing"
    paper = "none"
    access = "nothing"
    family = "bits"

    def unmarked(self, task: Task) -> tuple[str, ...]:
        """Only the paired unmarked model."""
        return ("clean",)

    def draw(self, task: Task, data: Party, lab: Lab) -> Secret:
        """Return the cell's number."""
        return {"index": self.config.index}

    def embed(self, task: Task, data: Party, lab: Lab) -> Mark:
        """Return the unmarked model."""
        return Mark(lab.unmarked("clean"), self.draw(task, data, lab))

    def read(self, suspect: Suspect, secret: Secret) -> Verdict:
        """Return a full score without looking."""
        return Verdict(1.0, 0.5, 0.9, 1e-6, True, "none")

    def thresholds(self, task: Task, data: Party, secret: Secret, lab: Lab) -> Thresholds:
        """Return thresholds that nothing was calibrated for."""
        return Thresholds(paper=0.9, sok=0.9, strict=0.9)


class NoopAttack(Attack):
    """Leaves the victim as it is."""

    class Config(AttackConfig):
        """The cell's number."""

        index: int = Field(0, ge=0)

    key = "noop-attack"
    title = "nothing"
    source = "none"
    needs = "weights"
    cheap = True

    def run(self, victim: Victim, data: Party, lab: Lab) -> Outcome:
        """Return the victim itself as what is left."""
        return Outcome()
