"""Forging: leave the model alone and produce counterfeit evidence that verifies on it.

Paper: the forging attack of the greedy-residuals paper (Liu, Weng, Zhu, ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html), 200 random signatures; ambiguity attacks of Fan et al. (DeepIPR),
    NeurIPS 2019, https://arxiv.org/abs/1909.07830
Access: weights. A forger holds the model, so evidence may be solved for or optimised; the least sufficient for a search
    alone would be what the method's own verifier sees.
Differs from the paper: how each kind of evidence is forged belongs to the method (`Method.forge`, its strongest known
    procedure); the default is the paper's search, which `procedure` can also ask for. Whether a commitment would have
    exposed the counterfeit is a figure of the method's verdict, not of this attack.
"""

from __future__ import annotations

from statistics import fmean
from typing import Literal

from pydantic import Field

from attacks.base import Attack, AttackConfig, Outcome, Victim
from methods.base import Method
from methods.suspect import Suspect
from tasks.data import Party
from tasks.lab import Lab
from tasks.task import Task


class Config(AttackConfig):
    """Settings of forging."""

    draws: int = Field(200, ge=1)  # secrets drawn by a search; closed-form procedures need one
    # own: the method's strongest; search: the best of fresh secrets; adversarial: triggers changed until they verify
    procedure: Literal["own", "search", "adversarial"] = "own"


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
        return None

    def run(self, victim: Victim, data: Party, lab: Lab) -> Outcome:
        """Return the counterfeit; a search leaves its scores as a curve, their mean and best as report."""
        suspect = Suspect(victim.module(), "weights", self.key, victim.meter)
        method, given = victim.method, (suspect, victim.task, data, lab)
        if self.config.procedure == "adversarial":
            return Outcome(rival=method.forge_adversarial(*given))
        if self.config.procedure == "search":
            rival = Method.forge(method, *given, self.config.draws)
        else:
            rival = method.forge(*given, self.config.draws)
        scores = [row["score"] for row in lab.curves if row["curve"] == "forge"]
        if not scores:
            return Outcome(rival=rival)
        return Outcome(
            rival=rival,
            report={"draws": float(len(scores)), "draws_mean": fmean(scores), "draws_best": max(scores)},
        )
