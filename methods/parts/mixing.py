"""Mixing keys into training batches: a small batch of keys behind every clean batch, all keys equally often."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.tasks.lab import Lab
from assay.tasks.training.recipe import Batch, Recipe


class KeyBatches:
    """The keys of a trigger set, served a few at a time in an order that changes with every epoch.

    The n keys are shuffled into ceil(n / per_step) key batches; step j of an epoch gets number (start + j) modulo
    their count, with a random start. A key is seen about floor(N / B) * per_step / n times per epoch. The order
    depends on the lab's stream `inject` and the epoch alone, so nothing has to survive a restart.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, per_step: int, lab: Lab) -> None:
        """Keep the keys on the lab's device.

        Args:
            inputs: model inputs (n, ...): images float32 in [0, 1], or token ids.
            labels: class indices (n,).
            per_step: keys behind each clean batch, at least 1.
            lab: names the stream and the device.
        """
        if per_step < 1 or not len(labels):
            raise ValueError(f"keys cannot be mixed: {len(labels)} keys, {per_step} per step; both must be positive")
        self.inputs, self.labels = inputs.to(lab.device), labels.to(lab.device)
        self.per_step = per_step
        self.lab = lab
        self.count = -(-len(labels) // per_step)

    def shuffle(self, epoch: int) -> None:
        """Draw the key batches and the start of `epoch` (from 0)."""
        draws = self.lab.stream("inject", epoch)
        order = torch.randperm(len(self.labels), generator=draws)
        self.start = int(torch.randint(0, self.count, (), generator=draws))
        order = order.to(self.labels.device)
        self.epoch_inputs, self.epoch_labels = self.inputs[order], self.labels[order]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the key batch of `step`: inputs and labels."""
        number = (self.start + step) % self.count
        place = slice(number * self.per_step, (number + 1) * self.per_step)
        return self.epoch_inputs[place], self.epoch_labels[place]

    def append(self, batch: Batch, step: int) -> Batch:
        """Return `batch` with the key batch of `step` behind it; the clean part is untouched."""
        return batch.append(*self.at(step))


class MixKeys(Recipe):
    """Plain training with mean cross-entropy over clean samples and keys; batch norm sees both."""

    def __init__(self, keys: KeyBatches) -> None:
        super().__init__()
        self.keys = keys

    def before_epoch(self, model: torch.nn.Module, epoch: int) -> None:
        """Reshuffle the keys."""
        self.keys.shuffle(epoch)

    def mix(self, batch: Batch, step: int) -> Batch:
        """Append this step's keys."""
        return self.keys.append(batch, step)
