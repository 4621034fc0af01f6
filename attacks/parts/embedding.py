"""Embedding by an attacker: what it makes of the method's own recipe."""

from __future__ import annotations

from torch import nn

from assay.tasks.training.recipe import Recipe, Wrapped


class Clipped(Wrapped):
    """Another recipe whose gradients are clipped at a global norm, after what the method does with them."""

    def __init__(self, inner: Recipe, norm: float) -> None:
        """Wrap `inner`; `norm` is the largest global norm of a gradient."""
        super().__init__(inner)
        self.norm = norm

    def on_gradients(self, model: nn.Module) -> None:
        """Clip what the method leaves."""
        self.inner.on_gradients(model)
        nn.utils.clip_grad_norm_((p for p in model.parameters() if p.grad is not None), self.norm)
