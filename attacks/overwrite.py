"""Overwriting: embed a second mark with the same method and a new key.

Paper: ambiguity and removal by re-embedding, in the greedy-residuals paper (Liu, Weng, Zhu, ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html), in Function-Coupled Watermarks (https://arxiv.org/abs/2302.10296)
    and in Lukas et al. (SoK), S&P 2022, https://arxiv.org/abs/2108.04974
Access: weights, the method and its settings without any key, and data by mode. Mode `leaked_key` alone assumes that the
    owner's secret is public.
Differs from the paper: mode `without_data` optimises the embedding term alone, which the paper suggests but does not
    spell out. Noise images with random labels replace the data that the method asks for, and running statistics do not
    change. Where the papers state no epochs, the attacker takes the owner's, at most 20. In mode `leaked_key` the
    attacker embeds the contradiction of the owner's secret: triggers under other labels, or complemented bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from assay.attacks.base import Needs, Outcome, Victim
from assay.attacks.parts.rivals import KnowingAttack, RivalrousConfig, no_rival, rival_of
from assay.attacks.parts.training import freeze_statistics, learning_rate, needs_samples, relabelled
from assay.methods.base import Method
from assay.methods.embedding import Mark, implant
from assay.tasks.data.splits import Labelled, Party
from assay.tasks.errors import AssayError, Diverged, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms, Wrapped
from assay.tasks.training.schedule import Schedule

MOST_EPOCHS = 20  # where no source states how long an attacker embeds


class Config(RivalrousConfig):
    """Settings of overwriting."""

    mode: Literal["with_data", "without_data", "victim_labels", "leaked_key"] = "with_data"
    epochs: int | None = Field(None, ge=0)  # None: the owner's embedding epochs, at most 20
    lr: Annotated[float, Field(ge=0)] | Literal["last"] = "last"  # the owner's last rate; function-coupled marks: 1e-4
    stand_ins: int = Field(1000, ge=1)  # mode without_data: noise samples per epoch


class EmbeddingAlone(Wrapped):
    """The method's recipe without the task: only the appended keys, or every term but `task`; statistics are frozen."""

    def __init__(self, inner: Recipe) -> None:
        """Wrap `inner`.

        Raises:
            UnsupportedModel: it owns the whole step, so its terms cannot be told apart.
        """
        if type(inner).step is not Recipe.step:
            raise UnsupportedModel(
                f"{type(inner).__name__} replaces the training step; mode without_data cannot part it"
            )
        super().__init__(inner)

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Freeze the running statistics, which stand-in samples would spoil."""
        freeze_statistics(model)
        super().before_epoch(model, epoch)

    def mix(self, batch: Batch, step: int) -> Batch:
        """Return the samples that the method appends, or the batch if it appends none."""
        mixed = super().mix(batch, step)
        clean = mixed.clean
        if clean == len(mixed.labels):
            return mixed
        return replace(mixed, inputs=mixed.inputs[clean:], labels=mixed.labels[clean:], index=batch.index[:0], clean=0)

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the method's terms; `task` only where the batch holds nothing but keys."""
        terms = super().loss(model, batch)
        kept = {name: term for name, term in terms.items() if name != "task" or not batch.clean}
        if not kept:
            raise UnsupportedModel(f"{type(self.inner).__name__} has no term of its own; mode without_data has no aim")
        return kept


class Overwrite(KnowingAttack[Config]):
    """Embed the attacker's own mark on top of the owner's."""

    key = "overwrite"
    title = "Overwriting"
    source = "Liu, Weng, Zhu (greedy residuals), ICML 2021; function-coupled marks; Lukas et al. (SoK), S&P 2022"
    kind = "ambiguity"
    access = "weights"
    uses_data = True
    laptop: ClassVar = {"epochs": 5}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why no second mark can be embedded, or None."""
        if not method.embeds:
            return f"{method.key} embeds nothing, so there is nothing to overwrite"
        if reason := no_rival(method, self.config.rival):
            return reason
        if self.config.mode != "without_data":
            return needs_samples(self.config)
        kind = task.info.kind
        return None if kind == "image" else f"mode without_data shows noise images; {task.dataset} holds {kind}"

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the overwritten copy and the new secret.

        A run that diverges leaves the attacker what was stolen: an unchanged copy and no claim.
        """
        if self.config.mode == "without_data":
            lab = replace(lab, vary=EmbeddingAlone, data=self._stand_ins(victim.task, lab))
        elif self.config.mode == "victim_labels":
            lab = replace(lab, data=relabelled(lab.data, victim, "victim_hard")[0])
        schedule = self._schedule(victim.method.schedule(victim.task))
        try:
            mark = self._embed(victim, lab, schedule)
        except Diverged as why:
            return Outcome(victim.module(), notes=[f"no second mark: {why}"])
        lab.probe(schedule.epochs, mark.model)
        # An attacker who denies the owner's mark claims none of its own.
        return Outcome(mark.model, rival=None if self.config.mode == "leaked_key" else mark.secret, notes=mark.notes)

    def _embed(self, victim: Victim, lab: Lab, schedule: Schedule) -> Mark:
        """Return the copy with a new key, or with the contradiction of the leaked one."""
        rival = rival_of(victim.method, self.config.rival)
        if self.config.mode != "leaked_key":
            return rival.overwrite(victim.module(), lab, schedule)
        if victim.leaked is None:
            raise AssayError("overwrite: mode leaked_key needs the owner's key, and none was handed over")
        return implant(victim.method, victim.module(), rival.deny(victim.leaked, lab), lab, schedule)

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return the usual needs, and the owner's secret in mode `leaked_key`."""
        return replace(super().needs(task, method), key=self.config.mode == "leaked_key")

    def _schedule(self, owner: Schedule) -> Schedule:
        epochs = min(owner.epochs, MOST_EPOCHS) if self.config.epochs is None else self.config.epochs
        schedule: Schedule = owner.steady(epochs=epochs, lr=learning_rate(self.config.lr, owner))
        return schedule

    def _stand_ins(self, task: Task, lab: Lab) -> Party:
        """Return uniform noise images with random labels."""
        count, draws = self.config.stand_ins, lab.stream("noise")
        images = torch.randint(0, 256, (count, *task.shape), generator=draws, dtype=torch.uint8)
        noise = Labelled(images, torch.randint(0, task.classes, (count,), generator=draws)).to(lab.device)
        return Party(noise, noise.take(slice(0, 0)), "none", overlaps_owner=False)
