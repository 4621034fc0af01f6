"""False claims: keys never repeat, nothing of the victim is seen, own models are independent of the accused."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from attack_range import Range, SignMark, TriggerMark

from assay.attacks.false_claim import FalseClaim
from assay.methods import METHODS
from assay.methods.base import MethodConfig, Secret
from assay.methods.rival import Forgery, Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.lab import Lab
from assay.tasks.task import resolve_task
from assay.tasks.training.trainer import predict


def test_keys_never_repeat_and_depend_on_the_seed_alone(field: Range) -> None:
    def claims(seed: int) -> list[bytes]:
        victim = field.victim("nothing")
        outcome = field.run(FalseClaim, victim, seed=seed, claims=120, accused=1, surrogate_epochs=0)
        return [claim["bits"].numpy().tobytes() for claim in outcome.claims.evidence]

    first = claims(7)
    assert len(first) == 120
    assert len(set(first)) == 120
    assert claims(7) == first
    assert not set(claims(8)) & set(first)


def test_unmarked_models_and_their_heirs_are_accused(field: Range) -> None:
    outcome = field.run(FalseClaim, field.victim("nothing"), claims=1, accused=2, surrogate_epochs=2)
    suspects = outcome.checked("verification").claims.suspects
    assert list(suspects) == ["unmarked-0", "unmarked-1", "surrogate-0", "surrogate-1"]
    test = field.splits.test
    for name in ("surrogate-0", "surrogate-1"):
        assert not suspects[name].training
        assert field.digest(suspects[name]) != field.digest(suspects["unmarked-0"])
    right = (predict(suspects["surrogate-0"], test.inputs).argmax(1) == test.labels).float().mean()
    assert right > 0.5, "processing keeps the model of use"


def test_an_accuser_who_starts_again_accuses_the_same_models(field: Range) -> None:
    """A stage that is killed after training runs again in the same folder, where the rolling checkpoints lie."""
    ends = []
    for _ in range(2):
        lab = field.lab("false-claim")
        lab.scratch = field.scratch / "again"
        attack = FalseClaim(FalseClaim.Config(claims=1, accused=1, surrogate_epochs=2))
        claims = attack.run(field.victim("nothing"), lab).claims
        assert claims is not None
        ends.append(({name: field.digest(model) for name, model in claims.suspects.items()}, lab.meter.costs()))
    assert ends[0] == ends[1]
    assert len(ends[0][0]) == 3
    assert ends[0][1]["backward_samples"] > 0


def test_an_adaptive_accuser_forges_on_its_own_models_alone(field: Range) -> None:
    seen = []

    class Watching(Rival[RivalConfig]):
        def forge(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
            assert (forgery.procedure, forgery.draws, forgery.leaked, lab.role) == ("own", 4, None, "attacker")
            labels = victim.labels(field.splits.test.inputs[:20])
            seen.append(labels)
            return {"inputs": field.splits.test.inputs[:20], "labels": labels}

    class Watched(TriggerMark):
        rival = Watching

    victim = field.victim("nothing", Watched(MethodConfig()))
    settings: dict[str, Any] = {
        "mode": "adaptive",
        "forgeries": 2,
        "own_models": 2,
        "accused": 1,
        "surrogate_epochs": 0,
        "draws": 4,
    }
    outcome = field.run(FalseClaim, victim, **settings)
    assert len(outcome.claims.evidence) == 2
    assert victim.meter.queries == 0, "the accused model is never asked"
    right = (seen[0] == field.splits.test.labels[:20]).float().mean()
    assert right > 0.5, "own models have learnt the task"
    assert torch.equal(seen[0], seen[1])


def test_whom_the_scheme_asks_for_a_key_is_not_accused() -> None:
    task = resolve_task("digits-cnn-mini", "smoke", {})

    def asked(key: str, mode: Literal["random", "adaptive"]) -> tuple[str, ...]:
        method = METHODS[key](METHODS[key].Config())
        return FalseClaim(FalseClaim.Config(accused=2, mode=mode)).needs(task, method).unmarked

    accused = ("null-0", "null-1")
    assert asked("adi", "random")[:2] == asked("fcw-direct", "random")[:2] == accused
    needed = METHODS["fcw-direct"](METHODS["fcw-direct"].Config()).needs(task).unmarked
    assert set(asked("fcw-direct", "random")) == {*accused, *needed}
    assert len([role for role in needed if role.startswith("reference-")]) > 1
    assert not any(role.startswith("reference-") for role in asked("adi", "random")), "its keys ask no model"
    assert asked("fcw-direct", "adaptive") == accused, "it asks models of its own"


@pytest.mark.parametrize("split", ["none"])
def test_without_data_the_cell_says_why(field: Range, split: Any) -> None:
    attack = FalseClaim(FalseClaim.Config(split=split))
    assert "data" in str(attack.supports(field.task, SignMark(MethodConfig())))


def test_a_scheme_whose_keys_need_training_is_left_to_the_adaptive_mode(field: Range) -> None:
    class Trained(SignMark):
        shares_null = False

    method = Trained(MethodConfig())
    assert "training" in str(FalseClaim(FalseClaim.Config()).supports(field.task, method))
    assert FalseClaim(FalseClaim.Config(mode="adaptive")).supports(field.task, method) is None
