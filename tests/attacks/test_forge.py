"""Forging: the search over fresh keys, and the claim's form."""

from __future__ import annotations

from typing import Any

import torch

from attacks.forge import Config, Forge
from methods.base import Method, MethodConfig
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
    assert outcome.report == {"draws": 200, "draws_mean": sum(scores) / 200, "draws_best": max(scores)}


def test_draws_are_fresh_and_repeatable(field: Any) -> None:
    claims = [field.run(Forge, draws=1, seed=seed).rival["bits"].tolist() for seed in (1, 1, 2)]
    assert claims[0] == claims[1]
    assert claims[0] != claims[2]


def test_nothing_to_forge_is_said(field: Any) -> None:
    assert "verifies nothing" in str(Forge(Config()).supports(field.task, Clean(MethodConfig())))


def test_triggers_are_changed_until_they_verify(field: Any) -> None:
    method = field.TriggerMark(MethodConfig())
    victim = field.victim("weights", method)
    attack = Forge(Config(procedure="adversarial"))
    assert attack.supports(field.task, method) is None
    rival = attack.run(victim, field.splits.attacker, field.lab("forge")).rival
    honest = Method.forge(
        method, Suspect(field.model, "weights", "x"), field.task, field.splits.attacker, field.lab("forge"), 1
    )
    assert torch.equal(rival["labels"], honest["labels"])  # fixed before the network is seen
    assert float((rival["inputs"] - honest["inputs"]).abs().max()) <= 8 / 255 + 1e-6
    score = method.read(Suspect(field.model, "labels", "noise"), rival).score
    assert score > method.read(Suspect(field.model, "labels", "noise"), honest).score
    assert "has none" in str(attack.supports(field.task, field.SignMark(MethodConfig())))


def test_a_search_can_be_asked_of_any_method(field: Any) -> None:
    class Closed(field.SignMark):  # type: ignore[name-defined,misc]
        def forge(self, *_: Any) -> Any:
            raise AssertionError("the closed form was not asked for")

    outcome = field.run(Forge, field.victim("weights", Closed(MethodConfig())), procedure="search", draws=3)
    assert outcome.report["draws"] == 3


def test_keys_that_need_training_cannot_be_searched(field: Any) -> None:
    class Trained(field.SignMark):  # type: ignore[name-defined,misc]
        def thresholds(self, *_: Any) -> Any:
            raise AssertionError("a scheme of its own calibration")

    said = Forge(Config(procedure="search")).supports(field.task, Trained(MethodConfig()))
    assert "cannot be drawn without training" in str(said)
    assert Forge(Config()).supports(field.task, Trained(MethodConfig())) is None
