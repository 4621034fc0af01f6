"""Decision thresholds: what the three rules promise, whatever the null distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from assay.methods.parts.calibration import calibrate, sok_threshold, strict_bits, strict_scores, strict_triggers
from assay.methods.verdict import STRICT_ALPHA, Thresholds, Verdict
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.methods.parts.statistics import binomial_tail
from assay.methods.suspect import Suspect

TRIALS = st.integers(10, 300)


@st.composite
def null_matches(draw: Any) -> tuple[list[int], int]:
    trials = draw(TRIALS)
    return draw(st.lists(st.integers(0, trials), min_size=2, max_size=60)), trials


@given(null_matches())
def test_sok_is_mean_plus_1645_deviations_within_one_grid_step(case: tuple[list[int], int]) -> None:
    matches, trials = case
    mean, deviation = np.mean(matches), np.std(matches)
    threshold = sok_threshold(matches, trials) * trials
    if deviation > 0:
        exact = mean + stats.norm.ppf(0.95) * deviation
        assert exact - 1e-9 <= threshold <= exact + 20 * mean / 999 + 1e-9


@given(TRIALS, st.data())
def test_sok_without_spread_is_the_binomial_and_never_accepts_all(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials - 1))
    least = round(sok_threshold([hits] * 7, trials) * trials)
    rate = max(hits, 1) / trials
    assert least > hits
    assert binomial_tail(least, trials, rate) <= 0.05 < binomial_tail(least - 1, trials, rate)


@given(null_matches())
def test_strict_bits_is_never_below_the_binomial_nor_any_null_key(case: tuple[list[int], int]) -> None:
    matches, trials = case
    least = round(strict_bits(matches, trials) * trials)
    assert binomial_tail(least, trials, 0.5) <= STRICT_ALPHA or least > trials
    assert least > max(matches)


@given(null_matches(), st.sampled_from([0.1, 0.5, 0.01]))
def test_strict_triggers_is_never_below_the_binomial(case: tuple[list[int], int], chance: float) -> None:
    matches, trials = case
    least = round(strict_triggers(matches, trials, chance) * trials)
    for rate in (chance, np.mean(matches) / trials):
        assert binomial_tail(least, trials, rate) <= STRICT_ALPHA or least > trials


def test_strict_triggers_allows_for_models_that_agree() -> None:
    even = [4, 5, 6] * 20
    apart = [0, 5, 10] * 20  # the same mean, a wider spread
    assert strict_triggers(apart, 50, 0.1) > strict_triggers(even, 50, 0.1)


def test_strict_triggers_takes_little_comfort_in_few_agreements_being_small() -> None:
    # One key in fifty is answered alike by a model, here for 30 of 90 triggers; by the next model it may be for all.
    few = [0] * 490 + [30] * 10
    least = round(strict_triggers(few, 90, 0.1) * 90)
    rate = np.mean(few) / 90
    assert stats.betabinom.sf(least - 1, 90, rate / (1 - rate), 1) <= STRICT_ALPHA
    assert least > 75
    assert least <= 90, "a mark that is read in full still verifies"
    # Where most keys match something the spread is known well, and the fit to it decides.
    many = [6, 9, 12] * 100
    assert round(strict_triggers(many, 90, 0.1) * 90) < 30


def test_strict_triggers_of_a_rate_above_chance_without_spread_asks_for_more_than_chance() -> None:
    # Every null key matches 20 of 50: chance 0.1 alone would put the threshold within reach of innocent models.
    least = round(strict_triggers([20] * 30, 50, 0.1) * 50)
    assert binomial_tail(least, 50, 0.4) <= STRICT_ALPHA


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_strict_scores_lies_above_every_null_score(scores: list[float]) -> None:
    assert strict_scores(scores, 100) > max(scores)


def test_strict_scores_is_the_upper_quantile_of_the_logit_fit() -> None:
    logits = stats.norm.ppf((np.arange(100) + 0.5) / 100, -2, 0.5)
    expected = 1 / (1 + np.exp(-(logits.mean() + stats.norm.isf(STRICT_ALPHA) * logits.std(ddof=1))))
    assert strict_scores((1 / (1 + np.exp(-logits))).tolist(), 1000) == pytest.approx(expected, abs=1e-9)


class Counting:
    """A stand-in for a method, whose null keys match a given number of times."""

    key, access = "counting", "nothing"

    def __init__(self, family: str, hits: list[int], trials: int | None) -> None:
        self.family, self.hits, self.trials = family, hits, trials
        self.seen: list[Suspect] = []

    def null_keys(self, *_: Any) -> list[int]:
        return list(range(len(self.hits)))

    def score(self, suspect: Suspect, key: int) -> tuple[float, int | None, int | None]:
        self.seen.append(suspect)
        if self.trials is None:
            return self.hits[key] / 1000, None, None
        return self.hits[key] / self.trials, self.hits[key], self.trials

    def verify(self, suspect: Suspect, secret: Any) -> Verdict:
        return Verdict(0.0, 0.1, 0.9, 1.0, False, "T1")


def thresholds(method: Any, bench: Any) -> Thresholds:
    task = bench.task()
    models = [task.build("one"), task.build("two")]
    return calibrate(method, task, None, {}, bench.lab("counting", task), models)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["bits", "triggers", "detector", "keys"])
def test_no_null_pair_is_ever_accepted_at_strict(family: str, bench: Any) -> None:
    # 1/49 * 49 is less than 1 in floating point: a threshold from score * trials would accept its own null key.
    method = Counting(family, [1] * 10, 49)
    found = thresholds(method, bench)
    assert found.strict > 1 / 49
    assert found.sok > 1 / 49
    assert found.paper == 0.9
    assert len(method.seen) == 20


def test_scores_that_count_nothing_keep_their_spread(bench: Any) -> None:
    low = thresholds(Counting("detector", [80, 90, 100, 110, 120], None), bench)
    high = thresholds(Counting("detector", [480, 490, 500, 510, 520], None), bench)
    assert 0.12 < low.strict < 0.2 < high.strict < 0.6
    assert low.sok == pytest.approx(0.1 + 1.645 * np.std([0.08, 0.09, 0.1, 0.11, 0.12]), abs=0.003)


def test_strict_needs_both_the_threshold_and_the_p_value() -> None:
    rules = Thresholds(paper=0.9, sok=0.5, strict=0.7)

    def decided(score: float, p_value: float, applicable: bool = True) -> tuple[bool, bool]:
        verdict = Verdict(score, 0.1, 0.9, p_value, score >= 0.9, "T1", applicable=applicable)
        decision = rules.decide(verdict)
        return decision["sok"], decision["strict"]

    assert decided(0.8, 1e-3) == (True, True)
    assert decided(0.8, 1.1e-3) == (True, False)
    assert decided(0.6, 1e-9) == (True, False)
    assert decided(1.0, 1e-9, applicable=False) == (False, False)
