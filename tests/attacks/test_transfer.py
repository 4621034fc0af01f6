"""Transfer: what trains, which head, which data; and how the owner gets back to a network that it can query."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from attack_range import Range, SignMark, TriggerMark
from pydantic import ValidationError
from torch import nn

from assay.attacks.parts.heads import Part
from assay.attacks.parts.recovery import recovered
from assay.attacks.transfer import Config, Transfer
from assay.methods.base import MethodConfig
from assay.tasks.data.splits import Labelled
from assay.tasks.lab import Lab
from assay.tasks.streams import stream
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import evaluate, predict


def foreign(classes: int, *shape: int) -> tuple[Labelled, Labelled]:
    """Return another task whose classes can be told by their brightness: training and test part."""
    draws, parts = stream("foreign"), []
    for count in (20, 6):
        labels = torch.arange(count * classes) % classes
        level = (labels.float() + 0.5) / classes * 200
        pixels = level.view(-1, 1, 1, 1) + 40 * torch.rand(len(labels), *shape, generator=draws)
        parts.append(Labelled(pixels.to(torch.uint8), labels))
    return parts[0], parts[1]


def transfer(field: Range, others: dict[str, Any] | None = None, **config: Any) -> tuple[Any, Any]:
    lab = field.lab("transfer")
    lab.other = lambda key: (others or {})[key]
    return Transfer(Config(**config)).run(field.victim("weights"), lab), lab


def owner(field: Range) -> Lab:
    lab: Lab = field.lab("transfer", role="owner", data=field.splits.owner)
    return lab


def moved(field: Range, model: nn.Module) -> set[str]:
    before, after = field.model.state_dict(), model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_without_training_the_original_head_gives_the_victim(field: Range) -> None:
    outcome, _ = transfer(field, epochs=0, recovery="original_head")
    assert outcome.structure == "changed"
    assert outcome.surrogate.fc2.out_features == 5  # half of the digits
    model = recovered(outcome.surrogate, field.model, outcome.adapted, owner(field))
    assert field.digest(model) == field.digest(field.model)


@pytest.mark.parametrize(
    ("mode", "free"), [("added", {"fc2"}), ("last_two_dense", {"fc1", "fc2"}), ("all_dense", {"fc1", "fc2"})]
)
@pytest.mark.parametrize("head", ["reuse", "replace"])
def test_frozen_layers_stay(field: Range, mode: Any, free: set[str], head: Any) -> None:
    outcome, _ = transfer(field, epochs=2, mode=mode, head=head, lr=0.05, recovery="original_head")
    assert {*outcome.adapted.trained} == free
    model = recovered(outcome.surrogate, field.model, outcome.adapted, owner(field))
    changed = {name.split(".")[0] for name in moved(field, model)}
    assert changed == free - {"fc2"}
    assert all(parameter.requires_grad for parameter in outcome.surrogate.parameters())


def test_everything_trains_and_the_other_task_is_learnt(field: Range) -> None:
    outcome, _ = transfer(field, epochs=25, lr=0.02, momentum=0.9)
    assert {"conv1.weight", "bn1.running_mean"} <= moved(field, recovered_body(field, outcome))
    assert evaluate(outcome.surrogate, outcome.adapted.test) > 0.8
    assert outcome.adapted.test.labels.max() == 4


def recovered_body(field: Range, outcome: Any) -> nn.Module:
    from assay.attacks.parts.heads import with_head

    return with_head(outcome.surrogate, "fc2", field.model.fc2)


def test_another_data_set_in_another_shape(field: Range) -> None:
    others = {"cifar10": foreign(10, 3, 32, 32)}
    outcome, _ = transfer(field, others, target="cifar10", classes=3, epochs=8, lr=0.02, momentum=0.9)
    assert outcome.surrogate.fc2.out_features == 3
    assert tuple(outcome.adapted.test.inputs.shape[1:]) == (1, 28, 28)
    assert len(outcome.adapted.test) == 18
    assert evaluate(outcome.surrogate, outcome.adapted.test) > 0.6


def test_a_kept_head_gets_as_many_classes_as_it_has(field: Range) -> None:
    others = {"gtsrb": foreign(43, 3, 32, 32)}
    outcome, _ = transfer(field, others, target="gtsrb", head="reuse", epochs=0)
    assert outcome.structure == "same"
    assert field.digest(outcome.surrogate) == field.digest(field.model)
    assert sorted(outcome.adapted.test.labels.unique().tolist()) == list(range(10))
    assert outcome.adapted.recovery == "none"


def test_the_classes_are_drawn_by_the_attacks_seed(field: Range) -> None:
    tests = []
    for seed in (1, 1, 2):
        lab = field.lab("transfer", seed)
        outcome = Transfer(Config(epochs=0)).run(field.victim("weights"), lab)
        assert outcome.adapted is not None
        tests.append(outcome.adapted.test)
    assert torch.equal(tests[0].inputs, tests[1].inputs)
    assert tests[0].inputs.shape != tests[2].inputs.shape or not torch.equal(tests[0].inputs, tests[2].inputs)


def test_rounds_are_probed_under_the_old_head(field: Range) -> None:
    lab = field.lab("transfer")
    seen: list[tuple[int, int]] = []
    lab.probe = lambda step, model: seen.append((step, predict(model, field.splits.test.inputs[:1]).shape[1]))
    Transfer(Config(trials=3, lr=1e-4)).run(field.victim("weights"), lab)
    assert seen == [(1, 10), (2, 10), (3, 10)]
    assert {row["curve"] for row in lab.curves} == {"trial-1", "trial-2", "trial-3"}


@pytest.mark.parametrize("mode", ["added", "all"])
def test_a_new_head_is_trained_with_the_same_layers_free(field: Range, mode: Any) -> None:
    settings: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "recovery": "retrain_head", "recovery_epochs": 8}
    outcome, _ = transfer(field, epochs=1, mode=mode, **settings)
    before = field.digest(outcome.surrogate)
    model = recovered(outcome.surrogate, field.model, outcome.adapted, owner(field))
    assert field.digest(outcome.surrogate) == before
    assert len(model.get_parameter("fc2.weight")) == 10
    assert evaluate(model, field.splits.test) > 0.6
    kept = torch.equal(model.get_parameter("conv1.weight"), outcome.surrogate.conv1.weight)
    assert kept == (mode == "added")
    assert outcome.adapted.schedule.epochs == 8


def test_the_way_back_follows_what_the_verifier_reads(field: Range) -> None:
    weights, labels = SignMark(MethodConfig()), TriggerMark(MethodConfig())
    assert Transfer(Config())._recovery(weights) == "none"
    assert Transfer(Config())._recovery(labels) == "original_head"
    assert Transfer(Config(head="reuse"))._recovery(labels) == "none"
    assert Transfer(Config(recovery="retrain_head"))._recovery(weights) == "retrain_head"


def test_one_dense_layer_leaves_nothing_between(field: Range) -> None:
    from assay.attacks.parts.heads import trained_layers
    from assay.tasks.errors import UnsupportedModel

    residual = Task(dataset="digits", model="resnet8").build("residual")
    assert trained_layers(residual, "added") == ("fc",)
    with pytest.raises(UnsupportedModel, match="one dense layer"):
        trained_layers(residual, "all_dense")


@pytest.mark.parametrize(
    ("model", "single"), [("resnet8", True), ("mobilenetv2", True), ("textcnn", True), ("lenet5", False)]
)
def test_a_mode_that_repeats_another_is_known_when_the_sweep_is_planned(field: Range, model: str, single: bool) -> None:
    method = SignMark(MethodConfig())
    task = Task(dataset="trec" if model == "textcnn" else "digits", model=model)
    said = {mode: Transfer(Config(mode=mode, target="own")).supports(task, method) for mode in get_args(Part)}
    assert said["added"] is None
    assert said["all"] is None
    for mode in ("last_two_dense", "all_dense"):
        assert (said[mode] is not None) == single
        assert not single or f"{model} has one dense layer, so mode {mode}" in str(said[mode])


def test_the_papers_pairs_and_their_stand_ins(field: Range) -> None:
    method = SignMark(MethodConfig())

    def target(dataset: str, **config: Any) -> tuple[str, ...]:
        needed = Transfer(Config(**config)).needs(Task(dataset=dataset, model="lenet5"), method)
        assert (needed.twin, needed.data, needed.access) == (True, True, "weights")
        return needed.datasets

    assert target("cifar10") == ("cifar100",)
    assert target("cifar10", stand_in=True) == ("tiny_imagenet_32",)
    assert target("gtsrb") == ("lisa",)
    assert target("gtsrb", stand_in=True) == ()  # a split of the attacker's own data
    assert target("mnist") == ("gtsrb",)
    assert target("digits") == ()


def test_reasons(field: Range) -> None:
    method = SignMark(MethodConfig())

    def reason(**config: Any) -> str | None:
        return Transfer(Config(**config)).supports(field.task, method)

    assert "no data" in str(reason(split="none"))
    assert reason(split="none", target="mnist") is None
    assert "holds images of digits" in str(reason(target="digits"))
    assert "has 10 classes" in str(reason(target="mnist", classes=11))
    with pytest.raises(ValidationError, match="did you mean 'mnist'"):
        Config(target="mnits")


def test_epochs_keep_their_share_of_the_owners_training() -> None:
    task = Task(dataset="gtsrb", model="lenet5", schedule=Schedule(epochs=12))
    assert Transfer(Config())._epochs(task) == 20  # 200 of 120
    assert Transfer(Config(paper="greedy_residuals"))._epochs(task) == 6  # 100 of 200
