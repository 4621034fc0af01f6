"""What verification says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

STRICT_ALPHA = 1e-3  # the false-positive rate of the `strict` verdict


@dataclass(frozen=True)
class Verdict:
    """The outcome of reading an owner's mark from one suspect.

    Attributes:
        score: the paper's own metric, in [0, 1]; higher is more marked.
        chance: what an unrelated model scores on average.
        threshold: the paper's threshold on `score`.
        p_value: probability, under "not marked", of a reading at least as strong; in (0, 1].
        detected: the decision by the paper's rule.
        test: name of the statistical test behind `p_value` (T1 ... T8 of the specification).
        matches: matched keys or bits, where the score counts something.
        trials: of how many.
        applicable: False if the suspect cannot carry the mark at all (layer missing, other classes); then score is 0.
        reason: why it is not applicable.
        metrics: further figures of the method, by name.
    """

    score: float
    chance: float
    threshold: float
    p_value: float
    detected: bool
    test: str
    matches: int | None = None
    trials: int | None = None
    applicable: bool = True
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def score_norm(self) -> float:
        """The score with chance at 0 and a full match at 1 (normalisation of the ingrain paper)."""
        return max((self.score - self.chance) / (1 - self.chance), 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return asdict(self)

    @staticmethod
    def not_applicable(reason: str, chance: float, threshold: float, test: str) -> Verdict:
        """Return the verdict on a suspect that cannot carry the mark."""
        return Verdict(0.0, chance, threshold, 1.0, False, test, applicable=False, reason=reason)


@dataclass(frozen=True)
class Thresholds:
    """The three decision rules of the protocol, as thresholds on the score.

    Attributes:
        paper: the method's own paper.
        sok: normal fit over unmarked models and random keys, upper 5 % (Lukas et al., S&P 2022).
        strict: estimated false-claim probability at most 1e-3, exact and empirical null, the larger one.
    """

    paper: float
    sok: float
    strict: float

    def decide(self, verdict: Verdict) -> dict[str, bool]:
        """Return the three decisions. `strict` also asks for p <= 1e-3, so that both nulls must be rejected."""
        if not verdict.applicable:
            return {"paper": False, "sok": False, "strict": False}
        return {
            "paper": verdict.detected,
            "sok": verdict.score >= self.sok,
            "strict": verdict.score >= self.strict and verdict.p_value <= STRICT_ALPHA,
        }
