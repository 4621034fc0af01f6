"""Nulls: how never-embedded keys score on unmarked models, in memory and as points of a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from assay.results.errors import ResultsError
from assay.results.schema import NULL_ORDER

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Null:
    """How never-embedded keys score on unmarked models, without any owner.

    Attributes:
        scores: per model the scores of the keys, in their order.
        hits: counts instead of scores, alike; of a score that counts nothing, thousandths.
        trials: of how many.
        models: the models' roles (`reference-0`, `reference-0|prune`), in the order of `scores`.
    """

    scores: list[list[float]]
    hits: list[list[int]]
    trials: int
    models: list[str]
    # What was computed from this null; thousands of rows share it.
    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        models = {len(self.scores), len(self.hits), len(self.models)}
        keys = {len(scores) for scores in self.scores} | {len(hits) for hits in self.hits}
        if len(models) != 1 or len(keys) != 1 or 0 in keys:
            raise ResultsError(
                f"a null of {_numbers(models)} models and {_numbers(keys)} keys; "
                "scores and hits need the same number of both, at least one"
            )
        if self.trials < 1:
            raise ResultsError(f"a null of {self.trials} trials; at least one is needed")

    def spread(self) -> Mapping[str, float]:
        """Return the mean score, and the standard deviations of the keys' and of the models' means."""
        return self.once(("spread",), self._spread)

    def once(self, what: tuple[Any, ...], make: Callable[[], _Made]) -> _Made:
        """Return what `make` returns for this null; it is called once for each `what`."""
        if what not in self._known:
            self._known[what] = make()
        found: _Made = self._known[what]
        return found

    def _spread(self) -> dict[str, float]:
        scores = np.asarray(self.scores, dtype=float)
        return {
            "mean": float(scores.mean()),
            "key_sd": float(scores.mean(0).std()),
            "model_sd": float(scores.mean(1).std()),
        }


def _numbers(found: Collection[int]) -> str:
    return " or ".join(str(count) for count in sorted(found)) or "no"


def null_points(null_key: str, method: str, task: str, null: Null) -> list[dict[str, Any]]:
    """Return a null as `parquet.write_nulls` takes it: one row per model and key."""
    shared = {"null_key": null_key, "method": method, "task": task, "trials": null.trials}
    return [
        {**shared, "model": model, "place": place, "key": key, "score": score, "hits": hits}
        for place, (model, scores, counts) in enumerate(zip(null.models, null.scores, null.hits, strict=True))
        for key, (score, hits) in enumerate(zip(scores, counts, strict=True))
    ]


def nulls_of(points: pd.DataFrame) -> dict[str, Null]:
    """Return the nulls of a table as `parquet.read_nulls` returns it, by their keys; a point may be there twice."""
    ordered = points.drop_duplicates(list(NULL_ORDER)).sort_values(list(NULL_ORDER))
    found = {}
    for null_key, own in ordered.groupby("null_key"):
        models = [(str(group["model"].iloc[0]), group) for _, group in own.groupby("place")]
        scores = [[float(score) for score in group["score"]] for _, group in models]
        hits = [[int(count) for count in group["hits"]] for _, group in models]
        found[str(null_key)] = Null(scores, hits, int(own["trials"].iloc[0]), [role for role, _ in models])
    return found
