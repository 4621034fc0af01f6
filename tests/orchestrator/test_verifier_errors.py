"""Errors of the verifier: what is counted, which way the matrix lies, and that nothing is counted twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.orchestrator.work.verifier_errors import Owner, cross_verify, false_claims
from assay.results.decisions import Rules, Thresholds
from assay.tasks.errors import UnsupportedModel

LIMITS = Thresholds(paper=0.9, sok=0.6, strict=0.8, rare=None)


class Number(nn.Module):
    """A model that is a number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


class Distance(Method[MethodConfig]):
    """Scores 1 - |key - model|; the p-value of a close one is small."""

    key, title, paper, access, family = "distance", "distance", "none", "weights", "bits"
    verified = 0

    def draw(self, *_: Any) -> Secret:
        return {}

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int | None, int | None]:
        return max(0.0, 1 - abs(float(suspect.weights()["value"]) - secret["value"])), None, None

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        self.verified += 1
        score = self.score(suspect, secret)[0]
        metrics = {"det_rate": score / 2} if secret.get("rate") else {}
        return Reading(score, 0.5, 0.9, 1e-4 if score >= 0.95 else 0.5, score >= 0.9, "T3", metrics=metrics)


class Yes(Distance):
    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int | None, int | None]:
        return 1.0, None, None


def owners(*values: float, **more: Any) -> list[Owner]:
    return [Owner({"value": value, **more}, LIMITS, Rules()) for value in values]


def loaders(*values: float) -> list[Any]:
    return [lambda value=value: Number(value) for value in values]


def test_each_rule_counts_its_own_claims() -> None:
    method = Distance(MethodConfig())
    claims = [{"value": value} for value in (0.0, 0.03, 0.15, 0.35, 0.7)]  # scores 1, 0.97, 0.85, 0.65, 0.3 on zero
    report, curves = false_claims(method, claims, {"marked-0": Number(5.0), "unmarked-0": Number(0.0)}, LIMITS)
    assert report["claims"] == 5
    assert [report[f"false_{rule}_unmarked"] for rule in ("paper", "sok", "strict")] == [2, 4, 2]
    assert [report[f"false_{rule}_marked"] for rule in ("paper", "sok", "strict")] == [0, 0, 0]
    assert report["false_strict_unmarked_rate"] == 0.4
    assert report["best_claim_unmarked"] == 1.0
    assert report["false_strict_marked_upper"] == pytest.approx(1 - 0.025 ** (1 / 5))  # 0 of 5, exact
    assert sum(point["count"] for point in curves if point["curve"] == "claims unmarked") == 5
    assert method.verified == 3, "a p-value is computed only where a rule asks for it"


def test_models_of_a_group_are_counted_together() -> None:
    suspects = {"marked-0": Number(9.0), "unmarked-0": Number(0.0), "unmarked-1": Number(0.0)}
    report, _ = false_claims(Distance(MethodConfig()), iter([{"value": 0.0}]), suspects, LIMITS)
    assert (report["false_strict_unmarked"], report["false_strict_unmarked_rate"]) == (2, 1.0)


def test_a_verifier_that_always_says_yes_has_rate_one() -> None:
    class Always(Yes):
        def read(self, suspect: Suspect, secret: Secret) -> Reading:
            return Reading(1.0, 0.5, 0.9, 1e-6, True, "none")

    claims = [{"value": float(value)} for value in range(7)]
    report, _ = false_claims(Always(MethodConfig()), claims, {"marked-0": Number(50.0)}, LIMITS)
    assert all(report[f"false_{rule}_marked_rate"] == 1.0 for rule in ("paper", "sok", "strict"))


def test_a_suspect_that_cannot_carry_the_mark_verifies_nothing() -> None:
    class Never(Distance):
        def score(self, *_: Any) -> Any:
            raise UnsupportedModel("no carrier")

    rules = Thresholds(paper=0.0, sok=0.0, strict=0.0, rare=None)
    report, _ = false_claims(Never(MethodConfig()), [{"value": 0.0}], {"marked-0": Number(0.0)}, rules)
    assert report["false_sok_marked"] == 0


def test_without_claims_nothing_is_reported() -> None:
    assert false_claims(Distance(MethodConfig()), (), {"marked-0": Number(0.0)}, LIMITS) == ({}, [])


def test_rows_are_keys_and_columns_are_models() -> None:
    # Key 0 sits between both models, key 1 on the second: the matrix is not symmetric.
    report, curves = cross_verify(Distance(MethodConfig()), owners(0.4, 1.0), loaders(0.0, 1.0, 3.0))
    square = [[point[f"key-{row}"] for point in curves if point["curve"] == "cross-verify"] for row in range(2)]
    assert square == [[pytest.approx(0.6), pytest.approx(0.4)], [0.0, 1.0]]
    assert report["identified"] == pytest.approx((0.6 + 1.0) / 2)
    assert report["misidentified"] == pytest.approx((0.4 + 0.0) / 2)
    assert report["identified_strict"] == 0.5
    assert report["unmarked"] == 0.0
    assert report["traced"] == 1.0
    assert [point["step"] for point in curves if point["curve"] == "cross-verify unmarked"] == [0]


def test_a_model_that_answers_to_another_key_is_not_traced() -> None:
    report, _ = cross_verify(Distance(MethodConfig()), owners(1.0, 0.0), loaders(0.0, 1.0))
    assert (report["traced"], report["identified"], report["misidentified"]) == (0.0, 0.0, 1.0)


def test_a_detection_rate_comes_before_the_score_and_both_are_logged() -> None:
    report, _ = cross_verify(Distance(MethodConfig()), owners(0.0, 2.0, rate=True), loaders(0.0, 2.0))
    assert (report["identified"], report["identified_score"]) == (0.5, 1.0)


def test_one_owner_alone_has_nobody_to_be_mistaken_for() -> None:
    report, _ = cross_verify(Distance(MethodConfig()), owners(0.0), loaders(0.0))
    assert report["identified"] == 1.0
    assert not any(name.startswith("misidentified") for name in report)
    assert all(math.isfinite(value) for value in report.values())
