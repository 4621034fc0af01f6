"""Overwriting: the new claim, the modes, and a run that diverges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range, SignMark
from torch import nn

from assay.attacks.base import Outcome
from assay.attacks.overwrite import Config, EmbeddingAlone, Overwrite
from assay.methods.base import MethodConfig
from assay.methods.clean import Clean
from assay.methods.deepipr import DeepIPR
from assay.methods.embedding import Mark, verify
from assay.methods.rival import Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.errors import AssayError, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.training.recipe import Batch, Recipe, State, Terms
from assay.tasks.training.schedule import Schedule


def test_the_attackers_own_mark_verifies(field: Range) -> None:
    method = SignMark(MethodConfig())
    model, secret = field.marked(method)
    outcome = field.run(Overwrite, field.victim("weights", method, model), epochs=20, lr=1e-2)
    rival = verify(method, outcome.surrogate, outcome.rival)
    distance = float((outcome.rival["bits"] != secret["bits"]).float().mean())
    assert rival.accepted
    assert 0.3 < distance < 0.7


def test_zero_epochs_leave_the_model(field: Range) -> None:
    outcome = field.run(Overwrite, epochs=0)
    assert field.digest(outcome.surrogate) == field.digest(field.model)
    assert set(outcome.rival) == {"bits"}


@pytest.mark.parametrize(("kind", "lr"), [("SignMark", 1e-2), ("TriggerMark", 2e-3)])
def test_without_data_the_task_takes_no_part(field: Range, kind: str, lr: float) -> None:
    method = getattr(field, kind)(MethodConfig())
    lab = field.lab("overwrite", data=field.splits.attacker_view("none"))
    attack = Overwrite(Config(mode="without_data", epochs=8, lr=lr, stand_ins=320, split="none"))
    assert attack.supports(field.task, method) is None
    outcome = attack.run(field.victim("weights", method), lab)
    assert outcome.surrogate is not None
    assert outcome.rival is not None
    before, after = field.model.state_dict(), outcome.surrogate.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert verify(method, outcome.surrogate, outcome.rival).accepted
    terms = {name for row in lab.curves for name in row} - {"curve", "step", "lr"}
    if kind == "SignMark":
        assert terms == {"mark"}
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {"conv2.weight"}
    else:
        assert lab.meter.backward_samples == 8 * 5 * 20  # twenty keys in each of five steps, nothing else


def test_without_data_needs_a_term_of_the_methods_own(field: Range) -> None:
    class Owner(Recipe):
        def step(self, state: State, batch: Batch) -> Terms:
            return super().step(state, batch)

    with pytest.raises(UnsupportedModel, match="replaces the training step"):
        EmbeddingAlone(Owner())
    part = field.splits.attacker.train.take(slice(0, 4))
    batch = Batch(part.model_inputs(), part.labels, torch.arange(4), 4)
    with pytest.raises(UnsupportedModel, match="no term of its own"):
        EmbeddingAlone(Recipe()).loss(field.model, batch)


def test_passports_of_images_cannot_be_embedded_without_images(field: Range) -> None:
    def overwrite(**config: Any) -> Outcome:
        method = DeepIPR(DeepIPR.Config.model_validate({**DeepIPR.laptop, **config}))
        settings: dict[str, Any] = {"mode": "without_data", "split": "none", "epochs": 1, "stand_ins": 64}
        return field.run(Overwrite, field.victim("weights", method), **settings)

    with pytest.raises(UnsupportedModel, match="passports are made of held-out images, and none are left"):
        overwrite(key_type="shuffle")
    assert overwrite(key_type="random").rival is not None


def test_victim_labels_replace_the_true_ones(field: Range) -> None:
    seen: list[torch.Tensor] = []

    class Spying(Rival[RivalConfig]):
        def overwrite(self, victim: nn.Module, lab: Lab, schedule: Schedule) -> Mark:
            seen.append(lab.data.train.labels)
            return Mark(victim, {"bits": torch.zeros(64).bool()})

    class Spy(SignMark):
        rival = Spying

    victim = field.victim("weights", Spy(MethodConfig()))
    field.run(Overwrite, victim, mode="victim_labels")
    field.run(Overwrite, victim, mode="with_data")
    party = field.splits.attacker
    with torch.no_grad():
        answers = field.model(party.train.model_inputs()).argmax(1)
    assert torch.equal(seen[0], answers)
    assert torch.equal(seen[1], party.train.labels)


def test_divergence_leaves_what_was_stolen(field: Range) -> None:
    outcome = field.run(Overwrite, epochs=3, lr=1e30)
    assert field.digest(outcome.surrogate) == field.digest(field.model)
    assert outcome.rival is None
    assert "no second mark" in outcome.notes[0]


def test_schedule_is_the_owners_at_its_last_rate() -> None:
    owner = Schedule(epochs=60, lr=0.1, drops=(0.5, 0.75), optimizer="sgd")
    schedule = Overwrite(Config())._schedule(owner)
    assert (schedule.epochs, schedule.drops) == (20, ())
    assert schedule.lr == pytest.approx(1e-3)
    assert Overwrite(Config(epochs=30, lr=1e-4))._schedule(owner).epochs == 30


def test_pairs_that_make_no_sense_are_refused(field: Range) -> None:
    assert "embeds nothing" in str(Overwrite(Config()).supports(field.task, Clean(MethodConfig())))
    method = SignMark(MethodConfig())
    assert "no data" in str(Overwrite(Config(split="none")).supports(field.task, method))


def test_a_leaked_key_is_denied(field: Range) -> None:
    method = SignMark(MethodConfig())
    model, secret = field.marked(method)
    victim = field.victim("weights", method, model)
    victim.leaked = secret
    outcome = field.run(Overwrite, victim, mode="leaked_key", epochs=20, lr=1e-2)
    assert method.score(Suspect(outcome.surrogate, "weights", "signs"), secret)[0] < 0.2
    assert outcome.rival is None


def test_a_key_is_leaked_only_where_the_attack_says_so(field: Range) -> None:
    method = SignMark(MethodConfig())
    assert Overwrite(Config(mode="leaked_key")).needs(field.task, method).key
    assert not Overwrite(Config()).needs(field.task, method).key
    with pytest.raises(AssayError, match="none was handed over"):
        field.run(Overwrite, mode="leaked_key", epochs=1)
