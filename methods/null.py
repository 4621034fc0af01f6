"""How never-embedded keys score on unmarked models: what a score is compared with before it counts as evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from assay.methods.suspect import Suspect
from assay.tasks.training.meter import Meter

if TYPE_CHECKING:
    from assay.methods.base import Method, Secret

RESOLUTION = 1000  # a score that counts nothing is kept in thousandths


@dataclass(frozen=True)
class Null:
    """Readings of never-embedded keys on unmarked models.

    Attributes:
        scores: per model the scores of the keys, in their order.
        hits: counts instead of scores, alike; of a score that counts nothing, thousandths.
        trials: of how many.
        models: the models' roles, e.g. `reference-0`, `reference-0|prune`.
    """

    scores: list[list[float]]
    hits: list[list[int]]
    trials: int
    models: list[str]


def read_null(method: Method[Any], keys: Iterable[Secret], models: Mapping[str, nn.Module], meter: Meter) -> Null:
    """Read every key from every unmarked model.

    Args:
        method: the scheme; its `score` is used.
        keys: evidence in the form of its secrets that nobody embedded.
        models: unmarked networks by role.
        meter: counts the queries.
    """
    keys = list(keys)
    null, trials = Null([], [], RESOLUTION, list(models)), RESOLUTION
    for model in models.values():
        suspect = Suspect(model, method.access, method.key, meter)
        read = [method.score(suspect, key) for key in keys]
        trials = next((counted for _, _, counted in read if counted), trials)
        null.scores.append([score for score, _, _ in read])
        # Counted where the method counts: score * trials may round to below the count.
        null.hits.append([math.floor(score * trials) if hits is None else hits for score, hits, _ in read])
    return Null(null.scores, null.hits, trials, null.models)
