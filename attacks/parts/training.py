"""What attacks that train have in common: schedules, label sources, frozen bodies, probes.

Two schedules recur in the literature: fine-tuning (`fine_tuning`) and training from scratch (`from_scratch`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.attacks.base import AttackConfig, Victim
from assay.tasks.data.splits import Labelled, Party
from assay.tasks.lab import Lab
from assay.tasks.streams import global_stream
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.schedules import scaled_epochs, victim_epochs
from assay.tasks.training.trainer import Observer, Trained

Labels = Literal["true", "victim_hard", "victim_soft"]
LearningRate = float | Literal["last"]
"""A rate, or `last`: the one with which the owner's training ended."""


def needs_samples(config: AttackConfig) -> str | None:
    """Return why an attack that trains cannot run under its split mode, or None."""
    if config.split in ("none", "ood"):
        return f"it trains on samples of the task, and split mode {config.split!r} leaves no data of it"
    return None


def share_of_epochs(task: Task, paper: str, epochs: int) -> int:
    """Return how many epochs an attack trains here: the same share of the victim's epochs as in the paper.

    Args:
        task: its schedule gives the victim's epochs here.
        paper: key of the paper, which gives the victim's epochs there.
        epochs: the attack's epochs in the paper. See docs/protocol.md for budgets.
    """
    return scaled_epochs(epochs, victim_epochs(paper, task.dataset, task.model), task.schedule.epochs)


def learning_rate(lr: LearningRate, owner: Schedule) -> float:
    """Resolve `last` against the owner's schedule."""
    return owner.last_lr if lr == "last" else lr


def fine_tuning(task: Task, epochs: int, lr: LearningRate, **changes: Any) -> Schedule:
    """Return the fine-tuning schedule: SGD at a constant rate, momentum 0.9, weight decay 5e-4, batches of 128.

    Augmentation is the task's. `changes` override single fields.
    """
    own = task.schedule
    recipe = {
        "epochs": epochs, "batch_size": 128, "optimizer": "sgd", "lr": learning_rate(lr, own), "momentum": 0.9,
        "nesterov": False, "weight_decay": 5e-4,
    }  # fmt: skip
    schedule: Schedule = own.steady(**{**recipe, **changes})
    return schedule


def from_scratch(task: Task, epochs: int) -> Schedule:
    """Return the schedule of the SoK toolkit (Lukas et al.) for training from scratch.

    SGD with Nesterov momentum 0.9 at rate 0.1, which drops to a fifth after 33 %, 58 % and 83 % of the epochs; weight
    decay 5e-4, batches of 64.
    """
    schedule: Schedule = task.schedule.steady(
        epochs=epochs, batch_size=64, optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4,
        drops=(20 / 60, 35 / 60, 50 / 60), drop_factor=0.2,
    )  # fmt: skip
    return schedule


def relabelled(data: Party, victim: Victim, labels: Labels) -> tuple[Party, Tensor | None]:
    """Return the attacker's data under a label source, and soft targets (N, K) for its training part or None.

    The victim answers once, on inputs as stored (not augmented). Without true labels the held-out part carries the
    victim's answers too, so that a checkpoint is chosen by agreement with the victim.
    """
    if labels == "true":
        return data, None
    soft = victim.probabilities(data.train.inputs) if labels == "victim_soft" else None
    hard = victim.labels(data.train.inputs) if soft is None else soft.argmax(1)
    held_out = data.held_out
    if len(held_out):
        held_out = Labelled(held_out.inputs, victim.labels(held_out.inputs))
    return replace(data, train=Labelled(data.train.inputs, hard), held_out=held_out), soft


def freeze_statistics(model: nn.Module, besides: nn.Module | None = None) -> None:
    """Put every batch norm outside `besides` into eval mode, so that its running statistics stay."""
    kept = set() if besides is None else set(besides.modules())
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in kept:
            module.eval()


@contextmanager
def only_trainable(model: nn.Module, part: nn.Module) -> Iterator[None]:
    """Freeze the parameters outside `part` inside the block."""
    own = {id(parameter) for parameter in part.parameters()}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


class FineTuning(Recipe):
    """Cross-entropy on labels or soft targets; with `head`, the running statistics outside it stand still."""

    def __init__(
        self, targets: Tensor | None = None, head: nn.Module | None = None, factors: Factors | None = None
    ) -> None:
        """Set the parts.

        Args:
            targets: soft targets (N, K) by position in the training set; None: the labels.
            head: the only module that trains (see `only_trainable`); None: everything trains.
            factors: of the rate by parameter; None: one rate for all.
        """
        super().__init__()
        self.targets, self.head, self.factors = targets, head, factors

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Freeze statistics; the trainer does so for frozen layers, but cannot tell for one without parameters."""
        if self.head is not None:
            freeze_statistics(model, self.head)

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the mean cross-entropy; for soft targets -(1/B) sum_i sum_c y_ic log softmax(z_i)_c."""
        if self.targets is None:
            return super().loss(model, batch)
        return {"task": F.cross_entropy(model(batch.inputs), self.targets[batch.index])}

    def on_gradients(self, model: nn.Module) -> None:
        """Give each parameter its own rate: SGD with momentum is linear in gradient plus decay, so both are scaled."""
        if self.factors is not None:
            self.factors.apply(model)


class Factors:
    """Rates of the lower and the upper half of the body and of the head, relative to the schedule's (SGD alone)."""

    def __init__(self, model: nn.Module, head: nn.Module, factors: tuple[float, float, float], decay: float) -> None:
        """Divide the parameters of `model` outside `head` into halves by their number of tensors, in forward order.

        Args:
            model, head: the network and its last layer.
            factors: of the three groups.
            decay: the schedule's weight decay.
        """
        own = {id(parameter) for parameter in head.parameters()}
        body = [name for name, parameter in model.named_parameters() if id(parameter) not in own]
        last = [name for name, parameter in model.named_parameters() if id(parameter) in own]
        half = len(body) // 2
        groups = zip((body[:half], body[half:], last), factors, strict=True)
        self.by_name = {name: factor for names, factor in groups for name in names}
        self.decay = decay

    def apply(self, model: nn.Module) -> None:
        """Turn each gradient g into f g + (f - 1) decay w, so that the optimiser, which adds decay w, steps by f."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if (factor := self.by_name[name]) != 1 and parameter.grad is not None:
                    parameter.grad.mul_(factor).add_(parameter, alpha=(factor - 1) * self.decay)


def probes(lab: Lab) -> Observer:
    """Return an observer that shows every epoch's state to the evaluator."""

    def observe(epoch: int, model: nn.Module, means: dict[str, float]) -> None:
        lab.probe(epoch + 1, model)

    return observe


def divergence(trained: Trained) -> list[str]:
    """Return the note on a run whose loss stopped being finite, if it did."""
    if not trained.diverged:
        return []
    return [f"diverged in epoch {len(trained.history)}; the state of epoch {trained.chosen_epoch} is kept"]


def reset(module: nn.Module, *names: str | int) -> None:
    """Initialise a layer anew, by its own default, under named streams; in place."""
    with global_stream(*names), torch.no_grad():
        module.reset_parameters()  # type: ignore[operator]
