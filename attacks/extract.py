"""Extraction: train a substitute on nothing but the classes that the served victim gives to unlabelled inputs.

Paper: section 8.3 of Piracy Resistant Watermarks (null embedding), Li et al., https://arxiv.org/abs/1910.01226
Access: labels of the served victim, and unlabelled inputs: of the task, from elsewhere, or noise.
Differs from the paper: the source does not say how queries are chosen; each input is asked once, without active
    learning. The kept epoch is the one that agrees best with the victim on 5 % of the queries. If the attacker's own
    images do not suffice, the rest comes from training images that the task leaves unused. Stand-ins replace ImageNet
    and faces, which the paper asks with. Noise is uniform where the paper says "random".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from assay.attacks.base import Attack, AttackConfig, Needs, Outcome, Victim
from assay.attacks.parts.students import Student, fresh_student, unfit_student
from assay.attacks.parts.training import divergence, needs_samples, probes
from assay.methods.base import Method
from assay.tasks.data.other import QUERIES, QUERIES_STAND_IN, Noise, adapt, noise_images, noise_tokens, shares_images
from assay.tasks.data.sources import DATASETS
from assay.tasks.data.splits import Labelled, Party, validation_size
from assay.tasks.errors import unknown
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.augment import Batches

_HELD_OUT = 0.05  # of the queries; the attacker has no true labels to choose an epoch by
_ONE_SIDED = 0.9  # share of one class above which answers teach little


class Config(AttackConfig):
    """Settings of extraction."""

    source: Literal["in_dist", "ood", "noise"] = "in_dist"
    budget: float = Field(1.0, gt=0)  # queries, relative to the owner's training samples (paper: 1.28 to 12.75)
    # Key of the data set behind source `ood`; None: the paper's, or a stand-in (`tasks.data.other`).
    ood: str | None = None
    stand_in: bool = False  # a stand-in even where the paper names a data set
    noise: Noise = "uniform"
    requery_augmented: bool = False  # images are asked again, shifted and mirrored, until the budget is spent
    student: Student = None  # key of an architecture; None: the victim's own
    epochs: int | None = Field(None, ge=0)  # None: as many as the victim's

    @field_validator("ood")
    @classmethod
    def _known(cls, key: str | None) -> str | None:
        if key not in (None, *DATASETS):
            raise ValueError(str(unknown("data set", str(key), DATASETS)))
        return key


def owner_samples(task: Task, data: Party) -> int:
    """Estimate how many samples the owner trains on, from public facts or from the size of the attacker's share.

    Owner and attacker divide the training set as docs/protocol.md says.
    """
    counts = task.info.counts
    known = [count for count in (task.samples, counts[0] if counts else None) if count is not None]
    total = min(known) if known else (len(data.train) + len(data.held_out)) / task.attacker_share
    own = round((1 - task.attacker_share) * total)
    return own - validation_size(own, 500)


class Extract(Attack[Config]):
    """Train a substitute on the hard labels of the served victim."""

    key = "extract"
    title = "Extraction from class labels"
    source = "Li et al. (null embedding), section 8.3"
    access = "labels"
    uses_data = True
    laptop: ClassVar = {"budget": 0.2, "stand_in": True}
    Config = Config

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return the data set that queries come from: another one, or what is left of the task's own."""
        return replace(super().needs(task, method), datasets=self._datasets(task))

    def _datasets(self, task: Task) -> tuple[str, ...]:
        if self.config.source == "ood":
            return tuple(key for key in (self._ood(task),) if key)
        # Texts are encoded by the owner's words, which the rest of the data set is not.
        left = task.samples is not None and task.info.kind == "image"
        return (task.dataset,) if left and self.config.source == "in_dist" else ()

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is nothing to ask with, or None."""
        config = self.config
        if config.source == "in_dist" and (reason := needs_samples(config)):
            return reason
        if config.source == "ood":
            if task.info.kind != "image":
                return f"texts of another data set are not in the words of {task.dataset}'s owner; ask with noise"
            key = self._ood(task)
            if key is None:
                return f"no data set is known to query {task.dataset} with; name one as ood: KEY"
            if DATASETS[key].kind != "image":
                return f"{key} cannot be turned into queries for {task.dataset}: only images can"
            if shares_images(key, task.dataset):
                return f"{key} holds images of {task.dataset}, the owner's among them; that is source in_dist"
        return unfit_student(config.student, task)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the substitute at the epoch that agrees best with the victim on held-out queries."""
        data = lab.data
        task, config = victim.task, self.config
        budget = max(round(config.budget * owner_samples(task, data)), 2)
        inputs = self._queries(budget, task, data, lab)
        asked = Labelled(inputs, victim.labels(inputs))
        notes = [f"{budget} queries are wanted, {len(asked)} inputs are at hand"] if len(asked) < budget else []
        shares = torch.bincount(asked.labels, minlength=task.classes).double() / max(len(asked), 1)
        for label, share in enumerate(shares.tolist()):
            lab.curve("labels", label, share=share)
        largest = float(shares.max())
        if largest > _ONE_SIDED:
            notes.append(f"class {int(shares.argmax())} holds {largest:.0%} of the answers")
        cut = max(round(_HELD_OUT * len(asked)), 1)
        student, structure = fresh_student(config.student, task, lab)
        schedule: Any = task.schedule if config.epochs is None else task.schedule.but(epochs=config.epochs)
        trained = lab.fit(
            student, asked.take(slice(cut, None)), None, schedule,
            validation=asked.take(slice(0, cut)), select="val_best", observers=[probes(lab)],
        )  # fmt: skip
        report = {"queries_wanted": float(budget), "queries": float(len(asked)), "largest_class": largest}
        return Outcome(
            trained.model, structure=structure, architecture=config.student or task.model, report=report,
            notes=notes + divergence(trained),
        )  # fmt: skip

    def _ood(self, task: Task) -> str | None:
        paper = () if self.config.stand_in else QUERIES.get(task.dataset, ())
        return self.config.ood or next(iter(paper), QUERIES_STAND_IN.get(task.dataset))

    def _queries(self, budget: int, task: Task, data: Party, lab: Lab) -> Tensor:
        """Return at most `budget` inputs in random order, on the device."""
        draws = lab.stream("select", "queries")
        if self.config.source == "noise":
            if task.info.kind == "text":
                vocabulary = max(task.info.vocabulary, 2)
                return noise_tokens(budget, task.shape[0], vocabulary, draws).to(lab.device)
            return noise_images(budget, task.shape, self.config.noise, draws).to(lab.device)
        inputs = self._images(budget, task, data, lab)
        order = torch.randperm(len(inputs), generator=draws)[:budget].to(inputs.device)
        inputs = inputs[order]
        if self.config.requery_augmented and inputs.dim() == 4:
            inputs = self._again(inputs, budget, task, lab)
        return inputs

    def _images(self, budget: int, task: Task, data: Party, lab: Lab) -> Tensor:
        if self.config.source == "ood":
            foreign, _ = lab.other(self._datasets(task)[0])
            some = torch.randperm(len(foreign), generator=lab.stream("select", "ood"))[:budget]
            return adapt(foreign.take(some.to(foreign.labels.device)), task.shape).inputs
        own = torch.cat([data.train.inputs, data.held_out.inputs])
        if len(own) >= budget or not self._datasets(task):
            return own
        public, _ = lab.other(task.dataset)
        some = torch.randperm(len(public), generator=lab.stream("select", "public"))[: budget - len(own)]
        return torch.cat([own, public.inputs[some.to(public.labels.device)]])

    def _again(self, inputs: Tensor, budget: int, task: Task, lab: Lab) -> Tensor:
        """Append shifted (and, where the task allows it, mirrored) views of `inputs` until there are `budget`."""
        schedule = task.schedule.but(augment="crop-flip" if task.schedule.augment == "crop-flip" else "crop")
        views = Batches(inputs, torch.zeros_like(inputs[:, 0, 0, 0]), schedule, f"{lab.plugin}|augment|{lab.seed}")
        parts = [inputs]
        for epoch in range(-(-budget // len(inputs)) - 1):
            views.start_epoch(epoch)
            shown = torch.cat([views.get(number)[0] for number in range(len(views))])
            parts.append(shown.mul(255).round().to(torch.uint8) if inputs.dtype == torch.uint8 else shown)
        return torch.cat(parts)[:budget]
