"""The rival of a victim's method: the attacker's settings are checked when a sweep is planned."""

from __future__ import annotations

from typing import Any

import pytest
from attack_range import Range, SignMark
from pydantic import Field

from assay.attacks import ATTACKS
from assay.attacks.parts.rivals import RivalrousConfig, no_rival, rival_of
from assay.methods.base import MethodConfig, MethodNeeds
from assay.methods.greedy_residuals import GreedyResiduals, GreedyResidualsRival
from assay.methods.rival import Rival, RivalConfig
from assay.tasks.errors import BadInput
from assay.tasks.task import Task

RIVALROUS = [key for key, attack in sorted(ATTACKS.items()) if issubclass(attack.Config, RivalrousConfig)]


class Settings(RivalConfig):
    budget: float = Field(0.5, gt=0)
    rounds: int = 3


class Searching(Rival[Settings]):
    Config = Settings


@pytest.fixture
def method(field: Range) -> Any:
    class Searched(SignMark):
        rival = Searching

    return Searched(MethodConfig())


def test_settings_reach_the_methods_own_rival(method: Any) -> None:
    rival = rival_of(method, {"rounds": 7})
    assert type(rival) is Searching
    assert rival.method is method
    assert rival.config == Settings(budget=0.5, rounds=7)
    assert no_rival(method, {"rounds": 7}) is no_rival(method, {}) is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"budgt": 1.0}, "rival of signs: unknown field 'budgt'; did you mean 'budget'? (allowed: budget, rounds)"),
        ({"colour": 1}, "rival of signs: unknown field 'colour' (allowed: budget, rounds)"),
        ({"budget": 0.0}, "rival of signs: budget: found 0.0, must be greater than 0"),
        ({"rounds": "3"}, "rival of signs: rounds: found '3', must be a valid integer"),
    ],
)
def test_a_setting_that_does_not_fit_is_a_reason(method: Any, settings: dict[str, Any], reason: str) -> None:
    assert no_rival(method, settings) == reason
    with pytest.raises(BadInput) as raised:
        rival_of(method, settings)
    assert str(raised.value) == reason


def test_a_reason_is_one_line_however_many_settings_are_wrong(method: Any) -> None:
    reason = str(no_rival(method, {"budgt": 1.0, "round": 2}))
    assert "\n" not in reason
    assert "'budget'" in reason
    assert "'rounds'" in reason


def test_a_method_without_settings_of_a_rival_says_that_none_are_allowed(field: Range) -> None:
    assert type(rival_of(SignMark(MethodConfig()), {})) is Rival
    reason = no_rival(SignMark(MethodConfig()), {"budget": 1.0})
    assert reason == "rival of signs: unknown field 'budget' (allowed: none)"


@pytest.mark.parametrize("key", RIVALROUS)
def test_an_attack_with_a_rival_does_not_apply_where_a_setting_is_unknown(field: Range, method: Any, key: str) -> None:
    def said(**rival: Any) -> str | None:
        cls = ATTACKS[key]
        return cls(cls.Config.model_validate({"rival": rival})).supports(field.task, method)

    assert "did you mean 'budget'" in str(said(budgt=1.0))
    assert said(budget=1.0) is None


def test_attacks_by_somebody_who_knows_the_method() -> None:
    assert RIVALROUS == ["false-claim", "forge", "overwrite", "piracy"]


def test_a_registered_method_has_its_own_rival() -> None:
    rival = rival_of(GreedyResiduals(GreedyResiduals.Config()), {"budget": 0.25})
    assert type(rival) is GreedyResidualsRival
    assert rival.config.budget == 0.25


@pytest.mark.parametrize("key", ["overwrite", "piracy", "forge", "false-claim"])
def test_who_knows_the_method_draws_from_its_data_sets(field: Range, key: str) -> None:
    class Foreign(SignMark):
        def needs(self, task: Task) -> MethodNeeds:
            return MethodNeeds(datasets=("phrases",))

    attack = ATTACKS[key](ATTACKS[key].Config())
    assert attack.needs(field.task, Foreign(MethodConfig())).datasets == ("phrases",)
    assert attack.needs(field.task, SignMark(MethodConfig())).datasets == ()
