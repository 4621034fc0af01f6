"""False claims: keys never repeat, nothing of the victim is seen, own models are independent of the accused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from assay.attacks.false_claim import FalseClaim
from assay.methods import METHODS
from assay.methods.base import Method, MethodConfig
from assay.tasks.task import resolve_task
from assay.tasks.training.trainer import predict


def test_keys_never_repeat_and_depend_on_the_seed_alone(field: Any) -> None:
    def claims(seed: int) -> list[bytes]:
        victim = field.victim("nothing")
        outcome = field.run(FalseClaim, victim, seed=seed, claims=120, accused=1, surrogate_epochs=0)
        return [claim["bits"].numpy().tobytes() for claim in outcome.claims]

    first = claims(7)
    assert len(first) == 120, "also where the number is no multiple of a chunk"
    assert len(set(first)) == 120
    assert claims(7) == first
    assert not set(claims(8)) & set(first)


def test_unmarked_models_and_their_heirs_are_accused(field: Any) -> None:
    suspects = field.run(FalseClaim, field.victim("nothing"), claims=1, accused=2, surrogate_epochs=2).suspects
    assert list(suspects) == ["unmarked-0", "unmarked-1", "surrogate-0", "surrogate-1"]
    test = field.splits.test
    for name in ("surrogate-0", "surrogate-1"):
        assert not suspects[name].training
        assert field.digest(suspects[name]) != field.digest(suspects["unmarked-0"])
    right = (predict(suspects["surrogate-0"], test.inputs).argmax(1) == test.labels).float().mean()
    assert right > 0.5, "processing keeps the model of use"


def test_an_adaptive_accuser_forges_on_its_own_models_alone(field: Any) -> None:
    seen = []

    class Watched(field.TriggerMark):  # type: ignore[name-defined,misc]
        def forge(self, victim: Any, *_: Any) -> Any:
            labels = victim.labels(field.splits.test.inputs[:20])
            seen.append(labels)
            return {"inputs": field.splits.test.inputs[:20], "labels": labels}

    victim = field.victim("nothing", Watched(MethodConfig()))
    settings = {"mode": "adaptive", "forgeries": 2, "own_models": 2, "accused": 1, "surrogate_epochs": 0}
    outcome = field.run(FalseClaim, victim, **settings)
    assert len(outcome.claims) == 2
    assert victim.meter.queries == 0, "the accused model is never asked"
    right = (seen[0] == field.splits.test.labels[:20]).float().mean()
    assert right > 0.5, "own models have learnt the task"
    assert torch.equal(seen[0], seen[1])


def test_whom_the_scheme_asks_for_a_key_is_not_accused() -> None:
    task = resolve_task("digits-cnn-mini", "smoke", {})
    roles = {key: FalseClaim(FalseClaim.Config(accused=2)).unmarked(task, made(key)) for key in ("adi", "fcw-direct")}
    assert roles["adi"] == ("null-0", "null-1"), "its keys are drawn without any model"
    assert roles["fcw-direct"] == (*roles["adi"], "reference-0", "reference-1", "reference-2")
    adaptive = FalseClaim(FalseClaim.Config(accused=2, mode="adaptive"))
    assert adaptive.unmarked(task, made("fcw-direct")) == roles["adi"], "it asks models of its own"


def made(key: str) -> Method:
    return METHODS[key](METHODS[key].Config())


@pytest.mark.parametrize("split", ["none"])
def test_without_data_the_cell_says_why(field: Any, split: Any) -> None:
    attack = FalseClaim(FalseClaim.Config(split=split))
    assert "data" in str(attack.supports(field.task, field.SignMark(MethodConfig())))


def test_a_scheme_whose_keys_need_training_is_left_to_the_adaptive_mode(field: Any) -> None:
    class Trained(field.SignMark):  # type: ignore[name-defined,misc]
        def thresholds(self, *_: Any) -> Any:
            raise NotImplementedError

    method = Trained(MethodConfig())
    assert "training" in str(FalseClaim(FalseClaim.Config()).supports(field.task, method))
    assert FalseClaim(FalseClaim.Config(mode="adaptive")).supports(field.task, method) is None
