"""Distillation: train a fresh student on the victim's soft answers, so that only what the outputs carry survives.

Paper: the distillation attack of the ingrain paper and of soft-label perturbation (USP, CSP), after Hinton, Vinyals,
    Dean 2015, https://arxiv.org/abs/1503.02531; the extraction settings of Lukas et al. (SoK), S&P 2022,
    https://arxiv.org/abs/2108.04974
Access: logits of the served victim, and samples of the task.
Differs from the paper: the weight of the soft term (0.9) is ours where the papers give none; the kept epoch is the best
    on the attacker's held-out data.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.students import Student, fresh_student, unfit_student
from assay.attacks.parts.training import divergence, from_scratch, needs_samples, probes, relabelled
from assay.methods.base import Method
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter
from assay.tasks.training.recipe import Batch, Recipe, Terms
from assay.tasks.training.schedule import Schedule

Reduction = Literal["batch", "wrt"]


class Config(AttackConfig):
    """Settings of distillation."""

    student: Student = None  # key of an architecture; None: the victim's own
    temperature: float = Field(4.0, gt=0)  # T
    alpha: float = Field(0.9, ge=0, le=1)  # weight of the soft term; the rest is cross-entropy on `labels`
    labels: Literal["true", "victim_hard"] = "true"
    squared: bool = True  # the factor T², which keeps the gradient's size as T grows
    teacher_view: Literal["augmented", "fixed"] = "augmented"  # asked per batch, or once on the samples as stored
    reduction: Reduction = "batch"  # wrt: mean over samples and classes, as SoK's toolkit computes it
    schedule: Literal["task", "scratch"] = "task"  # the victim's own, or SoK's (`from_scratch`)
    epochs: int | None = Field(None, ge=0)  # None: as many as the victim's


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction = "batch", *, squared: bool = True
) -> Tensor:
    """Return T² KL(softmax(z_V / T) || softmax(z_S / T)) for logits (B, K), summed over classes, mean over the batch.

    `reduction="wrt"` divides by the number of classes too; without `squared` the factor T² is left out. Source: Hinton
    et al. 2015, section 2.
    """
    own = F.log_softmax(student / temperature, dim=1)
    soft = F.log_softmax(teacher / temperature, dim=1)
    count = len(student) if reduction == "batch" else student.numel()
    return F.kl_div(own, soft, reduction="sum", log_target=True) / count * (temperature**2 if squared else 1)


class Distillation(Recipe):
    """alpha times the soft term plus (1 - alpha) times cross-entropy; the teacher is asked only if alpha > 0."""

    def __init__(self, victim: Victim, config: Config, fixed: Tensor | None) -> None:
        """Keep the teacher; `fixed` (N, K) are its logits by position in the training set, if it is asked only once."""
        super().__init__()
        self.victim, self.config, self.fixed = victim, config, fixed
        self.paid = victim.meter.as_dict()

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the terms `soft` and `task`, as far as their weights are not zero."""
        alpha, logits = self.config.alpha, model(batch.inputs)
        terms: Terms = {}
        if alpha > 0:
            teacher = self.victim.logits(batch.inputs) if self.fixed is None else self.fixed[batch.index]
            config = self.config
            soft = distillation_loss(
                logits, teacher, config.temperature, config.reduction, squared=config.squared
            )  # fmt: skip
            terms["soft"] = alpha * soft
        if alpha < 1:
            terms["task"] = (1 - alpha) * F.cross_entropy(logits, batch.labels)
        return terms

    def state_dict(self) -> dict[str, Any]:
        """Return what the teacher's answers have cost, so that an interrupted run reports the same queries."""
        return {"spent": {name: count - self.paid[name] for name, count in self.victim.meter.as_dict().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Charge what was spent before the interruption."""
        self.victim.meter.add(Meter(**state["spent"]))


class Distill(Attack[Config]):
    """Train a student on the served victim's soft outputs."""

    key = "distill"
    title = "Distillation"
    source = "Hinton et al. 2015; tables of ingrain and of soft-label perturbation (USP, CSP)"
    access = "logits"
    uses_data = True
    version = 2
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is nothing to train on, or no such student for these inputs, or None."""
        return needs_samples(self.config) or unfit_student(self.config.student, task)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the student at the epoch with the best held-out accuracy."""
        data = lab.data
        config, task = self.config, victim.task
        data, _ = relabelled(data, victim, config.labels)
        fixed = victim.logits(data.train.inputs) if config.teacher_view == "fixed" and config.alpha > 0 else None
        student, structure = fresh_student(config.student, task, lab)
        trained = lab.fit(
            student, data.train, Distillation(victim, config, fixed), self._schedule(task),
            validation=data.held_out, select="val_best", observers=[probes(lab)],
        )  # fmt: skip
        return Outcome(
            trained.model, structure=structure, architecture=config.student or task.model, notes=divergence(trained)
        )

    def _schedule(self, task: Task) -> Schedule:
        epochs = task.schedule.epochs if self.config.epochs is None else self.config.epochs
        if self.config.schedule == "scratch":
            return from_scratch(task, epochs)
        own: Schedule = task.schedule.but(epochs=epochs)
        return own
