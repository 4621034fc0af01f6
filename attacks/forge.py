"""Forging: leave the model alone and produce counterfeit evidence that verifies on it.

Paper: the forging attack of the greedy-residuals paper (Liu, Weng, Zhu, ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html), 200 random signatures; ambiguity attacks of Fan et al. (DeepIPR),
    NeurIPS 2019, https://arxiv.org/abs/1909.07830
Access: weights. A forger holds the model, so evidence may be solved for or optimised. A search alone would need only
    what the method's own verifier sees.
Differs from the paper: the method's `rival` forges by the strongest known procedure for its kind of evidence. The
    paper's search is `procedure: search`. Whether a commitment exposes the counterfeit is a figure of the method's
    reading, not of this attack. Procedure `near` of passports starts from the owner's passports, as in the authors'
    script; such a procedure assumes that the owner's secret is public.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

from pydantic import Field

from assay.attacks.base import Needs, Outcome, Victim
from assay.attacks.parts.rivals import KnowingAttack, RivalrousConfig, no_rival, rival_of
from assay.attacks.parts.training import needs_samples
from assay.methods.base import Method
from assay.methods.rival import Forgery
from assay.methods.suspect import Suspect
from assay.tasks.errors import nearest
from assay.tasks.lab import Lab
from assay.tasks.task import Task

_GENERAL = ("own", "search", "adversarial")


class Config(RivalrousConfig):
    """Settings of forging."""

    draws: int = Field(200, ge=1)  # tries of a search; procedures that solve for the evidence need one
    # own: the method's strongest; search: the best of fresh secrets; adversarial: triggers changed until they verify;
    # or a procedure of the method's rival (`Rival.procedures`)
    procedure: str = "own"


class Forge(KnowingAttack[Config]):
    """Claim an unchanged model with counterfeit evidence."""

    key = "forge"
    title = "Forged evidence"
    source = "Liu, Weng, Zhu (greedy residuals), ICML 2021"
    kind = "ambiguity"
    access = "weights"
    version = 2
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is no evidence to forge, or None."""
        if method.access == "nothing":
            return f"{method.key} verifies nothing, so there is no evidence to forge"
        if reason := no_rival(method, self.config.rival):
            return reason
        if self.config.procedure == "search" and not method.shares_null:
            return f"procedure search draws keys; a key of {method.key} cannot be drawn without training"
        if self.config.procedure == "adversarial" and (method.family != "triggers" or task.info.kind != "image"):
            return f"procedure adversarial changes trigger images; {method.key} on {task.key} has none"
        if self.config.procedure in _GENERAL:
            return None
        ways = (*_GENERAL, *type(method).rival.procedures)
        if self.config.procedure not in ways:
            hint = nearest(self.config.procedure, ways)
            return f"{method.key} is not forged by {self.config.procedure}{hint} (allowed: {', '.join(sorted(ways))})"
        return needs_samples(self.config)

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return the access, and whether the procedure starts from the owner's secret."""
        leaks = self.config.procedure in type(method).rival.leaking
        return replace(super().needs(task, method), key=leaks)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the counterfeit; a search leaves its scores as a curve, their mean and best as report."""
        suspect = Suspect(victim.module(), "weights", self.key, victim.meter)
        forgery = Forgery(self.config.procedure, self.config.draws, victim.leaked)
        rival = rival_of(victim.method, self.config.rival).forge(suspect, lab, forgery)
        return Outcome(rival=rival, report=_figures([row for row in lab.curves if row["curve"] == "forge"]))


def _figures(tries: list[dict[str, Any]]) -> dict[str, float]:
    """Return mean and best score of a forger's tries, and the best of their other figures."""
    if not tries:
        return {}
    scores = [row["score"] for row in tries]
    found = {"draws": float(len(tries)), "draws_mean": fmean(scores), "draws_best": max(scores)}
    others = [name for name in tries[0] if name not in ("curve", "step", "score")]
    return found | {f"forged_{name}": max(row[name] for row in tries) for name in others}
