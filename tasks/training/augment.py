"""Augmentation of whole batches on the device: random shift by padding and cropping, horizontal flip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.tasks.data.splits import to_model_input
from assay.tasks.streams import stream
from assay.tasks.training.schedule import Schedule

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
            # All shifts of all images are overlapping views of one padded array: the window that starts at element e is
            # row e of `windows`, so selecting a batch and cropping it is a single gather.
            channels, height, width = inputs.shape[1:]
            padded = F.pad(inputs, (PAD, PAD, PAD, PAD)).contiguous()
            plane, self.row = padded.stride()[1:3]
            self.image = channels * plane
            last = (channels - 1) * plane + (height - 1) * self.row + width - 1  # a window's last element
            shape = (max(padded.numel() - last, 0), channels, height, width)
            self.windows = padded.as_strided(shape, (1, plane, self.row, 1))

    def start_epoch(self, epoch: int) -> None:
        """Draw the order and the augmentation of an epoch and put them on the device."""
        device, total = self.labels.device, len(self.labels)
        order = torch.randperm(total, generator=stream(self.seed, "order", epoch))
        self.order = order.to(device)
        if not self.crop:
            return
        draws = stream(self.seed, "augment", epoch)
        down, right = torch.randint(0, 2 * PAD + 1, (2, total), generator=draws)
        self.starts = (order * self.image + down * self.row + right).to(device)
        mirrored = torch.rand(total, generator=draws).lt(0.5).nonzero().flatten()
        per_batch = torch.bincount(mirrored // self.batch_size, minlength=len(self)).tolist()
        self.mirrored = (mirrored % self.batch_size).to(device).split(per_batch)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def get(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return batch `number` of the epoch: model inputs, labels, positions in the training set."""
        place = slice(number * self.batch_size, (number + 1) * self.batch_size)
        index = self.order[place]
        labels = self.labels.index_select(0, index)
        if not self.crop:
            # index_select copies whole samples; indexing with a tensor would go element by element.
            return to_model_input(self.inputs.index_select(0, index)), labels, index
        images = self.windows.index_select(0, self.starts[place])
        if self.flip:
            which = self.mirrored[number]
            images.index_copy_(0, which, images.index_select(0, which).flip(3))
        return to_model_input(images), labels, index
