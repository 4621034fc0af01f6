"""How greedy residuals train: the hinge in the optimiser's own step, or in a step of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from assay.methods.parts.residuals import hinge, residuals_of
from assay.methods.parts.signature import bits
from assay.tasks.lab import Lab
from assay.tasks.training.recipe import Batch, Recipe, Terms


def signs_of(secret: dict[str, Any]) -> Tensor:
    """Return omega (b,), float32: +1 where the signature's bit is 1, else -1 (Eq. 4)."""
    return 2 * bits("greedy-residuals/bits", secret["signature"], secret["bits"]).float() - 1


class ResidualRecipe(Recipe):
    """Cross-entropy and the hinge on the residuals, in one optimiser step or in two steps of their own."""

    def __init__(self, secret: dict[str, Any], strength: float, embed_lr: float | None, lab: Lab) -> None:
        """Keep what a step needs.

        Args:
            secret: as drawn; with the entry `denied` the complement of its bits is embedded.
            strength: lambda.
            embed_lr: rate of the separate step; None: that of the lab's schedule in each epoch.
            lab: names the schedule and the device.
        """
        super().__init__()
        self.secret, self.strength, self.schedule, self.embed_lr = secret, strength, lab.schedule, embed_lr
        signs = signs_of(secret)
        self.signs = (-signs if secret.get("denied") else signs).to(lab.device)

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Set the rate of the separate step."""
        self.lr = self.embed_lr or self.schedule.lr_at(epoch)

    def carriers(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the weights that carry the bits."""
        return [model.get_parameter(name) for name in self.secret["layers"]]

    def mark(self, model: nn.Module) -> Tensor:
        """Return lambda sum_i max(0, mu - omega_i psi_i); the selection is that of the present weights (Eq. 2)."""
        return self.strength * hinge(residuals_of(self.carriers(model), self.secret), self.signs, self.secret["margin"])


class Joint(ResidualRecipe):
    """One backward pass of L + E, one optimiser step (Eq. 1)."""

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return L and E."""
        return {**super().loss(model, batch), "mark": self.mark(model)}


class Separate(ResidualRecipe):
    """The optimiser's step on L, then a plain gradient step on E (Algorithm 1): no momentum or decay acts twice."""

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return L (line 5), and E as a figure: its gradient acts in the step of its own."""
        with torch.no_grad():
            term = self.mark(model)
        for weight in self.carriers(model):  # an exact zero: a step without data has nothing else to differentiate
            term = term + 0.0 * weight.sum()
        return {**super().loss(model, batch), "mark": term}

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Descend E on the carriers alone, with the selection that the optimiser's step left (lines 7 and 8)."""
        carriers = self.carriers(model)
        gradients = torch.autograd.grad(self.mark(model), carriers)
        with torch.no_grad():
            for weight, gradient in zip(carriers, gradients, strict=True):
                weight.sub_(gradient, alpha=self.lr)
