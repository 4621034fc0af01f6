"""No attack: the marked model as it is, evaluated like every surrogate.

Paper: none.
Access: weights, which it copies.
Differs from the paper: not applicable.
"""

from __future__ import annotations

from typing import ClassVar

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.tasks.lab import Lab


class NoAttack(Attack[AttackConfig]):
    """The identity; its row shows the mark before any attack."""

    key = "none"
    title = "no attack"
    source = "the baseline row of every table"
    access = "weights"
    cheap = True
    identity: ClassVar = {}

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return an unchanged copy."""
        return Outcome(victim.module())
