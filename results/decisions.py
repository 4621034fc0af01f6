"""What readings mean, given a null and rules (protocol 2.2 and 2.3): verified or not, outcome class, success.

Readings are stored, decisions are derived: `decided` when a row is built, `redecide` again from Parquet alone, under any
rules. Nothing here measures, trains or knows a method.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar

import pandas as pd

from assay.results.errors import ResultsError
from assay.results.schema import DERIVED_COLUMNS
from assay.results.thresholds import Null, Thresholds, sok_threshold, strict_threshold

__all__ = [
    "Decision", "Null", "Rules", "Thresholds", "ambiguity", "chance_norm", "classify", "decide", "decided",
    "null_points", "nulls_of", "redecide", "sok_norm", "succeeded", "thresholds",
]  # fmt: skip

OutcomeClass = Literal["removed", "retained", "useless", "failed"]
Ambiguity = Literal["piracy", "takeover", "corruption", "none"]

_RARE: Final = 1e-6  # a second false-claim rate, whose threshold is logged beside that of `strict`
# A tolerance far below one test sample keeps "loss = 5 points exactly" on the attacker's side.
_SLACK: Final = 1e-9
_Cell = TypeVar("_Cell")

DERIVED_METRICS: Final = frozenset(
    {
        *("threshold_paper", "threshold_sok", "threshold_strict", "threshold_rare"),
        *("clean_score", "clean_p_value", "clean_paper", "clean_sok", "clean_strict", "before_paper", "before_sok"),
        *("rival_paper", "rival_sok", *(f"ambiguity_{name}" for name in ("piracy", "takeover", "corruption", "none"))),
        *("score_sok", "score_chance", "success", "pointless", "detected_as_left"),
        *("beside_score", "beside_p_value", "beside_strict", "null_mean", "null_key_sd", "null_model_sd"),
    }
)
"""Entries of a row's `metrics` that `decided` computes; all others were measured."""

# Counted by verification attacks while they ran, at the default thresholds; other rules cannot count them anew.
_COUNTED: Final = re.compile(r"false_(paper|sok|strict)_.+|(identified|misidentified|unmarked)_strict")


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


class Decision(NamedTuple):
    """Whether a reading verifies, by each rule; None where there is no null to decide by."""

    paper: bool
    sok: bool | None
    strict: bool | None


# --- rules on one reading ----------------------------------------------------------------------------------------


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
    paper, chance = _number(on_clean["paper_threshold"]), _number(on_clean["chance"])
    if null is None:
        return Thresholds(paper, sok=1.0, strict=1.0, rare=None, decides=False)

    def make() -> Thresholds:
        hits = [count for model in null.hits for count in model]
        strict, rare = (strict_threshold(family, null, chance, alpha) for alpha in (rules.alpha, _RARE))
        return Thresholds(paper, sok_threshold(hits, null.trials), strict, rare)

    return null.once((family, chance, paper, rules.alpha), make)


def decide(reading: Mapping[str, Any], limits: Thresholds, rules: Rules) -> Decision:
    """Return the three decisions. `strict` also asks for p <= alpha, so that both nulls must be rejected."""
    if not reading["applicable"]:
        return Decision(False, False, False)
    paper = bool(reading["accepted"])
    if not limits.decides:
        return Decision(paper, None, None)
    score = _number(reading["score"])
    strict = score >= limits.strict and _number(reading["p_value"]) <= rules.alpha
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


# --- rows --------------------------------------------------------------------------------------------------------


def decided(row: Mapping[str, Any], null: Null | None, rules: Rules = Rules()) -> dict[str, Any]:
    """Return what the readings of a row mean.

    Args:
        row: `kind`, `family`, `main_before`, `main_after`, `readings` and `metrics` as `schema.ROW` says. A cell that
            did not finish may lack the reading `after`; then only the figures of the reading `before` are filled.
        null: the null of the row's `null_key`; None if the method has none. Thresholds are computed once for each
            object, so rows of one null should share it.
        rules: the false-claim rate and the largest loss.

    Returns:
        All of `schema.DERIVED_COLUMNS`, and `metrics`: the row's own with those of `DERIVED_METRICS` made anew.

    Raises:
        ResultsError: the readings hold `after` without `before` and `clean`.
    """
    readings = row["readings"] or {}
    found: dict[str, Any] = dict.fromkeys(DERIVED_COLUMNS)
    measured = {name: value for name, value in row["metrics"].items() if name not in DERIVED_METRICS}
    found["metrics"] = measured
    if before := readings.get("before"):
        found |= {"score_before": _read(before, "score"), "chance": _read(before, "chance")}
        found["p_before"] = _read(before, "p_value")
    if "after" not in readings:
        return found
    if before is None or "clean" not in readings:
        raise ResultsError(f"{_name(row)}: a reading 'after' without 'before' and 'clean'; all three are needed")
    limits = thresholds(row["family"], null, readings["clean"], rules)
    decisions = {name: decide(reading, limits, rules) for name, reading in readings.items()}
    after, rival = decisions["after"], decisions.get("rival")
    found |= {"score_after": _read(readings["after"], "score"), "p_after": _read(readings["after"], "p_value")}
    found |= {"detected_before": decisions["before"].strict, "detected_after": after.strict}
    found |= {"verdict_paper": after.paper, "verdict_sok": after.sok}
    figures: dict[str, float | None] = {f"threshold_{name}": getattr(limits, name) for name in _LIMITS}
    if rival is not None:
        found |= {"rival_score": _read(readings["rival"], "score"), "rival_p": _read(readings["rival"], "p_value")}
        found["rival_verified"] = rival.strict
    found["outcome"], worth = _outcome(row, decisions, limits, rules)
    figures |= worth | _beside(readings, decisions)
    if "main_scratch" in measured:
        figures["pointless"] = row["main_after"] <= measured["main_scratch"]
    if null is not None:
        figures |= {f"null_{name}": value for name, value in null.spread().items()}
    found["metrics"] = measured | {name: float(value) for name, value in figures.items() if value is not None}
    return found


_LIMITS: Final = ("paper", "sok", "strict", "rare")
