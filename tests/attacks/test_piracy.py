"""Piracy: the pirate's own key, its optimisers, the two curves, and what is left of a run that diverges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range, SignMark

from assay.attacks.parts.embedding import Clipped
from assay.attacks.parts.rivals import rival_of
from assay.attacks.piracy import Config, Piracy
from assay.methods.base import MethodConfig
from assay.methods.clean import Clean
from assay.methods.null_embedding import Config as NullConfig
from assay.methods.null_embedding import NullEmbedding
from assay.methods.suspect import Suspect
from assay.tasks.training.recipe import Batch, Recipe
from assay.tasks.training.schedule import Schedule


def test_both_marks_are_watched_epoch_by_epoch(field: Range) -> None:
    method = SignMark(MethodConfig())
    model, secret = field.marked(method)
    seen: list[int] = []
    pir5k = field.splits.attacker_view("pir5k")
    lab = field.lab("piracy", data=pir5k, probe=lambda step, model: seen.append(step))
    attack = Piracy(Config(epochs=6, optimizer="adam", lr=1e-2, post_finetune=2))
    outcome = attack.run(field.victim("weights", method, model), lab)
    assert outcome.surrogate is not None
    assert outcome.rival is not None
    curve = [row for row in lab.curves if row["curve"] == "pirate"]
    assert seen == [row["step"] for row in curve] == list(range(1, 9))
    assert curve[-1]["rival"] == method.score(Suspect(outcome.surrogate, "weights", "signs"), outcome.rival)[0]
    assert curve[5]["rival"] > curve[0]["rival"]
    assert all(0 <= row["val_accuracy"] <= 1 for row in curve)
    distance = float((outcome.rival["bits"] != secret["bits"]).float().mean())
    assert 0.3 < distance < 0.7  # a key of its own


def test_a_pirate_who_steals_nothing_trains_from_scratch(field: Range) -> None:
    stolen, own, other = (
        field.run(Piracy, epochs=0, seed=seed, start=start).surrogate
        for seed, start in ((1, "victim"), (1, "scratch"), (2, "scratch"))
    )
    assert field.digest(stolen) == field.digest(field.model)
    assert len({field.digest(model) for model in (stolen, own, other)}) == 3


def test_another_attack_seed_is_another_pirate(field: Range) -> None:
    keys = [field.run(Piracy, epochs=0, seed=seed).rival["bits"].tolist() for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_the_default_data_are_the_owners(field: Range) -> None:
    assert Config().split == "pir5k"
    assert field.splits.attacker_view(Config().split).overlaps_owner


@pytest.mark.parametrize(
    ("settings", "optimizer", "lr", "momentum"),
    [
        ({}, "sgd", 1e-3, 0.9),
        ({"optimizer": "sgd"}, "sgd", 1e-3, 0.0),
        ({"optimizer": "sgd", "lr": 0.01}, "sgd", 0.01, 0.0),
        ({"optimizer": "adam"}, "adam", 1e-3, 0.9),
        ({"optimizer": "stable", "lr": "last"}, "adam", 1e-3, 0.9),
    ],
)
def test_schedules(settings: dict[str, Any], optimizer: str, lr: float, momentum: float) -> None:
    owner = Schedule(epochs=60, lr=0.1, drops=(0.5, 0.75), optimizer="sgd", batch_size=32)
    found = Piracy(Config(**settings))._schedule(owner)
    assert (found.epochs, found.optimizer, found.momentum, found.batch_size) == (10, optimizer, momentum, 32)
    assert found.lr == pytest.approx(lr)
    assert found.lr_at(9) == found.lr


def test_the_attacker_decides_whether_gradients_are_clipped(field: Range) -> None:
    """The owner's bound does not bind the attacker; `stable` clips whatever the method does."""
    bound = NullEmbedding(NullConfig(grad_clip=1.0))
    assert rival_of(bound, {}).unbounded().config.grad_clip is None
    assert bound.config.grad_clip == 1.0
    plain = SignMark(MethodConfig())
    assert rival_of(plain, {}).unbounded() is plain

    network = field.task.build("clipped")
    part = field.splits.attacker.train.take(slice(0, 8))
    batch = Batch(part.model_inputs(), part.labels, torch.arange(8), 8)
    recipe = Clipped(Recipe(), 1e-3)
    recipe.loss(network, batch)["task"].backward()
    recipe.on_gradients(network)
    norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_only_the_main_run_is_varied(field: Range) -> None:
    wrapped: list[Recipe] = []

    def vary(recipe: Recipe) -> Recipe:
        wrapped.append(recipe)
        return recipe

    lab = field.lab("piracy", vary=vary)
    data, schedule = field.splits.attacker.train, Schedule(epochs=0)
    lab.fit(field.task.build("a"), data, schedule=schedule, name="detector")
    assert not wrapped
    lab.fit(field.task.build("a"), data, schedule=schedule)
    assert len(wrapped) == 1


def test_divergence_leaves_what_was_stolen(field: Range) -> None:
    outcome = field.run(Piracy, epochs=3, lr=1e30)
    assert field.digest(outcome.surrogate) == field.digest(field.model)
    assert outcome.rival is None
    assert "no pirate mark" in outcome.notes[0]


def test_pairs_that_make_no_sense_are_refused(field: Range) -> None:
    assert "embeds nothing" in str(Piracy(Config()).supports(field.task, Clean(MethodConfig())))
    assert "no data" in str(Piracy(Config(split="none")).supports(field.task, SignMark(MethodConfig())))
