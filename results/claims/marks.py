"""The words in which claims are written: marked victims, what attacks leave of them, and their figures.

`marked("usp").after("distill", temperature=4.0).score >= 0.85` reads as it is meant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Final

from assay.results.claims.cells import Choice
from assay.results.claims.expressions import Combined, Expression, Figure, Reader
from assay.results.configs import flat, label
from assay.results.decisions import chance_norm
from assay.results.merging import Row

_NO_LIMIT: Final = math.inf


def _metric(name: str) -> Reader:
    return lambda row: row["metrics"].get(name)


def _norm(column: str) -> Reader:
    """The score with chance at 0 and a full match at 1."""

    def read(row: Row) -> float | None:
        score, chance = row[column], row["chance"]
        return None if score is None or chance is None else chance_norm(score, chance)

    return read


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Cells that have figures."""

    choices: tuple[Choice, ...]

    def _figure(self, symbol: str, read: Reader, *, accuracy: bool = False) -> Figure:
        return Figure(f"{symbol}({self.name})", self.choices, read, accuracy)

    @property
    def name(self) -> str:
        """What the cells are called."""
        return self.choices[0].label


class Marked(_Chosen):
    """Victims marked by one method under one setting, before any attack; printed as A0."""

    def __or__(self, other: Marked) -> Marked:
        """Return these, or the others where the sweep has none of these."""
        return Marked(self.choices + other.choices)

    def but(self, **changes: Any) -> Marked:
        """Return victims of the same setting but for these parameters."""
        return Marked(
            tuple(
                replace(c, config={**c.config, **changes}, label=label(c.label, _json(changes), changes))
                for c in self.choices
            )
        )

    def after(self, attack: str, name: str | None = None, /, **config: Any) -> After:
        """Return what an attack leaves of them; `name` replaces the attack's key and parameters in texts."""
        what = name or label(attack, _json(config), config)
        return After(
            tuple(replace(c, attack=attack, attack_config=config, label=f"{c.label} | {what}") for c in self.choices)
        )

    @property
    def acc(self) -> Figure:
        """Accuracy on the main task."""
        return self._figure("acc", lambda row: row["main_before"], accuracy=True)

    @property
    def drop(self) -> Expression:
        """Accuracy that marking cost, against the unmarked model of the same seed."""

        def read(row: Row) -> float | None:
            clean, own = row["main_clean"], row["main_before"]
            return None if clean is None or own is None else clean - own

        return self._figure("drop", read, accuracy=True)

    @property
    def score(self) -> Figure:
        """The owner's score, as the method reads it."""
        return self._figure("s", lambda row: row["score_before"])

    @property
    def norm(self) -> Figure:
        """The score with chance at 0 and a full match at 1."""
        return self._figure("ŝ", _norm("score_before"))

    def reads(self, metric: str) -> Figure:
        """Return a further figure of the owner's reading, e.g. `det_rate`."""
        return self._figure(metric, _metric(f"before_{metric}"))

    def reads_unmarked(self, metric: str) -> Figure:
        """Return that figure on the unmarked model of the same seed."""
        return self._figure(f"{metric} on clean", _metric(f"clean_{metric}"))

    def over_training(self, metric: str) -> Figure:
        """Return the mean of a training curve's metric over the epochs of embedding."""

        def summary(points: Sequence[Mapping[str, float]], row: Row) -> float | None:
            known = [point[metric] for point in points if metric in point]
            return fmean(known) if known else None

        return Figure(f"mean {metric}({self.name})", self.choices, curve="train", summary=summary)

    def epochs_between(self, early: str, late: str, share: float = 0.9) -> Figure:
        """Return how many epochs after `early` the figure `late` of the curve `memory` came to a share of its last."""

        def reached(points: Sequence[Mapping[str, float]], metric: str) -> int | None:
            known = [point.get(metric) for point in points]
            last = known[-1] if known else None
            if last is None:
                return None
            return next(i for i, value in enumerate(known) if value is not None and value >= share * last)

        def summary(points: Sequence[Mapping[str, float]], row: Row) -> float | None:
            first, second = reached(points, early), reached(points, late)
            return None if first is None or second is None else float(second - first)

        text = f"epochs from {early} to {late} at {share:g} of their last({self.name})"
        return Figure(text, self.choices, curve="memory", summary=summary)


class After(_Chosen):
    """What an attack leaves: a surrogate, a rival claim or a report."""

    @property
    def acc(self) -> Figure:
        """The surrogate's accuracy on the main task."""
        return self._figure("acc", lambda row: row["main_after"], accuracy=True)

    @property
    def loss(self) -> Figure:
        """Accuracy that the attack cost, against the marked victim."""

        def read(row: Row) -> float | None:
            before, after = row["main_before"], row["main_after"]
            return None if before is None or after is None else before - after

        return self._figure("acc loss", read, accuracy=True)

    @property
    def score(self) -> Figure:
        """The owner's score on the surrogate."""
        return self._figure("s", lambda row: row["score_after"])

    @property
    def norm(self) -> Figure:
        """That score with chance at 0 and a full match at 1."""
        return self._figure("ŝ", _norm("score_after"))

    @property
    def rival(self) -> Figure:
        """The score of the attacker's own claim."""
        return self._figure("r", lambda row: row["rival_score"])

    @property
    def acc_at_end(self) -> Figure:
        """The accuracy of the network that the attacker trained, by the curve's last point.

        Not `acc` where training diverged: there the attacker is left with the network that it stole.
        """

        def summary(points: Sequence[Mapping[str, float]], row: Row) -> float | None:
            return points[-1]["main"] if points else None

        return Figure(f"acc at the end({self.name})", self.choices, accuracy=True, curve="attack", summary=summary)

    @property
    def rival_or_none(self) -> Figure:
        """The score of the attacker's own claim; 0 where training diverged, so that there is nothing to claim by."""
        return self._figure("r", lambda row: 0.0 if row["rival_score"] is None else row["rival_score"])

    @property
    def p(self) -> Figure:
        """The p-value of the owner's reading."""
        return self._figure("p", lambda row: row["p_after"])

    @property
    def readable(self) -> Figure:
        """1 where the owner's mark can be read at all, 0 where the surrogate has no place for it."""
        return self._figure("readable", lambda row: float(row["score_after"] is not None))

    def reads(self, metric: str) -> Figure:
        """Return a further figure of the owner's reading of the surrogate, e.g. `det_rate`."""
        return self._figure(metric, _metric(f"after_{metric}"))

    def reads_unmarked(self, metric: str) -> Figure:
        """Return that figure on what the same attack leaves of the unmarked model."""
        return self._figure(f"{metric} on clean", _metric(f"beside_{metric}"))

    def reported(self, metric: str, *, accuracy: bool = False) -> Figure:
        """Return a figure that the attack or the evaluator reports, e.g. `index` or `misidentified`."""
        return self._figure(metric, _metric(metric), accuracy=accuracy)

    def epochs_to_claim(self, score: float, lost: float) -> Figure:
        """Return the epoch at which a pirate's mark first scores `score` on a model as accurate as the victim.

        `lost` is how much less its accuracy on the pirate's held-out data may be. One more than there were epochs
        stands for never, as for a pirate whose training diverged.
        """

        def summary(points: Sequence[Mapping[str, float]], row: Row) -> float | None:
            measured = all("val_accuracy" in point for point in points) if points else row["rival_score"] is None
            if row["main_before"] is None or not measured:
                return None
            needed = row["main_before"] - lost
            there = (p.get("rival", 0.0) >= score and p["val_accuracy"] >= needed for p in points)
            never = flat(row["attack_config"])["epochs"] + 1.0
            return next((float(i) for i, reached in enumerate(there, 1) if reached), never)

        return Figure(f"epochs({self.name})", self.choices, curve="pirate", summary=summary)

    def share_of_claims(self, group: str, at_least: float) -> Figure:
        """Return the share of never-embedded claims on the `marked` or `unmarked` that score `at_least` (in 50ths)."""

        def summary(points: Sequence[Mapping[str, float]], row: Row) -> float | None:
            total = sum(point["count"] for point in points)
            high = sum(point["count"] for point in points if point["score"] >= at_least - 1e-9)
            return high / total if total else None

        text = f"share of claims on {group} models with s >= {at_least:g}({self.name})"
        return Figure(text, self.choices, curve=f"claims {group}", summary=summary)


def marked(method: str, **config: Any) -> Marked:
    """Return the victims of a method with these parameters; the label leaves them out, as the method's standard."""
    return Marked((Choice(method, config, label=method),))


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config))


# --- over several attacks ----------------------------------------------------------------------------------------


def worst_score(attacked: Iterable[After], name: str, lost: float = _NO_LIMIT) -> Expression:
    """Return the least score among attacks that cost at most `lost` of the accuracy; 1 if there is none."""
    every = tuple(attacked)
    operands = tuple(figure for after in every for figure in (after.loss, after.score))
    return Combined(f"least s({name}){_while(lost)}", operands, lambda *v: _extreme(v, lost, min, 1.0))


def best_rival(attacked: Iterable[After], name: str, lost: float = _NO_LIMIT) -> Expression:
    """Return the rival's largest score among attacks that cost at most `lost` of the accuracy; 0 if there is none."""
    every = tuple(attacked)
    operands = tuple(figure for after in every for figure in (after.loss, after.rival))
    return Combined(f"largest r({name}){_while(lost)}", operands, lambda *v: _extreme(v, lost, max, 0.0))


def reach(attacked: Mapping[float, After], name: str, score: float) -> Expression:
    """Return the largest parameter up to which the score never fell below `score`; 0 if it does at the first."""
    order = sorted(attacked)

    def furthest(*scores: float) -> float:
        kept = 0.0
        for parameter, found in zip(order, scores, strict=True):
            if found < score:
                break
            kept = parameter
        return kept

    return Combined(f"reach({name}, s >= {score:g})", tuple(attacked[key].score for key in order), furthest)


def _while(lost: float) -> str:
    return "" if lost == _NO_LIMIT else f" while acc >= acc(A0) - {lost:g}"


def _extreme(values: Sequence[float], lost: float, pick: Callable[..., float], neutral: float) -> float:
    pairs = zip(values[::2], values[1::2], strict=True)
    return pick((figure for loss, figure in pairs if loss <= lost), default=neutral)
