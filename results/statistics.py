"""Uncertainty of what the tables print (docs/protocol.md §15); scipy does the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from scipy import stats

from assay.results.merging import Row, one_experiment


@dataclass(frozen=True)
class Mean:
    """A mean over victim seeds.

    Attributes:
        value: the mean; NaN if nothing was measured.
        half: half the width of its Student-t interval; None for fewer than two victims.
        n: number of victims.
        least, most: extremes of the victims' values.
    """

    value: float
    half: float | None
    n: int
    least: float
    most: float


def wilson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a rate; for accuracies on a test set and shares of outcomes.

    Args:
        hits: successes, 0 ... trials.
        trials: of how many; none tells nothing: (0, 1).
        level: confidence, in (0, 1).
    """
    _check(hits, trials)
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(hits, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def clopper_pearson(hits: int, trials: int, level: float = 0.95, *, one_sided: bool = False) -> tuple[float, float]:
    """Return the exact interval of a rate; for matches of a mark and counts of false positives.

    Args:
        hits: successes, 0 ... trials.
        trials: of how many; none tells nothing: (0, 1).
        level: confidence, in (0, 1).
        one_sided: put the whole error above; the lower bound is then 0.
    """
    _check(hits, trials)
    if trials == 0:
        return 0.0, 1.0
    if one_sided:
        return 0.0, 1.0 if hits == trials else float(stats.beta.ppf(level, hits + 1, trials - hits))
    interval = stats.binomtest(hits, trials).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def binomial_tail(hits: int, trials: int, rate: float) -> float:
    """Return P(X >= hits) for X ~ Binomial(trials, rate), in (0, 1]."""
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


def _check(hits: int, trials: int) -> None:
    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} hits of {trials} trials; hits must be between 0 and the number of trials")


def over_victims(values: Iterable[float | None], cells: Sequence[Row], level: float = 0.95) -> Mean:
    """Return the mean and Student-t interval over victim seeds.

    Attack seeds of one victim are averaged first: they are nested in it and no independent evidence.

    Args:
        values: one figure per cell; unknown ones (None or NaN) are left out.
        cells: the row of each, in the same order, with at least `merging.IDENTITY` and the seeds.
        level: confidence, in (0, 1).

    Raises:
        ResultsError: the cells differ in more than seeds, so that their mean would mix experiments.
    """
    one_experiment(cells)
    groups: dict[int, list[float]] = {}
    for value, cell in zip(values, cells, strict=True):
        if value is not None and not math.isnan(value):
            groups.setdefault(cell["victim_seed"], []).append(value)
    return t_interval([fmean(groups[victim]) for victim in sorted(groups)], level)


def t_interval(values: Sequence[float], level: float = 0.95) -> Mean:
    """Return the mean of independent values and half the width of its Student-t interval."""
    if not values:
        return Mean(math.nan, None, 0, math.nan, math.nan)
    mean, half = fmean(values), None
    if len(values) > 1:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        half = _t_quantile((1 + level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Mean(mean, half, len(values), min(values), max(values))


@lru_cache(maxsize=1024)
def _t_quantile(level: float, freedom: int) -> float:
    return float(stats.t.ppf(level, freedom))


def auc(marked: Sequence[float], unmarked: Sequence[float]) -> float:
    """Return the area under the ROC curve of a detection: how often a marked model's figure exceeds an unmarked one's.

    Args:
        marked: one figure per marked model, larger is more suspicious; at least one.
        unmarked: one per unmarked model; at least one.

    Returns:
        1: every marked model stands out, 0.5: guessing; ties count half.
    """
    pairs = len(marked) * len(unmarked)
    return float(stats.mannwhitneyu(marked, unmarked, method="asymptotic").statistic) / pairs
