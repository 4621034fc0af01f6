"""What was measured of a suspect with a secret. What it means is decided elsewhere, and late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """What reading an owner's mark from one suspect gives.

    Attributes:
        score: the paper's own metric, in [0, 1]; higher is more marked.
        chance: what an unrelated model scores on average.
        paper_threshold: the paper's threshold on `score`.
        p_value: probability, under "not marked", of a reading at least as strong; in (0, 1].
        accepted: whether the paper's own rule accepts the claim.
        test: the statistical test behind `p_value`, one of T1 to T8 in docs/protocol.md §4.
        hits: matched keys or bits, where the score counts something.
        trials: of how many.
        applicable: False if the suspect cannot carry the mark at all (layer missing, other classes); then score is 0.
        reason: why it is not applicable.
        metrics: further figures of the method, by name.

    Example:
        >>> Reading(0.9, 0.5, 0.95, 1e-4, False, "T3", hits=58, trials=64).score
        0.9
    """

    score: float
    chance: float
    paper_threshold: float
    p_value: float
    accepted: bool
    test: str
    hits: int | None = None
    trials: int | None = None
    applicable: bool = True
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def not_applicable(reason: str) -> Reading:
        """Return the reading of a suspect that cannot carry the mark."""
        return Reading(0.0, 0.0, 1.0, 1.0, False, "none", applicable=False, reason=reason)
