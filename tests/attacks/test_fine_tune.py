"""Fine-tuning: which parts move, label sources, rounds, and the checkpoint rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range, SignMark
from torch import nn

from assay.attacks.fine_tune import Config, FineTune
from assay.attacks.parts.training import Factors, FineTuning, fine_tuning, from_scratch
from assay.methods.base import MethodConfig
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule


def moved(field: Range, model: nn.Module) -> set[str]:
    before, after = field.model.state_dict(), model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_zero_epochs_and_a_zero_rate_change_nothing(field: Range) -> None:
    assert moved(field, field.run(FineTune, epochs=0).surrogate) == set()
    still = moved(field, field.run(FineTune, epochs=1, lr=0.0).surrogate)
    assert not any("weight" in name or "bias" in name for name in still)


@pytest.mark.parametrize("mode", ["ftll", "rtll"])
def test_only_the_head_moves(field: Range, mode: Any) -> None:
    surrogate = field.run(FineTune, mode=mode, epochs=2, lr=0.05).surrogate
    assert surrogate is not None
    assert moved(field, surrogate) == {"fc2.weight", "fc2.bias"}
    assert all(parameter.requires_grad for parameter in surrogate.parameters())


def test_retraining_draws_a_new_head(field: Range) -> None:
    assert moved(field, field.run(FineTune, mode="rtal", epochs=0).surrogate) == {"fc2.weight", "fc2.bias"}
    heads = [field.run(FineTune, mode="rtll", epochs=0, seed=seed).surrogate.fc2.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_all_layers_move_and_the_loss_falls(field: Range) -> None:
    lab = field.lab("fine-tune")
    attack = FineTune(Config(epochs=4, lr=0.01))
    outcome = attack.run(field.victim("weights"), lab)
    assert outcome.surrogate is not None
    losses = [row["task"] for row in lab.curves]
    assert {"conv1.weight", "bn1.running_mean", "fc2.bias"} <= moved(field, outcome.surrogate)
    assert losses[-1] < losses[0]
    assert len(losses) == 4


@pytest.mark.parametrize("batches", [1, 2, 7])
def test_a_new_head_trains_alone_for_exactly_so_many_batches(field: Range, batches: int) -> None:
    lab = field.lab("fine-tune")
    config = Config(mode="rtal", lr=0.05, batch_size=16, warmup_head_batches=batches, epochs=0)
    surrogate = FineTune(config).run(field.victim("weights"), lab).surrogate
    assert surrogate is not None
    assert moved(field, surrogate) == {"fc2.weight", "fc2.bias"}
    assert lab.meter.steps == batches
    waited = field.run(FineTune, mode="rtal", lr=0.05, warmup_head_batches=1, epochs=1).surrogate
    assert {"conv1.weight", "bn1.running_mean"} <= moved(field, waited)


@pytest.mark.parametrize(("labels", "queries"), [("true", 0), ("victim_hard", 1), ("victim_soft", 1)])
def test_victim_labels_cost_one_query_per_sample(field: Range, labels: Any, queries: int) -> None:
    victim = field.victim("weights")
    field.run(FineTune, victim, epochs=1, labels=labels)
    party = field.splits.attacker
    assert victim.meter.queries == queries * (len(party.train) + len(party.held_out))


def test_soft_labels_leave_the_victim_where_it_is(field: Range) -> None:
    """The victim minimises cross-entropy to its own answers, so the first gradient is only that of batch statistics."""
    victim, model = field.victim("weights"), field.victim("weights").module()
    part = field.splits.attacker.train
    recipe = FineTuning(victim.probabilities(part.inputs))
    from assay.tasks.training.recipe import Batch

    batch = Batch(part.model_inputs(), part.labels, torch.arange(len(part)), len(part))
    recipe.loss(model, batch)["task"].backward()
    gradient = model.get_parameter("fc2.weight").grad
    assert gradient is not None
    assert gradient.abs().max() < 1e-6


def test_rounds_continue_and_are_probed(field: Range) -> None:
    lab = field.lab("fine-tune")
    seen: list[tuple[int, str]] = []
    lab.probe = lambda step, model: seen.append((step, field.digest(model)))
    outcome = FineTune(Config(trials=3, epochs_per_trial=1)).run(field.victim("weights"), lab)
    assert outcome.surrogate is not None
    assert [step for step, _ in seen] == [1, 2, 3]
    assert len({state for _, state in seen}) == 3
    assert seen[-1][1] == field.digest(outcome.surrogate)
    assert {row["curve"] for row in lab.curves} == {"trial-1", "trial-2", "trial-3"}


def test_the_best_held_out_epoch_is_kept(field: Range) -> None:
    lab = field.lab("fine-tune")
    states: list[str] = []
    lab.probe = lambda step, model: states.append(field.digest(model))
    outcome = FineTune(Config(epochs=4, lr=0.05)).run(field.victim("weights"), lab)
    assert outcome.surrogate is not None
    scores = [row["val_accuracy"] for row in lab.curves]
    assert field.digest(outcome.surrogate) == states[scores.index(max(scores))]


def test_divergence_is_an_outcome(field: Range) -> None:
    outcome = field.run(FineTune, epochs=3, lr=1e30)
    assert outcome.notes
    assert "diverged in epoch" in outcome.notes[0]


def test_schedules() -> None:
    task = Task(dataset="digits", model="lenet5", schedule=Schedule(epochs=10, lr=0.2, drops=(0.5,), batch_size=32))
    tuned = fine_tuning(task, 7, "last")
    assert (tuned.optimizer, tuned.momentum, tuned.weight_decay) == ("sgd", 0.9, 5e-4)
    assert tuned.lr == pytest.approx(0.02)
    assert (tuned.batch_size, tuned.drops, tuned.epochs) == (128, (), 7)
    scratch = from_scratch(task, 60)
    rates = [scratch.lr_at(epoch) for epoch in (0, 19, 20, 34, 35, 49, 50, 59)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])
    assert scratch.nesterov
    strong = FineTune(Config(lr=0.05, epochs=30, drop_every=5))._schedule(task, 30)
    assert [strong.lr_at(epoch) for epoch in (0, 4, 5, 29)] == pytest.approx([0.05, 0.05, 0.025, 0.05 / 32])


def test_epochs_keep_their_share_of_the_owners_training() -> None:
    def epochs(of: int, **config: Any) -> int:
        task = Task(dataset="cifar10", model="resnet18", schedule=Schedule(epochs=of))
        return FineTune(Config(**config))._epochs(task)

    assert epochs(20) == 12  # 100 of 160
    assert epochs(160) == 100
    assert epochs(20, paper="ingrain") == 3  # 25 of 500, at least 3
    assert (epochs(60, paper="wrt"), epochs(60, paper="wrt", mode="rtll")) == (5, 10)
    assert epochs(20, epochs=0) == 0


def test_groups_of_layers_have_their_own_rates(field: Range) -> None:
    """The judge: the optimiser's own parameter groups, over steps in which momentum and decay count."""
    part, factors, decay = field.splits.attacker.train, (0.0, 0.5, 3.0), 0.1
    ours, theirs = field.victim("weights").module(), field.victim("weights").module()
    names = [name for name, _ in theirs.named_parameters() if not name.startswith("fc2")]
    parts = [names[: len(names) // 2], names[len(names) // 2 :], ["fc2.weight", "fc2.bias"]]
    groups = [
        {"params": [theirs.get_parameter(name) for name in own], "lr": 0.05 * factor}
        for own, factor in zip(parts, factors, strict=True)
    ]
    judge = torch.optim.SGD(groups, 0.05, momentum=0.9, weight_decay=decay)
    optimizer = torch.optim.SGD(ours.parameters(), 0.05, momentum=0.9, weight_decay=decay)
    recipe = FineTuning(factors=Factors(ours, ours.get_submodule("fc2"), factors, decay))
    for _ in range(4):
        for model, one in ((ours, optimizer), (theirs, judge)):
            one.zero_grad()
            torch.nn.functional.cross_entropy(model(part.model_inputs()), part.labels).backward()
            if model is ours:
                recipe.on_gradients(model)
            one.step()
    for name, value in theirs.named_parameters():
        assert torch.allclose(value, ours.get_parameter(name), atol=1e-5), name
    assert not any(name in moved(field, ours) for name in parts[0])
    assert set(parts[1]) <= moved(field, ours)


def test_a_body_at_rate_zero_stays(field: Range) -> None:
    surrogate = field.run(FineTune, epochs=2, lr=0.05, lr_groups=(0.0, 0.0, 1.0)).surrogate
    assert not any(name.startswith(("conv", "fc1")) for name in moved(field, surrogate))
    assert {"fc2.weight", "bn1.running_mean"} <= moved(field, surrogate)


def test_nothing_to_train_on_is_said(field: Range) -> None:
    method = SignMark(MethodConfig())
    assert "no data" in str(FineTune(Config(split="none")).supports(field.task, method))
    assert FineTune(Config()).supports(field.task, method) is None
