"""Batches of a dual embedding: a share of every batch is stamped, half with the null and half with the true pattern."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from assay.methods.parts.dual import Pattern, stamp
from assay.tasks.lab import Lab
from assay.tasks.training.recipe import Batch, Recipe


class DualBatches(Recipe):
    """Replaces a share of every batch by stamped samples, in place; the clean order stays as drawn.

    The mean cross-entropy of such a batch is, in expectation and up to the factor 1 - rho, the objective of section
    6.2, E[l(y, F(x)) + alpha l(y_W, F(x (+) [inv(p), lambda])) + beta l(y, F(x (+) [p, lambda]))], with
    alpha = beta = (rho / 2) / (1 - rho): 0.5 for the inject ratio rho = 0.5, 0.0556 for 0.1.
    """

    def __init__(
        self, patterns: Sequence[Pattern], extreme: float, ratio: float, grad_clip: float | None, lab: Lab
    ) -> None:
        """Keep the patterns on the lab's device.

        Args:
            patterns: of all marks; they share the stamped samples.
            extreme: lambda, in pixel space.
            ratio: rho, the share of a batch that is replaced.
            grad_clip: largest global norm of a gradient; None: no bound.
            lab: names the streams, the device and the data.
        """
        super().__init__()
        self.signs = [own.signs.to(lab.device) for own in patterns]
        self.targets = [own.label for own in patterns]
        self.extreme, self.ratio, self.grad_clip = extreme, ratio, grad_clip
        self.samples, self.lab = len(lab.data.train), lab

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Draw one number per sample of the epoch; the ranks within a batch choose the positions to stamp."""
        draws = torch.rand(self.samples, generator=self.lab.stream("inject", epoch), dtype=torch.float64)
        self.draws, self.used = draws.to(self.lab.device), 0  # moved to the device at once

    def mix(self, batch: Batch, step: int) -> Batch:
        """Stamp the chosen samples; those of the true part get the class that the pattern forces."""
        size = batch.clean
        replaced = int(self.ratio * size + 0.5)
        order = self.draws[self.used : self.used + size].argsort()[:replaced]
        self.used += size
        if not replaced:
            return batch
        inputs, labels = batch.inputs.clone(), batch.labels.clone()
        for signs, target, places in zip(self.signs, self.targets, order.tensor_split(len(self.signs)), strict=True):
            true, null = places[: len(places) // 2], places[len(places) // 2 :]
            inputs[null] = stamp(inputs[null], signs, self.extreme)
            inputs[true] = stamp(inputs[true], -signs, self.extreme)
            labels[true] = target
        return Batch(inputs, labels, batch.index, size)

    def on_gradients(self, model: nn.Module) -> None:
        """Bound the gradient."""
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.grad_clip)
