"""Cross-verification: read every owner's mark from every other owner's model of the same task.

Paper: customised soft-label perturbation (CSP) reports identified and misidentified rates of detectors on models that
    carry another customer's signal
Access: nothing; the evaluator holds the keys. The cell measures an error of the verifier; there is no attacker.
Differs from the paper: owners differ in their whole victim seed: in split, initial weights and key. Signals and bits
    are drawn at random, so two owners' agree on half of their places on average, not exactly.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from assay.attacks.base import Attack, AttackConfig, Needs, Outcome, Victim
from assay.methods.base import Method
from assay.tasks.data.splits import SplitMode
from assay.tasks.lab import Lab
from assay.tasks.task import Task


class Config(AttackConfig):
    """Settings of cross-verification."""

    split: SplitMode = "none"
    owners: int = Field(5, ge=1, le=20)  # marked models, the victim included; CSP: 3, 5, 7, 10, 13, 15, 17, 20


class CrossVerify(Attack[Config]):
    """Confuse owners: key i on model j, and every key on an unmarked model."""

    key = "cross-verify"
    title = "Cross-verification"
    source = "Customised soft-label perturbation (CSP)"
    kind = "verification"
    access = "nothing"
    cheap = True
    laptop: ClassVar[dict[str, Any]] = {"owners": 3}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there are no keys to confuse, or None."""
        return f"{method.key} verifies nothing, so no keys can be confused" if method.access == "nothing" else None

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return the owners, and the victim's unmarked twin: every key is read from it too."""
        return Needs("nothing", unmarked=("clean",), peers=self.config.owners)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Do nothing: the evaluator reads the matrix."""
        return Outcome()
