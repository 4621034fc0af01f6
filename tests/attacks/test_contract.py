"""What holds for every registered attack: the victim stays as it was, the same seed gives the same result."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch

from assay import attacks
from assay.attacks import ATTACKS
from assay.methods.base import MethodConfig
from assay.methods.embedding import verify
from assay.methods.suspect import Suspect
from assay.tasks.errors import AccessDenied
from assay.tasks.training.trainer import predict

KEYS = sorted(ATTACKS)
# Shorter runs where the laptop profile would still be long for a test.
SHORT: dict[str, dict[str, Any]] = {
    "distill": {"epochs": 2},
    "false-claim": {"claims": 20},
    "forge": {"draws": 5},
    "neural-cleanse": {"passes": 2},
}


def settings(key: str) -> dict[str, Any]:
    return {**ATTACKS[key].laptop, **SHORT.get(key, {})}


@pytest.mark.parametrize("key", KEYS)
def test_the_victim_stays_and_the_seed_decides(field: Any, key: str) -> None:
    attack = ATTACKS[key]
    before = field.digest(field.model)
    torch.manual_seed(1)
    first = field.run(attack, **settings(key))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = field.run(attack, **settings(key))
    assert torch.equal(torch.get_rng_state(), state)
    assert field.digest(field.model) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in field.model.parameters())
    for one, two in ((first.surrogate, second.surrogate),):
        assert (one is None) == (two is None)
        assert one is None or (field.digest(one) == field.digest(two) and one is not field.model)
    assert str(first.rival) == str(second.rival)


@pytest.mark.parametrize("key", KEYS)
def test_the_declared_access_is_enough_and_not_too_much(field: Any, key: str) -> None:
    attack = ATTACKS[key]
    less = {"weights": "logits", "logits": "labels", "labels": "nothing"}.get(attack.needs)
    if less is None:
        pytest.skip("it looks at no victim")
    with pytest.raises(AccessDenied):
        field.run(attack, field.victim(less), **settings(key))


@pytest.mark.parametrize("key", [key for key in KEYS if ATTACKS[key].identity is not None])
def test_identity_settings_give_the_victims_answers(field: Any, key: str) -> None:
    surrogate = field.run(ATTACKS[key], **{**settings(key), **(ATTACKS[key].identity or {})}).surrogate
    inputs = field.splits.test.inputs
    assert torch.allclose(predict(surrogate, inputs), predict(field.model, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_a_surrogate_is_in_eval_mode_and_loads_under_plain_names(field: Any, key: str) -> None:
    outcome = field.run(ATTACKS[key], **settings(key))
    if outcome.surrogate is None:
        asked = outcome.claims or ATTACKS[key](ATTACKS[key].Config(**settings(key))).peers(field.task)
        assert outcome.rival is not None or outcome.report or asked
        return
    assert not outcome.surrogate.training
    if outcome.structure == "same":
        field.task.build("fresh").load_state_dict(outcome.surrogate.state_dict())


@pytest.mark.parametrize("key", KEYS)
def test_names_agree_and_the_text_is_complete(key: str) -> None:
    attack = ATTACKS[key]
    module = importlib.import_module(attack.__module__)
    assert attack.key == key
    assert module.__name__ == ("assay.attacks." + ("none" if key == "none" else key.replace("-", "_")))
    for part in ("Paper:", "Access:", "Differs from the paper:"):
        assert part in str(module.__doc__), part
    assert attack.Config(**attack.laptop)


def test_every_module_is_registered() -> None:
    found = {info.name for info in pkgutil.iter_modules([str(Path(attacks.__file__).parent)]) if not info.ispkg}
    assert found - {"base", "protocol"} == {key.replace("-", "_") for key in ATTACKS}


@pytest.mark.parametrize("key", KEYS)
def test_a_poisoned_method_shows_that_no_secret_is_reached(field: Any, key: str) -> None:
    """An attack may embed or forge through the method, never verify an owner's mark: there is none to verify."""

    class Poisoned(field.SignMark):  # type: ignore[name-defined,misc]
        def verify(self, *_: Any) -> Any:
            raise AssertionError("an attack verified a mark")

        def thresholds(self, *_: Any) -> Any:
            raise AssertionError("an attack asked for thresholds")

    victim = field.victim(ATTACKS[key].needs, Poisoned(MethodConfig()))
    field.run(ATTACKS[key], victim, **settings(key))


@pytest.mark.parametrize("key", [key for key in KEYS if ATTACKS[key].needs_data])
def test_an_attack_that_starts_again_ends_alike_and_reports_the_same_costs(field: Any, key: str) -> None:
    """A stage killed after training runs again in the same folder: the rolling checkpoint carries it."""
    attack = ATTACKS[key](ATTACKS[key].Config(**settings(key)))
    ends = []
    for _ in range(2):
        victim, lab = field.victim(attack.needs), field.lab(key)
        lab.scratch = field.scratch / "again"
        outcome = attack.run(victim, lab)
        left = {"surrogate": outcome.surrogate, **outcome.suspects}
        ends.append(
            (
                {name: field.digest(model) for name, model in left.items() if model is not None},
                lab.meter.as_dict(),
                victim.meter.as_dict(),
            )
        )
    assert ends[0] == ends[1]
    assert ends[0][1]["backward_samples"] > 0


@pytest.mark.parametrize("key", ["distill", "extract", "fine-tune", "overwrite", "piracy", "prune-retrain", "transfer"])
def test_every_epoch_leaves_one_point_of_history(field: Any, key: str) -> None:
    attack, lab = ATTACKS[key], field.lab(key)
    one = attack(attack.Config(**{**settings(key), "epochs": 3}))
    one.run(field.victim(attack.needs), field.splits.attacker_view(one.config.split), lab)
    points = [row for row in lab.curves if row["curve"] == "train"]
    assert [point["step"] for point in points] == [1, 2, 3]
    for point in points:
        assert point.keys() - {"curve", "step", "lr", "val_accuracy"}, "no term of the loss"
        assert point["lr"] > 0
    assert lab.meter.unique_samples > 0
    assert lab.meter.steps >= 3


@pytest.mark.parametrize("key", KEYS)
def test_no_attack_makes_an_unmarked_network_verify(field: Any, key: str) -> None:
    outcome = field.run(ATTACKS[key], **settings(key))
    for model in (outcome.surrogate, *outcome.suspects.values()):
        for method in (field.SignMark(MethodConfig()), field.TriggerMark(MethodConfig())):
            if model is None:
                continue
            verdict = method.verify(
                Suspect(model, method.access, key), method.draw(field.task, field.splits.owner, field.lab("owner", 1))
            )
            assert not verdict.accepted
