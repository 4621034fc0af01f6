"""Magnitude pruning: delete the smallest weights, without any data.

Paper: L1 unstructured pruning in the robustness tables of soft-label perturbation (USP), function-coupled watermarks,
    ingrain and greedy residuals, after Han et al., NeurIPS 2015, https://arxiv.org/abs/1506.02626; variants of Lukas et
    al. (SoK), https://arxiv.org/abs/2108.04974, and of DeepIPR, https://arxiv.org/abs/1909.07830
Access: weights; no data.
Differs from the paper: of equal magnitudes the earlier entry goes first, which no source states. The ingrain paper
    prunes and then trains, which is attack `prune-retrain`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.pruning import Scope, prune_weights
from assay.tasks.lab import Lab


class Config(AttackConfig):
    """Settings of pruning."""

    ratio: float = Field(0.8, ge=0, le=1)  # share of the entries that become zero
    scope: Scope = "global"  # what is ranked together; see `Scope`
    skip_last: bool = False  # spare the layer that gives the logits, as function-coupled marks' code does


class Prune(Attack[Config]):
    """Zero the weights of smallest magnitude."""

    key = "prune"
    title = "Magnitude pruning"
    source = "Han et al., NeurIPS 2015; tables of USP, function-coupled marks, ingrain and greedy residuals"
    access = "weights"
    cheap = True
    identity: ClassVar = {"ratio": 0.0}
    Config = Config

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the pruned copy; its curve `sparsity` holds the share of zeros of each pruned tensor, in order."""
        model = victim.module()
        tensors = prune_weights(model, self.config.ratio, self.config.scope, skip_last=self.config.skip_last)
        for place, tensor in enumerate(tensors):
            lab.curve("sparsity", place, share=float((tensor == 0).double().mean()))
        return Outcome(model)
