"""Nulls: what never-embedded keys score on unmarked models, as counts where the method counts."""

from __future__ import annotations

from typing import Any

import pytest

from assay.methods.base import Method
from assay.methods.null import RESOLUTION, Null, read_null
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.tasks.calibration import Calibration
from assay.tasks.lab import Lab
from assay.tasks.training.meter import Meter


class Counting(Method[Any]):
    """A stand-in whose key number i matches as often as told, or scores so many thousandths."""

    key, title, paper, access, family = "counting", "Counting", "none", "nothing", "triggers"

    def __init__(self, hits: list[int], trials: int | None) -> None:
        super().__init__(self.Config())
        self.told, self.trials = hits, trials
        self.asked: list[Suspect] = []
        self.streams: list[str] = []

    def draw(self, lab: Lab) -> dict[str, Any]:
        self.streams.append(lab.plugin)
        return {"hits": self.told[len(self.streams) - 1]}

    def read(self, suspect: Suspect, secret: dict[str, Any]) -> Reading:
        raise AssertionError("a null needs scores alone")

    def score(self, suspect: Suspect, secret: dict[str, Any]) -> tuple[float, int | None, int | None]:
        self.asked.append(suspect)
        if self.trials is None:
            return secret["hits"] / 1000, None, None
        return secret["hits"] / self.trials, secret["hits"], self.trials


def null_of(method: Counting, bench: Any) -> Null:
    task = bench.task()
    models = {role: task.build(role) for role in ("reference-0", "reference-0|prune")}
    return read_null(method, [{"hits": hits} for hits in method.told], models, Meter())


def test_every_key_is_read_from_every_model(bench: Any) -> None:
    method = Counting([1, 4, 9], 50)
    null = null_of(method, bench)
    assert null.models == ["reference-0", "reference-0|prune"]
    assert null.scores == [[0.02, 0.08, 0.18]] * 2
    assert null.hits == [[1, 4, 9]] * 2
    assert null.trials == 50
    assert len(method.asked) == 6


def test_hits_are_the_methods_own_count(bench: Any) -> None:
    # 1/49 * 49 is less than 1 in floating point: a count from score * trials would lose its hit.
    assert 1 / 49 * 49 < 1
    assert null_of(Counting([1] * 10, 49), bench).hits == [[1] * 10] * 2


def test_scores_that_count_nothing_are_kept_in_thousandths(bench: Any) -> None:
    null = null_of(Counting([80, 100, 125], None), bench)
    assert null.trials == RESOLUTION == 1000
    assert null.hits == [[80, 100, 125]] * 2


@pytest.mark.parametrize("processed", [0, 1])
def test_a_null_follows_the_calibration(bench: Any, processed: int) -> None:
    calibration = Calibration(references=2, processed=processed, keys=10)
    asked: list[str] = []

    def unmarked(role: str) -> Any:
        asked.append(role)
        return bench.task().build(role)

    method = Counting(list(range(10)), 20)
    null = method.null(bench.lab("counting", bench.task(), calibration=calibration, unmarked=unmarked), None)
    assert null.models == asked == list(calibration.roles)
    assert null.hits == [list(range(10))] * len(calibration.roles)
    assert method.streams == [f"counting|key-{index}" for index in range(10)]  # no owner's streams
