"""Pruning with re-training: what pruning removed stays removed, the rest recovers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range, SignMark
from pydantic import ValidationError

from assay.attacks.neuron_prune import NeuronPrune
from assay.attacks.prune import Prune
from assay.attacks.prune_retrain import Config, PruneRetrain
from assay.methods.base import MethodConfig
from assay.tasks.training.trainer import evaluate

WEIGHTS = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")


def test_without_epochs_it_is_pruning(field: Range) -> None:
    for scope in ("global", "layer"):
        pruned = field.run(Prune, ratio=0.6, scope=scope)
        retrained = field.run(PruneRetrain, ratio=0.6, scope=scope, epochs=0)
        assert field.digest(pruned.surrogate) == field.digest(retrained.surrogate)


@pytest.mark.parametrize("scope", ["global", "all", "wrt"])
def test_zeros_stay_and_the_rest_trains(field: Range, scope: Any) -> None:
    pruned = field.run(Prune, ratio=0.8, scope=scope).surrogate
    trained = field.run(PruneRetrain, ratio=0.8, scope=scope, epochs=3, lr=0.05).surrogate
    for name, value in pruned.named_parameters():
        after = trained.get_parameter(name)
        if scope != "global" or name in WEIGHTS:
            assert torch.equal(after == 0, value == 0), name
        if name in WEIGHTS:
            assert not torch.equal(after, value), name


def test_without_the_mask_pruned_weights_come_back(field: Range) -> None:
    model = field.run(PruneRetrain, ratio=0.8, keep_mask=False, epochs=1, lr=0.05).surrogate
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in WEIGHTS)
    assert zeros < 0.5 * sum(model.get_parameter(name).numel() for name in WEIGHTS)


def test_neurons_stay_silent_too(field: Range) -> None:
    pruned = field.run(NeuronPrune, ratio=0.5, scope="layer").surrogate
    assert field.digest(pruned) == field.digest(
        field.run(PruneRetrain, unit="neurons", ratio=0.5, scope="layer", epochs=0).surrogate
    )
    trained = field.run(PruneRetrain, unit="neurons", ratio=0.5, scope="layer", epochs=3, lr=0.05).surrogate
    for name in ("conv1.weight", "conv2.weight", "bn1.weight", "bn2.bias", "fc1.weight", "fc1.bias"):
        gone = (
            pruned.get_parameter(name).flatten(1).abs().sum(1) == 0
            if "fc1.w" in name or "conv" in name
            else (pruned.get_parameter(name) == 0)
        )
        assert gone.any(), name
        assert not trained.get_parameter(name)[gone].any(), name
        assert not torch.equal(trained.get_parameter(name)[~gone], pruned.get_parameter(name)[~gone]), name
    with pytest.raises(ValidationError, match="unit neurons takes"):
        Config(unit="neurons", scope="all")


def test_training_recovers_what_pruning_cost(field: Range) -> None:
    held_out = field.splits.test
    pruned = evaluate(field.run(Prune, ratio=0.97).surrogate, held_out)
    assert evaluate(field.run(PruneRetrain, ratio=0.97, epochs=10, lr=0.05).surrogate, held_out) > pruned + 0.1


def test_the_curve_opens_with_the_pruned_network(field: Range) -> None:
    lab = field.lab("prune-retrain")
    seen: list[tuple[int, str]] = []
    lab.probe = lambda step, model: seen.append((step, field.digest(model)))
    PruneRetrain(Config(ratio=0.5, epochs=2)).run(field.victim("weights"), lab)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] == field.digest(field.run(Prune, ratio=0.5).surrogate)
    shares = [row["share"] for row in lab.curves if row["curve"] == "sparsity"]
    assert len(shares) == 4
    assert all(0 < share < 1 for share in shares)


def test_nothing_to_train_on_is_said(field: Range) -> None:
    assert "no data" in str(PruneRetrain(Config(split="none")).supports(field.task, SignMark(MethodConfig())))
