"""Errors of a verifier: never-embedded evidence that verifies, and marks of one owner read from another's model.

Their figures are those of docs/protocol.md §12.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from assay.methods.base import Method, Secret
from assay.methods.embedding import verify
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.results.decisions import Decision, Rules, Thresholds, decide
from assay.results.statistics import clopper_pearson
from assay.tasks.errors import UnsupportedModel

_RULES = ("paper", "sok", "strict")
_BINS = 50  # of the histogram of scores on [0, 1]


@dataclass(frozen=True)
class Owner:
    """An owner at verification: its secret, and the thresholds that hold for it under the rules."""

    secret: Secret
    thresholds: Thresholds
    rules: Rules

    def decide(self, reading: Reading) -> Decision:
        """Return whether a reading verifies."""
        return decide(asdict(reading), self.thresholds, self.rules)


def false_claims(
    method: Method[Any], claims: Iterable[Secret], suspects: Mapping[str, nn.Module], thresholds: Thresholds
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Count the claims that verify although nobody embedded them.

    Args:
        method: the scheme whose verifier is tried.
        claims: evidence in the form of its secrets, one after the other.
        suspects: models by `<group>-<number>`; rates are per group (`marked`, `unmarked`, `surrogate`).
        thresholds: of the owner of the accused model, at the default rules.

    Returns:
        The figures (`claims`, and per rule and group count, rate and the upper end of its exact 95 % interval), and
        the histogram of the scores as curves; both empty without claims.
    """
    counts: Counter[tuple[str, str]] = Counter()
    scores: defaultdict[str, list[float]] = defaultdict(list)
    total = 0
    # A p-value may cost as much as a thousand readings, and only two rules ask for more than the score.
    bar = min(thresholds.paper, thresholds.strict)
    for claim in claims:
        total += 1
        for name, model in suspects.items():
            group = name.rpartition("-")[0]
            suspect = Suspect(model, method.access, method.key)
            score = _score(method, suspect, claim)
            scores[group].append(score or 0.0)
            if score is None:
                continue
            counts[group, "sok"] += score >= thresholds.sok
            if score >= bar:
                decision = decide(asdict(verify(method, model, claim)), thresholds, Rules())
                counts.update((group, rule) for rule in ("paper", "strict") if getattr(decision, rule))
    if not total:
        return {}, []
    report = {"claims": float(total)}
    for group, found in scores.items():
        for rule in _RULES:
            hits = counts[group, rule]
            report[f"false_{rule}_{group}"] = float(hits)
            report[f"false_{rule}_{group}_rate"] = hits / len(found)
            report[f"false_{rule}_{group}_upper"] = clopper_pearson(hits, len(found))[1]
        report[f"best_claim_{group}"] = max(found)
    return report, [point for group, found in scores.items() for point in _histogram(group, found)]


def _score(method: Method[Any], suspect: Suspect, claim: Secret) -> float | None:
    try:
        return method.score(suspect, claim)[0]
    except UnsupportedModel:  # the suspect cannot carry the mark at all
        return None


def _histogram(group: str, scores: Sequence[float]) -> list[dict[str, Any]]:
    counts, edges = np.histogram(np.clip(scores, 0, 1), bins=_BINS, range=(0, 1))
    bins = zip(counts, pairwise(edges), strict=True)
    return [
        {"curve": f"claims {group}", "step": step, "score": float(low), "count": float(count)}
        for step, (count, (low, _)) in enumerate(bins)
    ]


def cross_verify(
    method: Method[Any], owners: Sequence[Owner], models: Sequence[Callable[[], nn.Module]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Read every owner's mark from every model; row: key, column: model.

    Args:
        method: the scheme.
        owners: n owners with different keys.
        models: their models in the same order, loaded when asked for; further ones are unmarked.

    Returns:
        Means on and off the diagonal (`identified`, `misidentified`: detection rate where the method has one, else the
        score), the shares verified at `strict`, the share of models traced to their owner, the same for unmarked
        models; and the matrix as the curve `cross-verify`: step = model, metric `key-<i>`.
    """
    count = len(owners)
    table: list[list[Reading]] = []  # by model, then by key
    for load in models:
        model = load()
        table.append([verify(method, model, owner.secret) for owner in owners])
    rates = np.array([[reading.metrics.get("det_rate", reading.score) for reading in row] for row in table]).T
    scores = np.array([[reading.score for reading in row] for row in table]).T
    verified = np.array(
        [[bool(owner.decide(reading).strict) for owner, reading in zip(owners, row, strict=True)] for row in table]
    ).T
    report = {"owners": float(count)}
    for name, matrix in (("", rates), ("_score", scores), ("_strict", verified.astype(float))):
        square, others = matrix[:, :count], matrix[:, count:]
        report[f"identified{name}"] = float(np.diag(square).mean())
        if count > 1:
            report[f"misidentified{name}"] = float(square[~np.eye(count, dtype=bool)].mean())
        if others.size:
            report[f"unmarked{name}"] = float(others.mean())
    report["traced"] = float((rates[:, :count].argmax(0) == np.arange(count)).mean())
    curves = []
    for column in range(rates.shape[1]):
        name = "cross-verify" if column < count else "cross-verify unmarked"
        values = {f"key-{row}": float(rates[row, column]) for row in range(count)}
        curves.append({"curve": name, "step": column if column < count else column - count, **values})
    return report, curves
