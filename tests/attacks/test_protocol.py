"""Outcome classes, success and normalised scores (protocol 2.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.attacks.protocol import ambiguity, classify, sok_norm, succeeded


@pytest.mark.parametrize(
    ("after", "verified", "expected"),
    [
        (0.90, False, "removed"), (0.90, True, "retained"), (0.80, False, "useless"), (0.80, True, "failed"),
        (0.85, False, "removed"),  # five points exactly are still allowed
        (0.8499, False, "useless"),
        (0.99, False, "removed"),  # one-sided: a better surrogate is no failure
    ],
)  # fmt: skip
def test_outcome_classes(after: float, verified: bool, expected: str) -> None:
    assert classify(0.90, after, verified) == expected


def test_what_a_rival_claim_leads_to() -> None:
    found = {(owner, rival): ambiguity(owner, rival) for owner in (True, False) for rival in (True, False)}
    assert found == {
        (True, True): "piracy", (False, True): "takeover", (False, False): "corruption", (True, False): "none",
    }  # fmt: skip


def test_removal_succeeds_with_class_removed_alone() -> None:
    assert succeeded("removal", 0.9, 0.9, owner_verified=False, rival_verified=None) is True
    assert succeeded("removal", 0.9, 0.9, owner_verified=True, rival_verified=None) is False
    assert succeeded("removal", 0.9, 0.5, owner_verified=False, rival_verified=None) is False


def test_ambiguity_succeeds_with_a_verified_claim_on_a_useful_model_whatever_the_owner_reads() -> None:
    for owner in (True, False):
        assert succeeded("ambiguity", 0.9, 0.9, owner_verified=owner, rival_verified=True) is True
        assert succeeded("ambiguity", 0.9, 0.9, owner_verified=owner, rival_verified=False) is False
        assert succeeded("ambiguity", 0.9, 0.7, owner_verified=owner, rival_verified=True) is False


def test_one_model_alone_decides_no_detection_and_no_verification() -> None:
    for kind in ("detection", "verification"):
        assert succeeded(kind, 0.9, 0.9, owner_verified=True, rival_verified=None) is None  # type: ignore[arg-type]


@given(st.floats(0.01, 0.98), st.floats(0, 1), st.floats(0, 1))
def test_soks_score_maps_the_threshold_to_a_half_and_a_full_match_to_one(t: float, one: float, other: float) -> None:
    tau = round(t, 2)
    assert sok_norm(tau, tau) == pytest.approx(0.5)
    assert sok_norm(1.0, tau) == pytest.approx(1.0)
    low, high = sorted((one, other))
    assert 0 <= sok_norm(low, tau) <= sok_norm(high, tau) <= 1


def test_soks_threshold_is_rounded_up_to_two_digits() -> None:
    assert sok_norm(0.62, 0.611) == pytest.approx(0.5)
    assert sok_norm(0.61, 0.61) == pytest.approx(0.5), "an exact hundredth stays"


def test_a_threshold_out_of_reach_leaves_a_score_of_at_most_a_half() -> None:
    assert sok_norm(1.0, 1.0) == 0.5
    assert sok_norm(0.9, 1.0) == 0.0
