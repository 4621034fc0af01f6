"""Decision thresholds from unmarked models and never-embedded keys, never from a marked model (docs/protocol.md §6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from assay.results.errors import unknown
from assay.results.nulls import Null
from assay.results.schema import FAMILIES
from assay.results.statistics import least_hits

SOK_LEVEL: Final = 0.05  # of SoK's procedure (Lukas et al., S&P 2022); no rule of ours
# Below this overdispersion a beta-binomial is the binomial, and its tail in floating point is only rounding.
_NO_SPREAD: Final = 1e-8


@dataclass(frozen=True)
class Thresholds:
    """The decision rules of docs/protocol.md §6, as thresholds on the score.

    Attributes:
        paper: the method's own paper.
        sok: normal fit over unmarked models and random keys, upper 5 % (Lukas et al., S&P 2022).
        strict: estimated false-claim probability at most alpha, exact and empirical null, the larger one.
        rare: `strict` at 1e-6; logged beside it, decides nothing. None without a null.
        decides: False without a null, which leaves `sok` and `strict` open.
    """

    paper: float
    sok: float
    strict: float
    rare: float | None
    decides: bool = True


def sok_threshold(hits: Sequence[int], trials: int) -> float:
    """Return SoK's threshold as a share: about (mean + 1.645 sd) / trials of the hits of null keys on null models.

    The smallest point of a 1,000-step grid on [0, 20 mean] where the fitted normal's cdf reaches 0.95. Where all hits
    are equal the normal has no width and would accept everything; then the exact binomial with the observed rate
    decides.
    """
    values = np.asarray(hits, dtype=float)
    mean, deviation = float(values.mean()), float(values.std())
    if deviation == 0:
        rate = min(max(mean / trials, 1 / trials), 1.0)
        return least_hits(trials, rate, SOK_LEVEL) / trials
    grid = np.linspace(0, 20 * mean, 1000)
    reached = grid[stats.norm.cdf(grid, mean, deviation) >= 1 - SOK_LEVEL]
    # Where hardly any null key matches at all, the normal reaches past the grid; its own quantile then decides.
    exact = stats.norm.isf(SOK_LEVEL, mean, deviation)
    return float(reached[0] if len(reached) else exact) / trials


def strict_bits(hits: Sequence[int], trials: int, alpha: float) -> float:
    """Return the strict threshold of random bits: exact binomial tail and empirical null, the larger one."""
    exact = least_hits(trials, 0.5, alpha)
    return max(exact, max(hits) + 1) / trials


def strict_triggers(hits: Sequence[int], trials: int, chance: float, alpha: float) -> float:
    """Return the strict threshold of trigger sets: a beta-binomial fitted by moments, never below the plain binomial.

    Unmarked models agree with each other on triggers, so hits spread wider than a binomial with the chance rate.
    If almost all keys match nothing and a few match many triggers (a model answers all triggers of a family alike), the
    match counts say little about the next model. A heavier-tailed fit is used then, and the threshold always lies above
    every null key.
    """
    values = np.asarray(hits, dtype=float)
    rate, variance = float(values.mean()) / trials, float(values.var())
    floor = least_hits(trials, min(max(chance, rate, 1e-9), 1.0), alpha)
    plain = trials * rate * (1 - rate)
    if not 0 < rate < 1 or trials < 2:
        return max(floor, max(hits) + 1) / trials
    # Overdispersion rho = (variance / plain - 1) / (trials - 1), shape a + b = 1/rho - 1.
    rho = min((variance / plain - 1) / (trials - 1), 0.999)
    if rho < _NO_SPREAD:
        return max(floor, max(hits) + 1) / trials
    size = 1 / rho - 1
    a, b = rate * size, (1 - rate) * size
    if a < 1 < b:
        a, b, floor = rate / (1 - rate), 1.0, max(floor, max(hits) + 1)
    tail = stats.betabinom.sf(np.arange(-1, trials), trials, a, b)  # P(X >= 0 ... trials)
    below = np.nonzero(tail <= alpha)[0]
    fitted = int(below[0]) if len(below) else trials + 1
    return max(floor, fitted) / trials


def strict_scores(scores: Sequence[float], trials: int, alpha: float) -> float:
    """Return the strict threshold of scores that are no counts of independent trials (detectors, dual embeddings).

    The (1 - alpha) quantile of a normal fitted on the logit scale; no null pair may exceed it.
    """
    clipped = np.clip(np.asarray(scores, dtype=float), 0.5 / trials, 1 - 0.5 / trials)
    logits = np.log(clipped / (1 - clipped))
    quantile = logits.mean() + stats.norm.isf(alpha) * logits.std(ddof=1 if len(logits) > 1 else 0)
    fitted = 1 / (1 + math.exp(-float(quantile)))
    return max(fitted, math.nextafter(float(max(scores)), 2.0))


def strict_threshold(family: str, null: Null, chance: float, alpha: float) -> float:
    """Return the score from which a reading's estimated false-claim probability is at most `alpha`.

    Args:
        family: how the method's scores behave under "not marked"; one of `schema.FAMILIES`.
        null: the method's null on the task.
        chance: what an unrelated model scores on average; counts for triggers alone.
        alpha: the false-claim rate.

    Raises:
        ResultsError: there is no such family.
    """
    if family not in FAMILIES:
        raise unknown("family", str(family), FAMILIES)
    hits = [count for model in null.hits for count in model]
    if family == "bits":
        return strict_bits(hits, null.trials, alpha)
    if family == "triggers":
        return strict_triggers(hits, null.trials, chance, alpha)
    return strict_scores([score for model in null.scores for score in model], null.trials, alpha)
