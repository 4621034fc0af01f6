"""The rules on one reading (docs/protocol.md §6 and §7): verified or not, outcome class, success, normalised scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from assay.results.errors import ResultsError
from assay.results.nulls import Null
from assay.results.thresholds import Thresholds, sok_threshold, strict_threshold

OutcomeClass = Literal["removed", "retained", "useless", "failed"]
Ambiguity = Literal["piracy", "takeover", "corruption", "none"]

_RARE: Final = 1e-6  # a second false-claim rate, whose threshold is logged beside that of `strict`
# A tolerance far below one test sample keeps "loss = 5 points exactly" on the attacker's side.
_SLACK: Final = 1e-9


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Rules:
    """What a decision may depend on besides what was measured.

    Attributes:
        alpha: false-claim rate of `strict`, in (0, 1).
        largest_loss: the largest loss of accuracy of an attack that succeeds, one-sided; a fraction in [0, 1].
    """

    alpha: float = 1e-3
    largest_loss: float = 0.05

    def __post_init__(self) -> None:
        if not (_is_number(self.alpha) and 0 < self.alpha < 1):
            raise ResultsError(f"alpha is {self.alpha!r}; a false-claim rate between 0 and 1 is needed, as 0.001")
        if not (_is_number(self.largest_loss) and 0 <= self.largest_loss <= 1):
            raise ResultsError(
                f"largest_loss is {self.largest_loss!r}; a fraction from 0 to 1 is needed, as 0.05 for five points"
            )


DEFAULT: Final = Rules()


class Decision(NamedTuple):
    """Whether a reading verifies, by each rule; None where there is no null to decide by."""

    paper: bool
    sok: bool | None
    strict: bool | None


def thresholds(family: str, null: Null | None, on_clean: Mapping[str, Any], rules: Rules) -> Thresholds:
    """Return the thresholds of one owner.

    Args:
        family: how the method's scores behave under "not marked"; one of `schema.FAMILIES`.
        null: the method's null distribution on the task; None if the method has none.
        on_clean: the owner's reading of an unmarked model: its chance level and the paper's threshold count.
        rules: `alpha` counts.

    Raises:
        ResultsError: there is no such family.
    """
    paper, chance = number(on_clean["paper_threshold"]), on_clean["chance"] or 0.0
    if null is None or family == "none":
        return Thresholds(paper, sok=1.0, strict=1.0, rare=None, decides=False)

    def make() -> Thresholds:
        hits = [count for model in null.hits for count in model]
        strict, rare = (strict_threshold(family, null, chance, alpha) for alpha in (rules.alpha, _RARE))
        return Thresholds(paper, sok_threshold(hits, null.trials), strict, rare)

    return null.once((family, chance, on_clean["paper_threshold"], rules.alpha), make)


def decide(reading: Mapping[str, Any], limits: Thresholds, rules: Rules) -> Decision:
    """Return the three decisions. `strict` also asks for p <= alpha, so that both nulls must be rejected."""
    if not reading["applicable"]:
        return Decision(False, False, False)
    paper = bool(reading["accepted"])
    if not limits.decides:
        return Decision(paper, None, None)
    score = number(reading["score"])
    strict = score >= limits.strict and number(reading["p_value"]) <= rules.alpha
    return Decision(paper, score >= limits.sok, strict)


def classify(main_before: float, main_after: float, verified: bool, rules: Rules) -> OutcomeClass:
    """Return the outcome class of a surrogate; a surrogate better than its victim has no loss.

    Args:
        main_before: test accuracy of the marked victim, a fraction.
        main_after: test accuracy of the surrogate.
        verified: whether the owner's mark verifies in the surrogate.
        rules: `largest_loss` counts.
    """
    if main_before - main_after <= rules.largest_loss + _SLACK:
        return "retained" if verified else "removed"
    return "failed" if verified else "useless"


def ambiguity(owner_verified: bool, rival_verified: bool) -> Ambiguity:
    """Return what a rival claim leads to: both verify, only the attacker's, neither, or only the owner's (`none`)."""
    if rival_verified:
        return "piracy" if owner_verified else "takeover"
    return "none" if owner_verified else "corruption"


def succeeded(
    kind: str, main_before: float, main_after: float, owner_verified: bool, rival_verified: bool | None, rules: Rules
) -> bool | None:
    """Return whether an attack reached its goal; None where one victim alone cannot tell (detection, verification).

    Removal: class `removed`. Ambiguity: the attacker's claim verifies and the model is still of use.
    """
    kept = classify(main_before, main_after, verified=False, rules=rules) == "removed"
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


def chance_norm(score: float, chance: float) -> float | None:
    """Return the score with chance at 0 and a full match at 1 (ingrain's normalisation); None if chance is a match."""
    return max((score - chance) / (1 - chance), 0.0) if chance < 1 else None


def number(value: float | None) -> float:
    """Return a figure of a reading, NaN for None: no rule accepts what is unknown."""
    return math.nan if value is None else value
