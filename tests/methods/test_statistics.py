"""The exact tests of verification against the specification's anchors, and what must hold for every input."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.methods.parts.redraw import redraw_p_value
from assay.methods.parts.statistics import binomial_tail, calibrated_rate, fisher_control, least_hits

RATES = st.sampled_from([0.1, 0.5, 1 / 9, 0.01, 1 / 43])


@pytest.mark.parametrize(
    ("hits", "trials", "rate", "expected"),
    [
        (14, 100, 0.1, 0.1238767926),
        (20, 100, 0.1, 0.0019785609),
        (52, 100, 0.1, 6.5908e-26),
        (12, 40, 1 / 9, 9.88117500e-4),  # T2: forty keys not answered with their true class, K = 10
    ],
)
def test_binomial_tail_anchors(hits: int, trials: int, rate: float, expected: float) -> None:
    assert binomial_tail(hits, trials, rate) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("trials", "rate", "expected"),
    [
        (100, 0.1, (16, 21, 28)),
        (90, 0.1, (15, 20, 26)),
        (250, 0.1, (34, 42, 51)),
        (256, 0.5, (142, 154, 167)),
        (100, 0.5, (59, 66, 74)),
    ],
)
def test_least_hits_anchors(trials: int, rate: float, expected: tuple[int, int, int]) -> None:
    assert tuple(least_hits(trials, rate, alpha) for alpha in (0.05, 1e-3, 1e-6)) == expected


@pytest.mark.parametrize(("table", "expected"), [((18, 20, 30, 200), 9.19939796e-12), ((9, 10, 40, 100), 0.0028474701)])
def test_held_out_control_anchors(table: tuple[int, int, int, int], expected: float) -> None:
    assert fisher_control(*table) == pytest.approx(expected, rel=1e-6)


def test_calibrated_rate_anchors() -> None:
    assert calibrated_rate([3], 450, 0.0) == pytest.approx(0.0171395295, abs=1e-9)
    assert calibrated_rate([3], 450, 0.1) == 0.1
    assert calibrated_rate([0, 3, 2], 450, 0.0) == calibrated_rate([3], 450, 0.0)
    assert binomial_tail(40, 90, 0.1) == pytest.approx(3.5655e-17, rel=1e-4)
    raised = calibrated_rate([45], 450, 0.1)
    assert raised == pytest.approx(0.1263749962, abs=1e-9)
    assert binomial_tail(40, 90, raised) == pytest.approx(9.8484e-14, rel=1e-4)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 9))
def test_binomial_tail_equals_the_sum_in_exact_arithmetic(trials: int, hits: int, tenths: int) -> None:
    hits = min(hits, trials)
    q = Fraction(tenths, 10)
    exact = sum(comb(trials, i) * q**i * (1 - q) ** (trials - i) for i in range(hits, trials + 1))
    assert binomial_tail(hits, trials, tenths / 10) == pytest.approx(float(exact), rel=1e-9)


@given(st.integers(1, 3000), RATES)
def test_p_value_is_positive_and_falls_with_every_hit(trials: int, rate: float) -> None:
    steps = sorted({0, 1, trials // 3, trials // 2, trials})
    tail = [binomial_tail(h, trials, rate) for h in steps]
    assert tail[0] == 1
    assert all(later <= earlier for earlier, later in pairwise(tail))
    assert tail[-1] > 0


@given(st.integers(1, 500), RATES, st.sampled_from([0.05, 1e-3, 1e-6]))
def test_least_hits_is_the_smallest(trials: int, rate: float, alpha: float) -> None:
    least = least_hits(trials, rate, alpha)
    assert 1 <= least <= trials + 1
    assert binomial_tail(least - 1, trials, rate) > alpha
    if least <= trials:
        assert binomial_tail(least, trials, rate) <= alpha


@given(st.integers(1, 400), st.data())
def test_the_bound_covers_the_largest_rate_with_the_exact_level(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    bound = calibrated_rate([hits], trials, 0.0)
    assert hits / trials < bound <= 1 or bound == hits / trials == 1
    if hits < trials:  # so few hits or fewer have probability 5 % at the bound
        assert 1 - binomial_tail(hits + 1, trials, bound) == pytest.approx(0.05, abs=1e-6)


def test_redraw_reaches_its_resolution_and_stops_early() -> None:
    assert redraw_p_value(lambda begin, end: [False] * (end - begin), 999) == (1e-3, 999)
    assert redraw_p_value(lambda begin, end: [True] * (end - begin), 999) == (1.0, 10)
    # The tenth key that reaches the score is number 200.
    assert redraw_p_value(lambda begin, end: [(i + 1) % 20 == 0 for i in range(begin, end)], 999) == (0.05, 200)
    few = {3, 500, 998}
    assert redraw_p_value(lambda begin, end: [i in few for i in range(begin, end)], 999) == (4e-3, 999)


def beaten(own: float, others: np.ndarray) -> Callable[[int, int], list[bool]]:
    return lambda begin, end: (others[begin:end] >= own).tolist()


def test_redraw_p_value_is_uniform_under_the_null() -> None:
    draws = np.random.default_rng(0)
    observed = np.array([redraw_p_value(beaten(draws.random(), draws.random(199)), 199)[0] for _ in range(2000)])
    for level in (0.005, 0.05, 0.25, 0.5):  # exact: P(p <= level) does not exceed the level, up to sampling error
        assert (observed <= level).mean() <= level + 4 * (level * (1 - level) / 2000) ** 0.5
    assert (observed <= 0.05).mean() >= 0.03
