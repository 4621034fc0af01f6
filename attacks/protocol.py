"""Outcome classes of the protocol (2.3): what a surrogate is worth and whether the mark is still read from it."""

from __future__ import annotations

from typing import Literal

MAX_LOSS = 0.05  # SoK's largest stealing loss: five percentage points, one-sided

OutcomeClass = Literal["removed", "retained", "useless", "failed"]
Ambiguity = Literal["piracy", "takeover", "corruption", "none"]


def classify(main_before: float, main_after: float, verified: bool) -> OutcomeClass:
    """Return the outcome class of a surrogate; a surrogate better than its victim has no loss.

    Args:
        main_before: test accuracy of the marked victim, a fraction.
        main_after: test accuracy of the surrogate.
        verified: whether the owner's mark verifies in the surrogate.
    """
    # A tolerance far below one test sample keeps "loss = 5 points exactly" on the attacker's side.
    kept = main_before - main_after <= MAX_LOSS + 1e-9
    if kept:
        return "retained" if verified else "removed"
    return "failed" if verified else "useless"


def ambiguity(owner_verified: bool, rival_verified: bool) -> Ambiguity:
    """Return what a rival claim leads to: both verify, only the attacker's, neither, or only the owner's (`none`)."""
    if rival_verified:
        return "piracy" if owner_verified else "takeover"
    return "none" if owner_verified else "corruption"
