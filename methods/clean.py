"""No watermark: the unmarked model as one more method, so that every table has its baseline.

Paper: none.
Access: none; there is nothing to verify.
Differs from the paper: not applicable.
"""

from __future__ import annotations

from assay.methods.base import Mark, Method, Secret
from assay.methods.suspect import Suspect
from assay.methods.verdict import Thresholds, Verdict
from assay.tasks.data.splits import Party
from assay.tasks.lab import Lab
from assay.tasks.task import Task


class Clean(Method):
    """The unmarked model of the same seed; never detected."""

    key = "clean"
    title = "no watermark"
    paper = "the unmarked baseline"
    access = "nothing"
    family = "bits"

    def unmarked(self, task: Task) -> tuple[str, ...]:
        """Only the paired unmarked model is needed."""
        return ("clean",)

    def draw(self, task: Task, data: Party, lab: Lab) -> Secret:
        """There is no secret."""
        return {}

    def embed(self, task: Task, data: Party, lab: Lab) -> Mark:
        """Return the shared unmarked model itself."""
        return Mark(lab.unmarked("clean"), {})

    def read(self, suspect: Suspect, secret: Secret) -> Verdict:
        """Nothing can be read."""
        return Verdict.not_applicable("an unmarked model carries no watermark", 0.0, 1.0, "none")

    def thresholds(self, task: Task, data: Party, secret: Secret, lab: Lab) -> Thresholds:
        """Nothing is ever verified."""
        return Thresholds(paper=1.0, sok=1.0, strict=1.0)
