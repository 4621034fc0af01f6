"""The statistical tests of verification, T1 ... T6, each exact where it can be; scipy does the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats


def binomial_tail(hits: int, trials: int, rate: float) -> float:
    """Return P(X >= hits) for X ~ Binomial(trials, rate), in (0, 1]: `BinSF` of the specification.

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


def clopper_pearson(hits: int, trials: int, level: float = 0.95, *, one_sided: bool = False) -> tuple[float, float]:
    """Return the exact interval of a binomial rate; `one_sided` puts the whole error above (lower bound 0)."""
    tail = (1 - level) if one_sided else (1 - level) / 2
    low = 0.0 if hits == 0 or one_sided else float(stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high


def wilson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a binomial rate; for accuracies on a test set."""
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def fisher_control(hits: int, trials: int, control_hits: int, control_trials: int) -> float:
    """T4: one-sided Fisher exact p-value that embedded keys match more often than keys never embedded."""
    table = [[hits, trials - hits], [control_hits, control_trials - control_hits]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)


def calibrated_rate(reference_hits: Sequence[int], trials: int, floor: float) -> float:
    """T5's null rate: the larger of `floor` and the one-sided 95 % upper bound of the largest reference rate."""
    return max(floor, clopper_pearson(max(reference_hits), trials, one_sided=True)[1])
