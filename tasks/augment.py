"""Augmentation of whole batches on the device: random shift by padding and cropping, horizontal flip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.data import to_model_input
from tasks.schedule import Schedule
from tasks.streams import stream

PAD = 4


class Batches:
    """The batches of one training set: selected, augmented and converted on the device, without per-sample Python.

    Order and augmentation of epoch `e` come from the streams `<seed>|order|e` and `<seed>|augment|e`, so an epoch can
    be replayed alone and nothing a method draws can move them.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, schedule: Schedule, seed: str) -> None:
        self.labels = labels
        self.batch_size = schedule.batch_size
        self.seed = seed
        self.flip = schedule.augment == "crop-flip"
        self.crop = schedule.augment != "none"
        if self.crop and inputs.dim() != 4:
            raise ValueError(
                f"augment={schedule.augment!r} needs images (N, C, H, W), got inputs of {inputs.dim()} axes"
            )
        self.inputs = inputs
        if self.crop:
            # All shifts of all images as one strided view (N, C, 2P+1, 2P+1, H, W): selecting a batch and cropping it
            # is a single gather.
            height, width = inputs.shape[2:]
            padded = F.pad(inputs, (PAD, PAD, PAD, PAD))
            self.windows = padded.unfold(2, height, 1).unfold(3, width, 1)

    def start_epoch(self, epoch: int) -> None:
        """Draw the order and the augmentation of an epoch and put them on the device."""
        device, total = self.labels.device, len(self.labels)
        self.order = torch.randperm(total, generator=stream(self.seed, "order", epoch)).to(device)
        if self.crop:
            draws = stream(self.seed, "augment", epoch)
            self.shifts = torch.randint(0, 2 * PAD + 1, (2, total), generator=draws).to(device)
            self.flipped = torch.rand(total, generator=draws).lt(0.5).to(device)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def get(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return batch `number` of the epoch: model inputs, labels, positions in the training set."""
        place = slice(number * self.batch_size, (number + 1) * self.batch_size)
        index = self.order[place]
        if not self.crop:
            return to_model_input(self.inputs[index]), self.labels[index], index
        rows, columns = self.shifts[:, place]
        images = self.windows[index, :, rows, columns]
        if self.flip:
            images = torch.where(self.flipped[place, None, None, None], images.flip(3), images)
        return to_model_input(images), self.labels[index], index
