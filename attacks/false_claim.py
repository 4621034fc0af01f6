"""False claims: count how often evidence verifies that was never embedded in the accused model.

Paper: 1,000 never-embedded watermarks on unmarked and on marked models, in Piracy Resistant Watermarks (Li et al.,
    https://arxiv.org/abs/1910.01226); transferable evidence, in False Claims against Model Ownership Resolution
    (Liu et al., USENIX Security 2024, https://arxiv.org/abs/2304.06607)
Access: nothing of the accused model. The accuser draws keys as an honest owner would (`random`), or forges evidence on
    models of its own and hopes that it transfers (`adaptive`).
Differs from the paper: the accused unmarked models took part in no calibration. Claims are also read from a fine-tuned
    and a distilled copy of one of them, because processing changes chance agreement. The adaptive accuser forges by
    the strongest procedure of the method's rival, not by one targeted gradient search for all methods. It forges
    against the mean logits of its models, or against a single model if the mark is read from weights. It trains these
    models on its own data, so they are independent of the accused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.attacks.base import Claims, Needs, Outcome, Victim
from assay.attacks.parts.rivals import KnowingAttack, RivalrousConfig, no_rival, rival_of
from assay.attacks.parts.training import FineTuning, fine_tuning
from assay.methods.base import Method, Secret
from assay.methods.rival import Forgery
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Party
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.trainer import predict


class Config(RivalrousConfig):
    """Settings of false claims."""

    mode: Literal["random", "adaptive"] = "random"
    claims: int = Field(1000, ge=1)  # mode random
    forgeries: int = Field(10, ge=1)  # mode adaptive
    own_models: int = Field(3, ge=1)  # mode adaptive: the accuser's
    draws: int = Field(200, ge=1)  # mode adaptive: tries, if the method's rival forges by a search
    accused: int = Field(3, ge=1)  # unmarked models, besides the marked victim
    surrogate_epochs: int = Field(5, ge=0)  # of the fine-tuned and the distilled unmarked model; 0: neither


class FalseClaim(KnowingAttack[Config]):
    """Accuse the victim and unmarked models with evidence that was never embedded."""

    key = "false-claim"
    title = "False claims"
    source = "Li et al. (null embedding), 2019; Liu et al. (False Claims), USENIX Security 2024"
    kind = "verification"
    access = "nothing"
    uses_data = True
    laptop: ClassVar[dict[str, Any]] = {"accused": 1, "own_models": 2, "forgeries": 3}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is nothing to claim with, or None."""
        if method.access == "nothing":
            return f"{method.key} verifies nothing, so nothing can be claimed"
        if self.config.split in ("none", "ood"):
            return f"an accuser needs data of the task, and split mode {self.config.split!r} leaves none"
        if self.config.mode == "random" and not method.shares_null:
            return f"a key of {method.key} cannot be drawn without training; mode adaptive trains one"
        return no_rival(method, self.config.rival)

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return the accused unmarked models, which took part in no calibration, and those that drawing a key asks."""
        accused = tuple(f"null-{index}" for index in range(self.config.accused))
        asked = method.needs(task).unmarked if self.config.mode == "random" else ()
        return replace(super().needs(task, method), unmarked=tuple(dict.fromkeys((*accused, *asked))))

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the claims, and who is accused besides the victim."""
        data = lab.data
        accused = {f"unmarked-{i}": lab.unmarked(f"null-{i}") for i in range(self.config.accused)}
        if self.config.surrogate_epochs:
            accused |= self._surrogates(accused["unmarked-0"], victim.task, data, lab)
        if self.config.mode == "random":
            return Outcome(claims=Claims(self._drawn(victim, lab), accused))
        return Outcome(claims=Claims(self._forged(victim, lab), accused))

    def _surrogates(self, null: nn.Module, task: Task, data: Party, lab: Lab) -> dict[str, nn.Module]:
        """Return an unmarked model's fine-tuned and distilled heirs."""
        tuning = fine_tuning(task, self.config.surrogate_epochs, "last")
        taught = task.schedule.but(epochs=self.config.surrogate_epochs)
        soft = predict(null, data.train.inputs).softmax(1)
        student = task.build(lab.train_seed, "student")
        tuned = lab.fit(copy.deepcopy(null), data.train, FineTuning(), tuning, name="fine-tuned")
        distilled = lab.fit(student, data.train, FineTuning(soft), taught, name="distilled")
        return {"surrogate-0": tuned.model.eval(), "surrogate-1": distilled.model.eval()}

    def _drawn(self, victim: Victim, lab: Lab) -> Iterator[Secret]:
        """Yield keys as the method draws them; unmarked models that a draw uses are not among the accused."""
        claimant = replace(lab, role="claimant")
        for index in range(self.config.claims):
            # A thousand trigger sets would not fit in memory: one is drawn when the last was read.
            yield victim.method.draw(claimant.for_key(index))

    def _forged(self, victim: Victim, lab: Lab) -> list[Secret]:
        """Return evidence forged on the accuser's own models."""
        task, method, data = victim.task, victim.method, lab.data
        own = [
            lab.fit(task.build(lab.train_seed, f"own-{i}"), data.train, schedule=task.schedule, name=f"own-{i}").model
            for i in range(self.config.own_models)
        ]
        target = own[0] if method.access == "weights" else _MeanLogits(own)
        claims = []
        for index in range(self.config.forgeries):
            alone = replace(lab.for_key(index), unmarked=lambda role: copy.deepcopy(own[-1]))
            suspect = Suspect(target, "weights", self.key, lab.meter)
            rival = rival_of(method, self.config.rival)
            claims.append(rival.forge(suspect, alone, Forgery(draws=self.config.draws)))
        return claims


class _MeanLogits(nn.Module):
    """Several networks that answer as one."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members]).mean(0)
