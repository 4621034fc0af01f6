"""Outcome classes of the protocol (2.3): what a surrogate is worth and whether the mark is still read from it."""

from __future__ import annotations

import math
from typing import Literal

from assay.attacks.base import Kind

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


def succeeded(
    kind: Kind, main_before: float, main_after: float, owner_verified: bool, rival_verified: bool | None
) -> bool | None:
    """Return whether an attack reached its goal; None where one victim alone cannot tell (detection, verification).

    Removal: class `removed`. Ambiguity: the attacker's claim verifies and the model is still of use.
    """
    kept = classify(main_before, main_after, verified=False) == "removed"
    if kind == "removal":
        return kept and not owner_verified
    return kept and rival_verified if kind == "ambiguity" and rival_verified is not None else None


def sok_norm(score: float, threshold: float) -> float:
    """Return SoK's normalised score, which maps the threshold to 0.5 and 1 to 1 (Lukas et al., S&P 2022).

    w' = max(0, 0.5 w / (1 - t) + (0.5 - t) / (1 - t)), with the threshold t rounded up to two digits.
    """
    tau = math.ceil(threshold * 100 - 1e-9) / 100
    if tau >= 1:
        return 0.5 if score >= threshold else 0.0  # nothing lies above the threshold
    return max(0.0, (0.5 * score + 0.5 - tau) / (1 - tau))
