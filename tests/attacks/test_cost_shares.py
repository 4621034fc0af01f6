"""What attacks that train cost: the work share that the protocol computes from samples and epochs, within a factor."""

from __future__ import annotations

from typing import Any

import pytest
from attack_range import Range

from assay.attacks.distill import Distill
from assay.attacks.extract import Extract
from assay.attacks.fine_tune import FineTune
from assay.attacks.prune_retrain import PruneRetrain
from assay.attacks.transfer import Transfer

CLOSE = 1.3


@pytest.mark.parametrize(
    ("attack", "config", "epochs", "passes"),
    [
        (FineTune, {"epochs": 3}, 3, 1.0),
        (FineTune, {"trials": 4}, 4, 1.0),
        (PruneRetrain, {"epochs": 3}, 3, 1.0),
        (Transfer, {"epochs": 3, "head": "reuse"}, 3, 0.75),  # a quarter of its own data validates
        (Distill, {"epochs": 5}, 5, 4 / 3),  # the teacher's forward pass beside the student's three
        (Distill, {"epochs": 5, "teacher_view": "fixed"}, 5, 1.0 + 1 / 15),
    ],
)
def test_work_is_what_samples_and_epochs_say(
    field: Range, attack: Any, config: dict[str, Any], epochs: int, passes: float
) -> None:
    lab, victim = field.lab(attack.key), field.victim(attack.access)
    attack(attack.Config(**config)).run(victim, lab)
    owner, own = len(field.splits.owner.train), len(field.splits.attacker.train)
    share = (lab.meter.work + victim.meter.work) / (3 * owner * field.task.schedule.epochs)
    expected = passes * own * epochs / (owner * field.task.schedule.epochs)
    assert expected / CLOSE < share < expected * CLOSE


@pytest.mark.parametrize("source", ["in_dist", "noise"])
def test_extraction_costs_its_queries_beside_training(field: Range, source: Any) -> None:
    lab, victim = field.lab("extract"), field.victim("labels")
    Extract(Extract.Config(source=source, budget=0.25)).run(victim, lab)
    owner, epochs = len(field.splits.owner.train), field.task.schedule.epochs
    share = (lab.meter.work + victim.meter.work) / (3 * owner * epochs)
    expected = 0.25 * (1 + 1 / (3 * epochs))
    assert expected / CLOSE < share < expected * CLOSE
