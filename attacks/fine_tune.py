"""Fine-tuning: keep training the stolen network until its mark is forgotten.

Paper: the robustness tables of all five papers; modes of Adi et al., USENIX Security 2018,
    https://arxiv.org/abs/1802.04633, and Lukas et al. (SoK), S&P 2022, https://arxiv.org/abs/2108.04974
Access: weights, and labelled samples of the task (or the victim's own answers).
Differs from the paper: the kept epoch is the best on the attacker's held-out data, never on the test set. Frozen batch
    norms keep their running statistics; SoK's toolkit lets them drift. `last` takes the owner's last rate but always
    trains with SGD, also if the owner used Adam. On shorter tasks the epochs shrink with the owner's, so the attack
    keeps its share of the cost of training.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.graph import logit_layer
from assay.attacks.parts.training import (
    Factors,
    FineTuning,
    Labels,
    divergence,
    fine_tuning,
    needs_samples,
    only_trainable,
    probes,
    relabelled,
    reset,
    share_of_epochs,
)
from assay.methods.base import Method
from assay.tasks.data.splits import Party
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule

Rate = Annotated[float, Field(ge=0)]
_EPOCHS = {"usp_csp": 100, "null_embedding": 100, "ingrain": 25, "wrt": 5}


class Config(AttackConfig):
    """Settings of fine-tuning; the defaults are those of the soft-label papers (USP, CSP)."""

    mode: Literal["ftal", "ftll", "rtal", "rtll"] = "ftal"  # fine-tune or re-train (new head) all or the last layer
    epochs: int | None = Field(None, ge=0)  # None: those of `paper`, as a share of the owner's
    paper: Literal["usp_csp", "null_embedding", "ingrain", "wrt"] = "usp_csp"  # 100, 100, 25, 5 (rtll: 10) epochs
    lr: Rate | Literal["last"] = 0.01  # "last": the rate with which the owner stopped
    drop_every: int | None = Field(None, ge=1)  # epochs between drops of the rate; None: constant
    drop_factor: float = Field(0.5, gt=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(128, ge=1)
    labels: Labels = "true"
    # Rates of the lower half of the body, its upper half and the head, relative to `lr` (SoK, ImageNet: the head alone
    # at 1000 times the rate).
    lr_groups: tuple[Rate, Rate, Rate] = (1.0, 1.0, 1.0)
    warmup_head_batches: int = Field(0, ge=0)  # mode rtal: the new head alone for so many batches (SoK: 200)
    trials: int = Field(0, ge=0)  # rounds, each on top of the last (function-coupled marks); 0: one run
    epochs_per_trial: int = Field(1, ge=1)


class FineTune(Attack[Config]):
    """Fine-tune or re-train all layers or the last one."""

    key = "fine-tune"
    title = "Fine-tuning"
    source = "Adi et al. 2018; Lukas et al. (SoK), S&P 2022"
    access = "weights"
    uses_data = True
    version = 2
    identity: ClassVar = {"epochs": 0}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is nothing to train on, or None."""
        return needs_samples(self.config)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the fine-tuned copy, at the epoch with the best held-out accuracy (rounds: after the last one)."""
        data = lab.data
        config, model = self.config, victim.module()
        data, targets = relabelled(data, victim, config.labels)
        head = model.get_submodule(logit_layer(model))
        if config.mode in ("rtal", "rtll"):
            reset(head, lab.plugin, "init", lab.seed)
        if config.mode == "rtal":
            self._warm_up(model, head, data, targets, victim.task, lab)
        whole = config.mode in ("ftal", "rtal")
        rates = Factors(model, head, config.lr_groups, config.weight_decay) if {*config.lr_groups} != {1.0} else None
        train = self._rounds if config.trials else self._once
        with nullcontext() if whole else only_trainable(model, head):
            return train(model, FineTuning(targets, None if whole else head, rates), data, victim.task, lab)

    def _warm_up(
        self, model: nn.Module, head: nn.Module, data: Party, targets: Tensor | None, task: Task, lab: Lab
    ) -> None:
        """Train the head alone for exactly `warmup_head_batches`: whole epochs, then a part of one."""
        size, total = self.config.batch_size, len(data.train)
        epochs, rest = divmod(self.config.warmup_head_batches, -(-total // size))
        order = torch.randperm(total, generator=lab.stream("select", "warm-up")).to(data.train.labels.device)
        with only_trainable(model, head):
            for index, times in ((order, epochs), (order[: rest * size], min(rest, 1))):
                if times:
                    recipe = FineTuning(None if targets is None else targets[index], head)
                    lab.fit(model, data.train.take(index), recipe, self._schedule(task, times), name="warm-up")

    def _epochs(self, task: Task) -> int:
        config = self.config
        if config.epochs is not None:
            return int(config.epochs)
        epochs = 10 if (config.paper, config.mode) == ("wrt", "rtll") else _EPOCHS[config.paper]
        return share_of_epochs(task, config.paper, epochs)

    def _schedule(self, task: Task, epochs: int) -> Schedule:
        config, step = self.config, self.config.drop_every
        drops = tuple(epoch / epochs for epoch in range(step, epochs, step)) if step else ()
        return fine_tuning(
            task, epochs, config.lr, drops=drops, drop_factor=config.drop_factor, momentum=config.momentum,
            weight_decay=config.weight_decay, batch_size=config.batch_size,
        )  # fmt: skip

    def _once(self, model: nn.Module, recipe: FineTuning, data: Party, task: Task, lab: Lab) -> Outcome:
        schedule = self._schedule(task, self._epochs(task))
        trained = lab.fit(
            model, data.train, recipe, schedule,
            validation=data.held_out, select="val_best", observers=[probes(lab)],
        )  # fmt: skip
        return Outcome(trained.model, notes=divergence(trained))

    def _rounds(self, model: nn.Module, recipe: FineTuning, data: Party, task: Task, lab: Lab) -> Outcome:
        schedule, notes = self._schedule(task, self.config.epochs_per_trial), list[str]()
        for trial in range(1, self.config.trials + 1):
            # Own streams for each round: the samples come in a fresh order.
            trained = lab.fit(
                model, data.train, recipe, schedule, name=f"trial-{trial}", validation=data.held_out
            )  # fmt: skip
            model = trained.model
            lab.probe(trial, model)
            notes += [f"trial {trial}: {note}" for note in divergence(trained)]
        return Outcome(model, notes=notes)
