"""Decision thresholds: what the rules promise, whatever the null distribution; and worked numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.results.errors import ResultsError
from assay.results.nulls import Null
from assay.results.statistics import binomial_tail, least_hits
from assay.results.thresholds import (
    sok_threshold,
    strict_bits,
    strict_scores,
    strict_threshold,
    strict_triggers,
)

ALPHA = 1e-3
TRIALS = st.integers(10, 300)


@st.composite
def null_hits(draw: Any) -> tuple[list[int], int]:
    trials = draw(TRIALS)
    return draw(st.lists(st.integers(0, trials), min_size=2, max_size=60)), trials


def share(hits: int, trials: int) -> Any:
    return pytest.approx(hits / trials, abs=1e-12)


# --- least hits --------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(1e-6, 1), st.floats(1e-6, 0.9))
def test_least_hits_is_the_first_count_whose_tail_is_small_enough(trials: int, rate: float, alpha: float) -> None:
    fits = [hits for hits in range(trials + 1) if binomial_tail(hits, trials, rate) <= alpha]
    assert least_hits(trials, rate, alpha) == min(fits, default=trials + 1)


def test_tails_of_ten_coins() -> None:
    assert binomial_tail(9, 10, 0.5) == pytest.approx(11 / 1024)
    assert binomial_tail(10, 10, 0.5) == pytest.approx(1 / 1024)
    assert binomial_tail(0, 10, 0.5) == 1
    assert [least_hits(10, 0.5, alpha) for alpha in (0.011, 0.0107, 0.001, 0.0009)] == [9, 10, 10, 11]


# --- SoK ---------------------------------------------------------------------------------------------------------


@given(null_hits())
def test_sok_is_mean_plus_1645_deviations_within_one_grid_step(case: tuple[list[int], int]) -> None:
    hits, trials = case
    mean, deviation = np.mean(hits), np.std(hits)
    threshold = sok_threshold(hits, trials) * trials
    if deviation > 0:
        exact = mean + stats.norm.ppf(0.95) * deviation
        assert exact - 1e-9 <= threshold <= exact + 20 * mean / 999 + 1e-9


def test_sok_by_hand() -> None:
    # Mean 10, deviation sqrt(8/3) = 1.633: 12.686. The grid has steps of 200/999; the 64th is the first above.
    assert sok_threshold([8, 10, 12], 100) == pytest.approx(64 * 200 / 999 / 100)
    # Mean 0.001, deviation 0.0316: the grid ends at 0.02, below the normal's own quantile 0.05299.
    assert sok_threshold([0] * 999 + [1], 10) == pytest.approx((0.001 + 1.644854 * math.sqrt(0.000999)) / 10, rel=1e-6)
    # No spread: of 49 with rate 1/49, P(X >= 3) = 0.078 and P(X >= 4) = 0.018; nothing matched counts as one match.
    assert sok_threshold([1] * 5, 49) == share(4, 49)
    assert sok_threshold([0] * 5, 49) == share(4, 49)


@given(TRIALS, st.data())
def test_sok_without_spread_is_the_binomial_and_never_accepts_all(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials - 1))
    least = round(sok_threshold([hits] * 7, trials) * trials)
    rate = max(hits, 1) / trials
    assert least > hits
    assert binomial_tail(least, trials, rate) <= 0.05 < binomial_tail(least - 1, trials, rate)


# --- strict: bits ------------------------------------------------------------------------------------------------


@given(null_hits())
def test_strict_bits_is_never_below_the_binomial_nor_any_null_key(case: tuple[list[int], int]) -> None:
    hits, trials = case
    least = round(strict_bits(hits, trials, ALPHA) * trials)
    assert binomial_tail(least, trials, 0.5) <= ALPHA or least > trials
    assert least > max(hits)


def test_strict_bits_by_hand() -> None:
    # Ten coins: P(10) = 1/1024, P(>= 9) = 11/1024.
    assert strict_bits([3, 4], 10, 1e-3) == 1.0
    assert strict_bits([3, 4], 10, 0.011) == 0.9
    assert strict_bits([9], 10, 0.011) == 1.0, "a null key with nine matches puts nine out of question"
    assert strict_bits([10], 10, 0.011) == 1.1, "a full match of a null key leaves nothing to verify by"


# --- strict: triggers --------------------------------------------------------------------------------------------


@given(null_hits(), st.sampled_from([0.1, 0.5, 0.01]))
def test_strict_triggers_is_never_below_the_binomial(case: tuple[list[int], int], chance: float) -> None:
    hits, trials = case
    least = round(strict_triggers(hits, trials, chance, ALPHA) * trials)
    for rate in (chance, float(np.mean(hits)) / trials):
        assert binomial_tail(least, trials, rate) <= ALPHA or least > trials


def test_strict_triggers_allows_for_models_that_agree() -> None:
    # The same mean of 5 in 50. Narrower than a binomial: the binomial of rate 0.1 decides, P(X >= 14) = 0.0003.
    assert strict_triggers([4, 5, 6] * 20, 50, 0.1, ALPHA) == share(14, 50)
    # Variance 50/3 against 4.5: rho = 0.0552, a = 1.712, b = 15.41 by moments, and P(X >= 25) is the first below 1e-3.
    rho = (50 / 3 / 4.5 - 1) / 49
    a, b = 0.1 * (1 / rho - 1), 0.9 * (1 / rho - 1)
    assert stats.betabinom.sf(24, 50, a, b) <= ALPHA < stats.betabinom.sf(23, 50, a, b)
    assert strict_triggers([0, 5, 10] * 20, 50, 0.1, ALPHA) == share(25, 50)
    # Moments of a = 1, b = 2 in 3 trials: P(X >= 2) = 0.3. From a = 1 on the fit is trusted below the largest count.
    assert strict_triggers([0, 2], 3, 0.1, 0.35) == share(2, 3)
    assert strict_triggers([0, 2], 3, 0.1, float(stats.betabinom.sf(1, 3, 1, 2))) == share(2, 3), "alpha is allowed"
    # Moments of a = 1/3, b = 1 in 8 trials: P(X >= 5) = 0.186, P(X >= 4) = 0.249; up to b = 1 it is trusted too.
    assert strict_triggers([0, 0, 2, 6], 8, 0.1, 0.2) == share(5, 8)


def test_strict_triggers_lies_above_every_null_key_at_any_rate() -> None:
    # Five of 50 each: no wider than a binomial, whose P(X >= 5) = 0.569 is rare enough at 0.6.
    assert strict_triggers([5] * 3, 50, 0.1, 0.6) == share(6, 50)
    # One trigger tells no spread; half of the keys match it, and 0.5 is rare enough at 0.6.
    assert strict_triggers([0, 1], 1, 0.0, 0.6) == share(2, 1)
    # Two triggers tell one: keys match both or none, and both match in just below half of the keys.
    assert strict_triggers([0, 2], 2, 0.0, 0.5) == share(2, 2)
    assert strict_triggers([0, 0], 50, 0.0, ALPHA) == share(1, 50), "nothing ever matched: one match is enough"
    assert strict_triggers([50, 50], 50, 0.0, ALPHA) == share(51, 50), "everything always matches"


def flat_tail(least: int, trials: int, rate: float) -> float:
    """P(X >= least) of the beta-binomial with mean `rate` and b = 1: 1 - prod j / (j + a), j = least ... trials."""
    a = rate / (1 - rate)
    return 1 - math.prod(j / (j + a) for j in range(least, trials + 1))


@pytest.mark.parametrize(
    ("hits", "alpha", "least"),
    [
        # Ten of 500 keys match 30 of 90: rate 1/150, a = 1/149; P(X >= k) is about the sum of 1/(149 j), j = k ... 90.
        ([0] * 490 + [30] * 10, 1e-3, 79),
        # At 1 % the flat tail alone would begin at 21, but null keys match 30.
        ([0] * 490 + [30] * 10, 1e-2, 31),
        # Two of 100 keys match 12 of 90: rate 1/375, a = 1/374.
        ([0] * 98 + [12] * 2, 1e-3, 63),
        # Ten keys match everything: above them there is no count left.
        ([0] * 490 + [90] * 10, 1e-3, 91),
    ],
)
def test_strict_triggers_takes_little_comfort_in_few_agreements_being_small(
    hits: list[int], alpha: float, least: int
) -> None:
    # One key in fifty is answered alike by a model, for 30 of 90 triggers; by the next model it may be for all.
    assert strict_triggers(hits, 90, 0.01, alpha) == share(least, 90)
    rate = sum(hits) / len(hits) / 90
    first = next((k for k in range(1, 91) if flat_tail(k, 90, rate) <= alpha), 91)
    binomial = least_hits(90, max(0.01, rate), alpha)
    assert least == max(first, max(hits) + 1, binomial)


def test_where_most_keys_match_something_the_fit_to_them_decides() -> None:
    # Mean 9, variance 6 of 90: less than the binomial's 8.1, which decides at P(X >= 20) = 0.0007.
    assert strict_triggers([6, 9, 12] * 100, 90, 0.1, ALPHA) == share(20, 90)


def test_strict_triggers_without_spread_asks_for_more_than_chance() -> None:
    # Every null key matches 20 of 50: chance 0.1 alone would put the threshold within reach of innocent models.
    assert strict_triggers([20] * 30, 50, 0.1, ALPHA) == share(32, 50)
    assert binomial_tail(32, 50, 0.4) <= ALPHA < binomial_tail(31, 50, 0.4)
    # And a null key above the binomial's threshold is never accepted.
    assert strict_triggers([0], 50, 0.001, ALPHA) == share(3, 50)
    assert strict_triggers([50], 50, 0.1, ALPHA) == share(51, 50)


def test_all_or_nothing_leaves_nothing_to_verify_by() -> None:
    assert strict_triggers([0, 50] * 10, 50, 0.1, ALPHA) == share(51, 50)


def test_a_spread_that_is_only_rounding_is_no_spread() -> None:
    # Mean 108/7 of 36 and variance 432/49, exactly the binomial's; in floating point one bit more, and the tail of a
    # beta-binomial with a + b = 1e16 is noise that once put the threshold above a full match.
    assert strict_triggers([12] * 6 + [18] * 8, 36, 0.1, ALPHA) == share(26, 36)
    assert binomial_tail(26, 36, 3 / 7) <= ALPHA < binomial_tail(25, 36, 3 / 7)


# --- strict: scores ----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_strict_scores_lies_above_every_null_score(scores: list[float]) -> None:
    assert strict_scores(scores, 100, ALPHA) > max(scores)


def test_strict_scores_is_the_upper_quantile_of_the_logit_fit() -> None:
    logits = stats.norm.ppf((np.arange(100) + 0.5) / 100, -2, 0.5)
    expected = 1 / (1 + np.exp(-(logits.mean() + stats.norm.isf(ALPHA) * logits.std(ddof=1))))
    found = strict_scores((1 / (1 + np.exp(-logits))).tolist(), 1000, ALPHA)
    assert found == pytest.approx(expected, abs=1e-9)


def test_strict_scores_by_hand() -> None:
    # Logits -ln 9 and +ln 9: mean 0, deviation ln 9 * sqrt 2; the quantile is 3.0902 of them, so 9 ** -4.3702.
    assert strict_scores([0.1, 0.9], 1000, ALPHA) == pytest.approx(1 / (1 + 9**-4.37023), abs=1e-7)
    assert strict_scores([0.2], 1000, ALPHA) == math.nextafter(0.2, 1), "one score has no spread: just above it"
    assert strict_scores([0.0], 1000, ALPHA) == pytest.approx(0.0005), "no score counts as half a thousandth"


# --- nulls -------------------------------------------------------------------------------------------------------


def make(hits: list[int], trials: int) -> Null:
    return Null([[count / trials for count in hits]] * 2, [hits] * 2, trials, ["reference-0", "reference-1"])


@pytest.mark.parametrize("family", ["bits", "triggers", "detector", "keys"])
def test_no_null_pair_is_ever_accepted_at_strict(family: str) -> None:
    # 1/49 * 49 is less than 1 in floating point: a threshold from score * trials would accept its own null key.
    assert strict_threshold(family, make([1] * 10, 49), 0.1, ALPHA) > 1 / 49


def test_counts_decide_for_bits_and_triggers_and_scores_for_the_rest() -> None:
    null = Null([[0.1, 0.9]], [[3, 4]], 10, ["reference-0"])
    assert strict_threshold("bits", null, 0.1, 0.011) == 0.9
    assert strict_threshold("triggers", null, 0.1, 0.011) == strict_triggers([3, 4], 10, 0.1, 0.011)
    for family in ("detector", "keys"):
        assert strict_threshold(family, null, 0.1, ALPHA) == strict_scores([0.1, 0.9], 10, ALPHA)
    with pytest.raises(ResultsError, match=r"unknown family 'bit'; did you mean 'bits'\? \(allowed: "):
        strict_threshold("bit", null, 0.1, ALPHA)


@given(st.floats(1e-9, 0.999), st.floats(1e-9, 0.999), null_hits(), st.sampled_from(["bits", "triggers", "keys"]))
def test_a_rarer_false_claim_never_lowers_a_threshold(
    one: float, other: float, case: tuple[list[int], int], family: str
) -> None:
    low, high = sorted((one, other))
    null = make(*case)
    assert strict_threshold(family, null, 0.1, low) >= strict_threshold(family, null, 0.1, high)


@settings(max_examples=40, deadline=None)
@given(null_hits(), st.randoms(use_true_random=False))
def test_the_order_of_keys_moves_no_threshold(case: tuple[list[int], int], random: Any) -> None:
    hits, trials = case
    other = random.sample(hits, len(hits))
    for family in ("bits", "triggers", "keys"):
        one, two = (strict_threshold(family, make(own, trials), 0.1, ALPHA) for own in (hits, other))
        assert one == pytest.approx(two, rel=1e-9)
    # A point of SoK's grid that lies on the quantile may fall either way by rounding, by one step at most.
    step = 20 * float(np.mean(hits)) / 999 / trials
    assert sok_threshold(hits, trials) == pytest.approx(sok_threshold(other, trials), abs=step * 1.001 + 1e-12)


def test_the_spread_of_a_null_by_hand() -> None:
    # Means of keys 0.15 and 0.35, of models 0.2 and 0.3.
    null = Null([[0.1, 0.3], [0.2, 0.4]], [[1, 3], [2, 4]], 10, ["reference-0", "reference-1"])
    assert null.spread() == pytest.approx({"mean": 0.25, "key_sd": 0.1, "model_sd": 0.05})


def test_what_was_computed_from_a_null_is_no_part_of_it() -> None:
    null = make([3, 4], 10)
    made = iter(["made", "made again"])
    assert [null.once(("x",), lambda: next(made)) for _ in range(2)] == ["made", "made"]
    assert null.once(("y",), lambda: "other") == "other"
    assert null == make([3, 4], 10)
    assert repr(null) == repr(make([3, 4], 10))
    assert null != make([3, 5], 10)
    with pytest.raises(TypeError):
        Null([[0.1]], [[1]], 10, ["a"], {})  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("null", "text"),
    [
        (([[0.1]], [[1], [2]], 10, ["a"]), "1 or 2 models and 1 keys"),
        (([[0.1, 0.2], [0.1]], [[1, 2], [1]], 10, ["a", "b"]), "2 models and 1 or 2 keys"),
        (([], [], 10, []), "0 models and no keys"),
        (([[]], [[]], 10, ["a"]), "1 models and 0 keys"),
        (([[0.1]], [[1]], 0, ["a"]), "0 trials"),
    ],
)
def test_a_null_of_nothing_or_with_holes_is_refused(null: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ResultsError, match=text) as caught:
        Null(*null)
    assert "\n" not in str(caught.value)
