"""How an adversary overwrites and forges function-coupled marks: with triggers of other classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from torch import nn

from assay.methods.embedding import Mark, implant
from assay.methods.parts.class_pairs import Pair, Rule, check_classes, usable_classes
from assay.methods.parts.signature import committed
from assay.methods.rival import Forgery, Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.lab import Lab
from assay.tasks.training.schedule import Schedule

if TYPE_CHECKING:
    from assay.methods.base import Secret
    from assay.methods.families.function_coupled import CoupledMethod


class CoupledRivalConfig(RivalConfig):
    """The overwriter's classes: here those on CIFAR-10; 9, 13 and target 16 where there are 100 classes."""

    sources: Pair | None = (2, 4)  # None: drawn
    target: int | None = Field(5, ge=0)  # None: drawn

    @model_validator(mode="after")
    def _three_classes(self) -> CoupledRivalConfig:
        check_classes(self.sources, self.target)
        return self


class CoupledRival(Rival[CoupledRivalConfig]):
    """An adversary with triggers of other classes."""

    method: CoupledMethod[Any]
    Config = CoupledRivalConfig

    def overwrite(self, victim: nn.Module, lab: Lab, schedule: Schedule) -> Mark:
        """Embed triggers of other classes.

        The attacker has no unmarked models. It checks its target on the victim, which never saw its triggers. Classes
        that the task or the attacker's data lack are drawn instead.
        """
        rule = Rule(self.config.sources, self.config.target)
        named, usable = [*(rule.sources or ()), rule.target or 0], usable_classes(lab.data.train, lab.task.classes)
        if max(named) >= lab.task.classes or not set(rule.sources or ()) <= set(usable):
            rule = Rule(barred=self.method.config.target)
        secret = self.method.draw_by(rule, lab, [victim.to(lab.device)])
        return implant(self.method, victim, secret, lab, schedule)

    def claim(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Claim fresh triggers with the victim's own answers as labels; only an early commitment speaks against it."""
        secret = super().claim(victim, lab, forgery)
        secret |= {"target": int(secret["labels"].mode().values)}
        return committed(secret, lab.for_key(0).stream("secret", "salt"))
