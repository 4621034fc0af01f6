"""The statistical tests of verification (docs/protocol.md §4: T1, T3, T4, T5), each exact where it can be."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats

LEVEL = 1e-3  # decides "marked" where a paper names no threshold: its rule then is p <= LEVEL


def binomial_tail(hits: int, trials: int, rate: float) -> float:
    """Return P(X >= hits) for X ~ Binomial(trials, rate), in (0, 1].

    T1 with `rate = 1/K` for labels uniform on K classes; T3 with `rate = 1/2` for random bits.
    """
    if hits <= 0 or trials <= 0:
        return 1.0
    return max(float(stats.binom.sf(hits - 1, trials, rate)), 5e-324)


def least_hits(trials: int, rate: float, alpha: float) -> int:
    """Return the smallest number of hits with `binomial_tail <= alpha`; `trials + 1` if none does."""
    hits = int(stats.binom.isf(alpha, trials, rate)) + 1
    while hits > 0 and binomial_tail(hits - 1, trials, rate) <= alpha:
        hits -= 1
    while hits <= trials and binomial_tail(hits, trials, rate) > alpha:
        hits += 1
    return hits


def fisher_control(hits: int, trials: int, control_hits: int, control_trials: int) -> float:
    """Return T4's p-value, Fisher's one-sided exact test: do embedded keys match more often than fresh ones?"""
    table = [[hits, trials - hits], [control_hits, control_trials - control_hits]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def calibrated_rate(reference_hits: Sequence[int], trials: int, floor: float) -> float:
    """Return T5's null rate: the larger of `floor` and an upper bound of the largest rate among unmarked models.

    The bound is the exact one-sided 95 % bound of Clopper and Pearson.

    Args:
        reference_hits: matched keys of each unmarked model.
        trials: of how many.
        floor: the rate by chance alone.
    """
    hits = max(reference_hits)
    bound = 1.0 if hits == trials else float(stats.beta.ppf(0.95, hits + 1, trials - hits))
    return max(floor, bound)
