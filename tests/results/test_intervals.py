from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.results import statistics
from assay.results.example import make_row
from assay.results.statistics import auc, clopper_pearson, over_victims, t_interval, wilson

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_anchors_of_the_protocol() -> None:
    # No false positive among 1,000 and among 200 watermarks (protocol 2.6).
    assert clopper_pearson(0, 1000, one_sided=True)[1] == pytest.approx(0.0030, abs=5e-5)
    assert clopper_pearson(0, 1000)[1] == pytest.approx(0.0037, abs=5e-5)
    assert clopper_pearson(0, 200, one_sided=True)[1] == pytest.approx(0.0149, abs=5e-5)
    assert clopper_pearson(0, 200)[1] == pytest.approx(0.0183, abs=5e-5)


def test_known_intervals() -> None:
    assert wilson(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)  # z = 1.96: (0.75 + z²/40 ± …) / (1 + z²/20)
    assert clopper_pearson(15, 20) == pytest.approx((0.5090, 0.9134), abs=1e-4)
    # Three values 1, 2, 3: t(0.975, 2) = 4.30265, standard error 1/sqrt(3).
    assert t_interval([1.0, 2.0, 3.0]).half == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)


@given(COUNTS)
def test_intervals_hold_the_rate_and_mirror(count: tuple[int, int]) -> None:
    hits, trials = count
    for interval in (wilson, clopper_pearson):
        low, high = interval(hits, trials)
        assert 0 <= low <= hits / trials + 1e-12
        assert hits / trials - 1e-12 <= high <= 1
        assert interval(trials - hits, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert clopper_pearson(hits, trials, one_sided=True)[0] == 0
    assert clopper_pearson(hits, trials, one_sided=True)[1] <= clopper_pearson(hits, trials)[1] + 1e-12


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_impossible_counts_are_refused_and_no_trial_tells_nothing(
    interval: Callable[[int, int], tuple[float, float]],
) -> None:
    assert interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 hits of 2"):
        interval(3, 2)


def seeded(*seeds: int) -> list[dict[str, Any]]:
    """Rows of one experiment, one for each victim seed given, a repeated one with another attack seed."""
    return [
        make_row(cell_key=f"{i:02d}", victim_seed=seed, attack_seed=seeds[:i].count(seed))
        for i, seed in enumerate(seeds)
    ]


def test_attack_seeds_are_averaged_before_victims() -> None:
    nested = over_victims([0.0, 0.2, 0.4, 0.6, 1.0], seeded(1, 1, 1, 2, 3))
    plain = t_interval([0.2, 0.6, 1.0])
    assert (nested.value, nested.half, nested.n) == pytest.approx((plain.value, plain.half, 3))
    # Repeating one victim's attack adds no evidence.
    repeated = over_victims([0.2] * 50 + [0.6, 1.0], seeded(*[1] * 50, 2, 3))
    assert repeated.half == pytest.approx(plain.half)


def test_one_victim_has_no_interval_and_none_has_no_mean() -> None:
    one = over_victims([0.5, 0.7], seeded(4, 4))
    assert one.value == pytest.approx(0.6)
    assert (one.half, one.n) == (None, 1)
    none = over_victims([math.nan, None], seeded(0, 1))
    assert math.isnan(none.value)
    assert none.n == 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_mean_lies_between_the_extremes(values: list[float]) -> None:
    mean = over_victims(values, seeded(*range(len(values))))
    assert mean.least - 1e-12 <= mean.value <= mean.most + 1e-12
    assert mean.half is not None
    assert mean.half >= 0


def test_module_level_is_95_percent() -> None:
    assert statistics.t_interval([0.0, 1.0]).half == pytest.approx(12.7062 * 0.5, abs=1e-3)


def test_auc_counts_pairs_and_ties_half() -> None:
    assert auc([3, 4], [1, 2]) == 1
    assert auc([1, 2], [3, 4]) == 0
    assert auc([2], [1, 2, 3, 4]) == (1 + 0.5) / 4
