"""Unified soft-label perturbation: the model learns to answer unlike an ordinary one, and a detector to notice.

Paper: Chien & Shen, "Customized Watermarking for Deep Neural Networks via Label Distribution Perturbation", 2022,
    https://arxiv.org/abs/2208.05477
Access: logits or probabilities of any classifier; protects the answers, so students inherit the mark.
Differs from the paper: alpha, beta, the temperature, the optimiser, the detector's widths and the source of the
    negatives (a reference model, not the adversary) are ours, because the paper states none; the detector sees
    log-softmax, which the paper names for csp alone, because raw logits hide the mark in their common shift, where
    students lose it (`detector_input`); probes are the owner's held-out samples (the paper: the test set); batch-norm
    nets get a polishing epoch in which the detector alone learns from eval-mode answers.
"""

from __future__ import annotations

from pydantic import Field

from assay.methods.base import Secret
from assay.methods.families.soft_label import SoftLabelMethod
from assay.methods.parts.signature import random_bytes
from assay.methods.parts.soft_label import SoftLabelConfig, SoftLabelRecipe
from assay.tasks.lab import Lab
from assay.tasks.training.trainer import Recipe


class USPConfig(SoftLabelConfig):
    """Hyper-parameters of USP; the detector's rate falls at epoch 160 on CIFAR-100 and Tiny-ImageNet."""

    beta: float = Field(1.0, ge=0)  # of the detector's verdict on the marked model; no value in the paper


class USP(SoftLabelMethod[USPConfig]):
    """See the module's text."""

    key = "usp"
    title = "unified soft-label perturbation"
    paper = "Chien & Shen 2022, https://arxiv.org/abs/2208.05477"
    Config = USPConfig
    # The stronger divergence, as in csp: few samples and epochs leave the detector too little to tell.
    laptop = {"alpha": -0.02, "detector_lr": 1e-3, "n_probe": 1000, "references": 5}  # noqa: RUF012

    def draw(self, lab: Lab) -> Secret:
        """Draw the owner's key. The detector, which alone verifies, joins the secret after training."""
        return {"key": random_bytes(lab.stream("secret"), 32)}

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Pair the model with the adversary and a fresh detector (Eq. 1 to 6)."""
        return SoftLabelRecipe(self.config, lab, secret)
