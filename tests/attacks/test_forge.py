"""Forging: the search over fresh keys, and the claim's form."""

from __future__ import annotations

from typing import Any

from attacks.forge import Config, Forge
from methods.base import MethodConfig
from methods.clean import Clean
from methods.suspect import Suspect


def test_the_best_of_the_draws_is_claimed(field: Any) -> None:
    method = field.SignMark(MethodConfig())
    lab = field.lab("forge")
    outcome = Forge(Config(draws=200)).run(field.victim("weights", method), field.splits.attacker, lab)
    scores = [row["score"] for row in lab.curves]
    assert len(scores) == 200
    assert method.read(Suspect(field.model, "weights", "signs"), outcome.rival).score == max(scores)
    # Bits of 64 draws each: mean 1/2, and the best of 200 about 2.75 standard deviations above it.
    assert abs(sum(scores) / 200 - 0.5) < 0.02
    assert 0.6 < max(scores) < 0.75
    assert outcome.surrogate is None


def test_draws_are_fresh_and_repeatable(field: Any) -> None:
    claims = [field.run(Forge, draws=1, seed=seed).rival["bits"].tolist() for seed in (1, 1, 2)]
    assert claims[0] == claims[1]
    assert claims[0] != claims[2]


def test_nothing_to_forge_is_said(field: Any) -> None:
    assert "verifies nothing" in str(Forge(Config()).supports(field.task, Clean(MethodConfig())))
