"""Forging: leave the model alone and produce counterfeit evidence that verifies on it.

Paper: the forging attack of the greedy-residuals paper (Liu, Weng, Zhu, ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html), 200 random signatures; ambiguity attacks of Fan et al. (DeepIPR),
    NeurIPS 2019, https://arxiv.org/abs/1909.07830
Access: weights. A forger holds the model, so evidence may be solved for or optimised; the least sufficient for a search
    alone would be what the method's own verifier sees.
Differs from the paper: how each kind of evidence is forged belongs to the method (`Method.forge`, its strongest known
    procedure); the default is the paper's search, which `procedure` can also ask for. Whether a commitment would have
    exposed the counterfeit is a figure of the method's verdict, not of this attack. Near-by passports start from the
    owner's, as in the authors' script: that procedure alone is given the leaked key (public level 2).
"""

from __future__ import annotations

from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import Field

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.training import fine_tuning, needs_samples, share_of_epochs
from assay.methods.base import Forgery, Method
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Party
from assay.tasks.lab import Lab
from assay.tasks.task import Task

_PASSPORTS = ("random", "reverse", "near")


class Config(AttackConfig):
    """Settings of forging."""

    draws: int = Field(200, ge=1)  # secrets drawn by a search; closed-form procedures need one
    # own: the method's strongest; search: the best of fresh secrets; adversarial: triggers changed until they verify;
    # of passports: random: those of other images; reverse: scale and bias trained, then solved for passports; near: the
    # owner's, trained to be others
    procedure: Literal["own", "search", "adversarial", "random", "reverse", "near"] = "own"
    flips: float = Field(0.0, ge=0, le=1)  # reverse, near: share of the signs that the claim turns (paper: 0 to 1)
    epochs: int | None = Field(None, ge=0)  # reverse, near: None: 100, as a share of the owner's 200
    lr: float = Field(0.01, ge=0)  # reverse, near
    younger: ClassVar[tuple[str, ...]] = (*AttackConfig.younger, "flips", "epochs", "lr")


class Forge(Attack):
    """Claim an unchanged model with counterfeit evidence."""

    key = "forge"
    title = "Forged evidence"
    source = "Liu, Weng, Zhu (greedy residuals), ICML 2021"
    kind = "ambiguity"
    needs = "weights"
    version = 2
    Config = Config

    def supports(self, task: Task, method: Method) -> str | None:
        """Return why there is no evidence to forge, or None."""
        if method.access == "nothing":
            return f"{method.key} verifies nothing, so there is no evidence to forge"
        if self.config.procedure == "search" and not method.shares_null():
            return f"procedure search draws keys; a key of {method.key} cannot be drawn without training"
        if self.config.procedure == "adversarial" and (method.family != "triggers" or task.info.kind != "image"):
            return f"procedure adversarial changes trigger images; {method.key} on {task.key} has none"
        if self.config.procedure in _PASSPORTS:
            if self.config.procedure not in method.forgeries:
                return f"procedure {self.config.procedure} forges passports, and {method.key} has none"
            return needs_samples(self.config)
        return None

    def leaks_key(self) -> bool:
        """Return whether the owner's key is public."""
        return bool(self.config.procedure == "near")

    def run(self, victim: Victim, data: Party, lab: Lab) -> Outcome:
        """Return the counterfeit; a search leaves its scores as a curve, their mean and best as report."""
        suspect = Suspect(victim.module(), "weights", self.key, victim.meter)
        method, given = victim.method, (suspect, victim.task, data, lab)
        if self.config.procedure == "adversarial":
            return Outcome(rival=method.forge_adversarial(*given))
        if self.config.procedure == "search":
            rival = Method.forge(method, *given, self.config.draws)
        elif self.config.procedure in _PASSPORTS:
            rival = method.forge_as(self._forgery(victim), *given)
        else:
            rival = method.forge(*given, self.config.draws)
        return Outcome(rival=rival, report=_figures([row for row in lab.curves if row["curve"] == "forge"]))

    def _forgery(self, victim: Victim) -> Forgery:
        config, task = self.config, victim.task
        # The passport paper trains its victims for 200 epochs, as greedy residuals does.
        epochs = share_of_epochs(task, "greedy_residuals", 100) if config.epochs is None else config.epochs
        schedule = fine_tuning(task, epochs, config.lr, batch_size=64)
        return Forgery(config.procedure, config.draws, config.flips, schedule, victim.leaked)


def _figures(tries: list[dict[str, Any]]) -> dict[str, float]:
    """Return mean and best score of a forger's tries, and the best of their other figures."""
    if not tries:
        return {}
    scores = [row["score"] for row in tries]
    found = {"draws": float(len(tries)), "draws_mean": fmean(scores), "draws_best": max(scores)}
    others = [name for name in tries[0] if name not in ("curve", "step", "score")]
    return found | {f"forged_{name}": max(row[name] for row in tries) for name in others}
