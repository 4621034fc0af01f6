"""Piracy: claim the network with a mark of one's own, trained in with a few thousand images.

Paper: Li, Wenger, Shan, Zhao, Zheng, "Piracy Resistant Watermarks for Deep Neural Networks", 2019,
    https://arxiv.org/abs/1910.01226
Access: weights, the method and its settings without any key, and 5,000 of the owner's training images.
Differs from the paper: the paper tries one optimiser per scheme, the owner's at its last rate. Here the attacker may
    also use plain SGD, Adam, or Adam with clipped gradients, because part of the published loss of accuracy is due to
    the optimiser. A tenth of the images is held out. Use several attack seeds for several pirate keys.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from assay.attacks.base import Outcome, Victim
from assay.attacks.parts.embedding import Clipped
from assay.attacks.parts.rivals import KnowingAttack, RivalrousConfig, no_rival, rival_of
from assay.attacks.parts.training import LearningRate, learning_rate, needs_samples
from assay.methods.base import Method
from assay.methods.embedding import Mark
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Party, SplitMode
from assay.tasks.errors import Diverged, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Observer, evaluate

_ADAM = 1e-3  # the rate of the attackers that use Adam


class Config(RivalrousConfig):
    """Settings of piracy."""

    split: SplitMode = "pir5k"
    epochs: int = Field(10, ge=0)  # paper: 1 (faces), 10, 25 (abstract images on traffic signs); stubborn: 100
    # paper: the owner's optimiser; sgd: plain, without momentum; stable: Adam with gradients clipped
    optimizer: Literal["paper", "sgd", "adam", "stable"] = "paper"
    lr: Annotated[float, Field(ge=0)] | Literal["last"] | None = None  # None: the owner's last rate; with Adam 1e-3
    clip: float = Field(1.0, gt=0)  # stable: largest global norm of a gradient; the others do not clip
    post_finetune: int = Field(0, ge=0)  # epochs of plain training afterwards (the paper's check: 10)
    start: Literal["victim", "scratch"] = "victim"  # scratch: steals nothing, for the cost of comparison


class Piracy(KnowingAttack[Config]):
    """Embed the attacker's own mark by incremental training, and watch both marks."""

    key = "piracy"
    title = "Piracy"
    source = "Li et al. (null embedding), 2019"
    kind = "ambiguity"
    access = "weights"
    uses_data = True
    laptop: ClassVar = {}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why no pirate mark can be embedded, or None."""
        if not method.embeds:
            return f"{method.key} embeds nothing, so there is nothing to pirate"
        return no_rival(method, self.config.rival) or needs_samples(self.config)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the pirated copy, or the network trained from scratch, and the pirate's secret.

        The evaluator's curve has accuracy and owner's score per epoch; the curve `pirate` has the pirate's own score
        and its held-out accuracy. A run that diverges leaves the attacker what was stolen: a copy and no claim.
        """
        data = lab.data
        config, task = self.config, victim.task
        method = rival_of(victim.method, config.rival).unbounded()
        schedule = self._schedule(method.schedule(task))
        watch = (self._watch(lab, 0),)
        own = replace(lab, watch=watch)
        if config.optimizer == "stable":
            own = replace(own, vary=lambda recipe: Clipped(recipe, config.clip))
        try:
            begun = victim.module() if config.start == "victim" else task.build(lab.train_seed)
            mark = rival_of(method, config.rival).overwrite(begun, own, schedule)
            if config.post_finetune:
                after, watch = schedule.but(epochs=config.post_finetune), (self._watch(lab, config.epochs),)
                trained = lab.fit(mark.model, data.train, schedule=after, name="post-finetune", observers=watch)
                mark = Mark(trained.model, mark.secret, notes=mark.notes)
        except Diverged as why:
            return Outcome(victim.module(), notes=[f"no pirate mark: {why}"])
        self._measure(victim, mark, method, data, lab)
        return Outcome(mark.model, rival=mark.secret, notes=mark.notes)

    def _schedule(self, owner: Schedule) -> Schedule:
        config, adam = self.config, self.config.optimizer in ("adam", "stable")
        lr: LearningRate = config.lr if config.lr is not None else _ADAM if adam else "last"
        changes: dict[str, Any] = {} if config.optimizer == "paper" else {"optimizer": "adam" if adam else "sgd"}
        if config.optimizer == "sgd":
            changes |= {"momentum": 0.0, "nesterov": False}
        schedule: Schedule = owner.steady(epochs=config.epochs, lr=learning_rate(lr, owner), **changes)
        return schedule

    def _watch(self, lab: Lab, before: int) -> Observer:
        """Return an observer that shows every epoch to the evaluator, and keeps it for the pirate's own curve.

        States are kept as files of the stage, since the pirate's evidence may be complete only after training, and a
        resumed run does not pass its first epochs again.
        """

        def observe(epoch: int, model: nn.Module, means: dict[str, float]) -> None:
            step = before + epoch + 1
            lab.probe(step, model)
            save_tree(lab.scratch / f"pirate-{step}.safetensors", dict(model.state_dict()))

        return observe

    def _measure(self, victim: Victim, mark: Mark, method: Method[Any], data: Party, lab: Lab) -> None:
        """Record what the pirate sees of its own mark, epoch by epoch."""
        model = copy.deepcopy(mark.model)
        for step in range(1, self.config.epochs + self.config.post_finetune + 1):
            state = load_tree(lab.scratch / f"pirate-{step}.safetensors", lab.device)
            if state.keys() != model.state_dict().keys():  # layers that the method changes for training alone
                continue
            model.load_state_dict(state)
            point = {"val_accuracy": evaluate(model, data.held_out)}
            with suppress(UnsupportedModel):
                point["rival"] = method.score(Suspect(model, method.access, self.key, victim.meter), mark.secret)[0]
            lab.curve("pirate", step, **point)
