"""Training under random weight masks with small fine-tuning steps, so that a mark spreads over the task's own weights.

"Eq." numbers are those of Wen et al., "On Function-Coupled Watermarks for Deep Neural Networks", 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.methods.parts.mixing import KeyBatches, MixKeys
from assay.tasks.data.splits import Labelled, in_chunks, to_model_input
from assay.tasks.lab import Lab
from assay.tasks.training.norms import batch_norms, has_batch_norm, refresh_statistics
from assay.tasks.training.recipe import Batch, Terms
from assay.tasks.training.schedule import Schedule

Granularity = Literal["element", "kernel"]
_WEIGHTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def maskable(model: nn.Module) -> list[Tensor]:
    """Return the trainable weights, no biases, of convolutions and dense layers, in the network's order."""
    layers = (layer for layer in model.modules() if isinstance(layer, _WEIGHTED))
    return [layer.weight for layer in layers if layer.weight.requires_grad]


def draw_mask(weight: Tensor, drop: float, granularity: Granularity, generator: torch.Generator) -> Tensor:
    """Return a mask M of 0 and 1 for a weight (out, in, ...), 0 with probability `drop`, on the weight's device.

    `element` gives the weight's shape, `kernel` (out, in, 1, ...): one draw for each kernel.
    """
    kernels = (*weight.shape[:2], *(1 for _ in weight.shape[2:]))
    mask = torch.empty_like(weight) if granularity == "element" else weight.new_empty(kernels)
    return mask.detach().bernoulli_(1 - drop, generator=generator)


class WeightMasks:
    """Masks on a network's weights: put on for a pass, taken off again, and what they hid left as it was.

    Of the pruning strategies in Eq. 4 masks follow the random one, as the paper does in practice. Outside of a training
    pass the network is W without masks, which is what is released (Eq. 5).

    Weights are changed in place and put back, so that names, parameters and the optimiser's state stay plain. Masks
    depend on the stream `mask` and the epoch alone, so nothing has to survive a restart.
    """

    def __init__(
        self,
        drop: float,
        lab: Lab,
        *,
        granularity: Granularity = "element",
        every: int | None = None,
        for_good: bool = False,
    ) -> None:
        """Prepare to mask.

        Args:
            drop: p, the share of weights that is dropped, in [0, 1); 0 masks nothing.
            lab: names the stream and the device, on which masks are drawn.
            granularity: what is dropped at once.
            every: steps between two draws; each epoch begins with one. None: one draw an epoch.
            for_good: set weights to 0 at every draw, where the optimiser finds them, and mask nothing.
        """
        self.drop, self.lab = drop, lab
        self.granularity, self.every, self.for_good = granularity, every, for_good
        self.weights: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.scales: list[Tensor] = []
        self.kept: list[Tensor] = []

    def start_epoch(self, model: nn.Module, epoch: int) -> None:
        """Open the epoch's stream."""
        self.weights = maskable(model) if self.drop else []
        seed = self.lab.stream("mask", epoch).initial_seed()
        self.draws = torch.Generator(self.lab.device).manual_seed(seed)

    @torch.no_grad()
    def start_step(self, step: int) -> None:
        """Draw new masks if it is time; `step` counts from 0 within the epoch."""
        if step and (self.every is None or step % self.every):
            return
        masks = [draw_mask(weight, self.drop, self.granularity, self.draws) for weight in self.weights]
        if self.for_good:
            for weight, mask in zip(self.weights, masks, strict=True):
                weight.mul_(mask)
            return
        self.masks, self.scales = masks, [mask / (1 - self.drop) for mask in masks]

    @torch.no_grad()
    def put_on(self) -> None:
        """Replace every weight W by (W * M) / (1 - p) (Eq. 4)."""
        self.kept = [weight.clone() for weight, _ in zip(self.weights, self.scales, strict=False)]
        for weight, scale in zip(self.weights, self.scales, strict=False):
            weight.mul_(scale)

    @torch.no_grad()
    def take_off(self) -> None:
        """Put W back, and turn the gradients at the masked weights into those at W (Eq. 6)."""
        for weight, scale, kept in zip(self.weights, self.scales, self.kept, strict=False):
            weight.copy_(kept)
            if weight.grad is not None:
                weight.grad.mul_(scale)

    @torch.no_grad()
    def hold(self) -> None:
        """Put the old values back where M is 0: momentum and decay moved them all the same."""
        for weight, mask, kept in zip(self.weights, self.masks, self.kept, strict=False):
            weight.copy_(torch.where(mask > 0, weight, kept))


@dataclass(frozen=True)
class Tuning:
    """The fine-tuning steps that end every epoch.

    Attributes:
        data: X_ft, clean samples on the device.
        rate: relative to the schedule's learning rate in that epoch; their product is eta'.
        schedule: the schedule of embedding.
        steps: how many in a row.
        samples: clean samples in an epoch; tells when it ends.
    """

    data: Labelled
    rate: float
    schedule: Schedule
    steps: int
    samples: int


class CoupledRecipe(MixKeys):
    """Algorithm 1: triggers behind every clean batch, masked steps, and fine-tuning steps at the end of each epoch."""

    def __init__(
        self, keys: KeyBatches, masks: WeightMasks, tuning: Tuning | None, lab: Lab, *, apart: bool = False
    ) -> None:
        """Train on `keys` under `masks`; `apart`: samples and keys differ in size and pass one after the other."""
        super().__init__(keys)
        self.masks, self.tuning, self.lab, self.apart = masks, tuning, lab, apart

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Shuffle the triggers and open the epoch's streams."""
        super().before_epoch(model, epoch)
        self.masks.start_epoch(model, epoch)
        self.epoch, self.seen = epoch, 0

    def mix(self, batch: Batch, step: int) -> Batch:
        """Append this step's triggers, and draw masks when it is time."""
        self.masks.start_step(step)
        if not self.apart:
            return super().mix(batch, step)
        self.triggers = self.keys.at(step)
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the mean cross-entropy of the masked network over clean samples and triggers."""
        self.masks.put_on()
        if not self.apart:
            return super().loss(model, batch)
        inputs, labels = self.triggers
        total = len(batch.labels) + len(labels)
        return {
            "task": F.cross_entropy(model(batch.inputs), batch.labels, reduction="sum") / total,
            "triggers": F.cross_entropy(model(inputs), labels, reduction="sum") / total,
        }

    def on_gradients(self, model: nn.Module) -> None:
        """Return to the unmasked weights before the optimiser sees them."""
        self.masks.take_off()

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Leave masked weights as they were; at the epoch's end take the fine-tuning steps."""
        self.masks.hold()
        before, self.seen = self.seen, self.seen + len(batch.index)
        # The trainer may leave out a last batch of a single sample.
        if self.tuning is not None and before < self.tuning.samples - 1 <= self.seen:
            for _ in range(self.tuning.steps):
                self.fine_tune(model, self.tuning)

    def finish(self, model: nn.Module) -> nn.Module:
        """Measure batch norm's statistics anew: they were gathered under masks, which the released network has not."""
        train = self.lab.data.train
        if self.masks.drop > 0 and len(train) > 1 and has_batch_norm(model):
            refresh_statistics(model, train.inputs, self.lab.meter)
        return model

    def fine_tune(self, model: nn.Module, tuning: Tuning) -> None:
        """Take one plain gradient step on the whole fine-tuning set, under the last step's masks (Eq. 7, 8)."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        norms = [norm for norm in batch_norms(model) if norm.training]
        for norm in norms:
            norm.eval()
        self.masks.put_on()
        for inputs, labels in zip(in_chunks(tuning.data.inputs), in_chunks(tuning.data.labels), strict=True):
            loss = F.cross_entropy(model(to_model_input(inputs)), labels, reduction="sum")
            (loss / len(tuning.data)).backward()
        self.masks.take_off()
        rate = tuning.rate * tuning.schedule.lr_at(self.epoch)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-rate)
        for norm in norms:
            norm.train()
