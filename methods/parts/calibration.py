"""Decision thresholds from unmarked models and never-embedded keys (protocol 2.2). The marked model takes no part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from torch import nn

from assay.methods.parts.statistics import least_hits
from assay.methods.suspect import Suspect
from assay.methods.verdict import STRICT_ALPHA, Thresholds, Verdict
from assay.tasks.data.splits import Party
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter

if TYPE_CHECKING:
    from assay.methods.base import Family, Method, Secret

SOK_LEVEL = 0.05
RESOLUTION = 1000  # a score that counts nothing is read in thousandths


def sok_threshold(matches: Sequence[int], trials: int) -> float:
    """Return SoK's threshold as a share: about (mean + 1.645 sd) / trials of the matches of null keys on null models.

    The smallest point of a 1,000-step grid on [0, 20 mean] where the fitted normal's cdf reaches 0.95. Where all
    matches are equal the normal has no width and would accept everything; then the exact binomial with the observed
    rate decides.
    """
    values = np.asarray(matches, dtype=float)
    mean, deviation = float(values.mean()), float(values.std())
    if deviation == 0:
        rate = min(max(mean / trials, 1 / trials), 1.0)
        return least_hits(trials, rate, SOK_LEVEL) / trials
    grid = np.linspace(0, 20 * mean, 1000)
    reached = grid[stats.norm.cdf(grid, mean, deviation) >= 1 - SOK_LEVEL]
    # Where hardly any null key matches at all, the normal reaches past the grid; its own quantile then decides.
    exact = stats.norm.isf(SOK_LEVEL, mean, deviation)
    return float(reached[0] if len(reached) else exact) / trials


def strict_bits(matches: Sequence[int], trials: int, alpha: float = STRICT_ALPHA) -> float:
    """Return the strict threshold of random bits: exact binomial tail and empirical null, the larger one."""
    exact = least_hits(trials, 0.5, alpha)
    return max(exact, max(matches) + 1) / trials


def strict_triggers(matches: Sequence[int], trials: int, chance: float, alpha: float = STRICT_ALPHA) -> float:
    """Return the strict threshold of trigger sets: a beta-binomial fitted by moments, never below the plain binomial.

    Unmarked models agree with each other on triggers, so matches spread wider than a binomial with the chance rate.
    Where nearly all keys match nothing and a few match much (a model answers all triggers of a family alike), how much
    says little of the next model: the fit's tail is then flat up to a full match, and no null key reaches the
    threshold.
    """
    values = np.asarray(matches, dtype=float)
    rate, variance = float(values.mean()) / trials, float(values.var())
    floor = least_hits(trials, min(max(chance, rate, 1e-9), 1.0), alpha)
    plain = trials * rate * (1 - rate)
    if not 0 < rate < 1 or variance <= plain or trials < 2:
        return max(floor, max(matches) + 1) / trials
    # Overdispersion rho = (variance / plain - 1) / (trials - 1), shape a + b = 1/rho - 1.
    rho = min((variance / plain - 1) / (trials - 1), 0.999)
    size = 1 / rho - 1
    a, b = rate * size, (1 - rate) * size
    if a < 1 < b:
        a, b, floor = rate / (1 - rate), 1.0, max(floor, max(matches) + 1)
    tail = stats.betabinom.sf(np.arange(-1, trials), trials, a, b)  # P(X >= 0 ... trials)
    below = np.nonzero(tail <= alpha)[0]
    fitted = int(below[0]) if len(below) else trials + 1
    return max(floor, fitted) / trials


def strict_scores(scores: Sequence[float], trials: int, alpha: float = STRICT_ALPHA) -> float:
    """Return the strict threshold of scores that are no counts of independent trials (detectors, dual embeddings).

    The (1 - 1e-3) quantile of a normal fitted on the logit scale; no null pair may exceed it.
    """
    clipped = np.clip(np.asarray(scores, dtype=float), 0.5 / trials, 1 - 0.5 / trials)
    logits = np.log(clipped / (1 - clipped))
    quantile = logits.mean() + stats.norm.isf(alpha) * logits.std(ddof=1 if len(logits) > 1 else 0)
    fitted = 1 / (1 + math.exp(-float(quantile)))
    return max(fitted, math.nextafter(float(max(scores)), 2.0))


@dataclass(frozen=True)
class Null:
    """How never-embedded keys score on unmarked models; the expensive part of a calibration, without any owner.

    Attributes:
        scores: per model the scores of the keys, in their order.
        matches: counts instead of scores, alike; of a score that counts nothing, thousandths.
        trials: of how many.
    """

    scores: list[list[float]]
    matches: list[list[int]]
    trials: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return asdict(self)

    def spread(self) -> dict[str, float]:
        """Return the mean score, and the standard deviations of the keys' and of the models' means."""
        scores = np.asarray(self.scores, dtype=float)
        return {
            "mean": float(scores.mean()),
            "key_sd": float(scores.mean(0).std()),
            "model_sd": float(scores.mean(1).std()),
        }


def null_distribution(method: Method, keys: Sequence[Secret], models: Sequence[nn.Module], meter: Meter) -> Null:
    """Score every key on every unmarked model."""
    null = Null([], [], RESOLUTION)
    trials = RESOLUTION
    for model in models:
        suspect = Suspect(model, method.access, method.key, meter)
        read = [method.score(suspect, key) for key in keys]
        trials = next((counted for _, _, counted in read if counted), trials)
        null.scores.append([score for score, _, _ in read])
        # Counted where the method counts: score * trials may round to below the count.
        null.matches.append([math.floor(score * trials) if hits is None else hits for score, hits, _ in read])
    return replace(null, trials=trials)


def limits(family: Family, null: Null, owner: Verdict, alpha: float = STRICT_ALPHA) -> Thresholds:
    """Return the three thresholds of one owner.

    Args:
        family: how the method's scores behave under "not marked".
        null: the method's null distribution on the task.
        owner: the owner's reading of an unmarked model: its chance level and the paper's threshold count.
        alpha: false-positive rate of `strict`.
    """
    scores = [score for model in null.scores for score in model]
    matches = [count for model in null.matches for count in model]
    if family == "bits":
        strict = strict_bits(matches, null.trials, alpha)
    elif family == "triggers":
        strict = strict_triggers(matches, null.trials, owner.chance, alpha)
    else:
        strict = strict_scores(scores, null.trials, alpha)
    return Thresholds(paper=owner.threshold, sok=sok_threshold(matches, null.trials), strict=strict)


def calibrate(
    method: Method, task: Task, data: Party, secret: Secret, lab: Lab, models: Sequence[nn.Module]
) -> Thresholds:
    """Return the three thresholds of one owner of one method on one task.

    Args:
        method: the scheme; its `null_keys` and `score` are used.
        task, data, lab: as in embedding.
        secret: the owner's secret, for schemes whose keys cannot be drawn without training.
        models: unmarked reference models that took no part in embedding.
    """
    null = null_distribution(method, method.null_keys(task, data, secret, lab), models, lab.meter)
    owner = method.verify(Suspect(models[0], method.access, method.key), secret)
    return limits(method.family, null, owner)
