"""Taking a known trigger out of a network: unlearn it, or remove the units that it excites."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from assay.attacks.parts.channels import Group
from assay.attacks.parts.graph import channel_groups
from assay.attacks.parts.training import FineTuning
from assay.attacks.parts.trigger_search import Trigger
from assay.tasks.data.splits import in_chunks
from assay.tasks.errors import UnsupportedModel
from assay.tasks.training.recipe import Batch


class Unlearning(FineTuning):
    """Fine-tuning in which chosen images carry the trigger and keep their right labels."""

    def __init__(self, trigger: Trigger, chosen: Tensor) -> None:
        """Set the trigger, and which samples of the training set carry it: bool (N,), on the device."""
        super().__init__()
        self.trigger, self.chosen = trigger, chosen

    def mix(self, batch: Batch, step: int) -> Batch:
        """Stamp the chosen samples, after augmentation."""
        carries = self.chosen[batch.index].view(-1, 1, 1, 1)
        return replace(batch, inputs=torch.where(carries, self.trigger.stamp(batch.inputs), batch.inputs))


def prune_excited(model: nn.Module, trigger: Trigger, images: Tensor, ratio: float, residue: float) -> int:
    """Zero, in place, the units of the last convolution that stamped images excite most; return how many.

    Units are ranked by mean activation on stamped minus clean images, and go one by one until the trigger reaches its
    class from at most `residue` of the images, or `ratio` of the units are gone. A unit is gone when everything that
    reads it has zero weights for it, so batch norm in between needs no special case.

    Args:
        model: in eval mode.
        trigger: what excites them.
        images: float32 (N, C, H, W), of other classes than the trigger's.
        ratio: largest share of the units, in [0, 1], rounded down.
        residue: success at which to stop, in [0, 1].

    Raises:
        UnsupportedModel: the last convolution's channels are tied to something that cannot be told apart.
    """
    group = last_stage(model)
    excess = _activation(model, group, trigger.stamp(images)) - _activation(model, group, images)
    order = excess.argsort(descending=True, stable=True)[: math.floor(Fraction(str(ratio)) * group.channels)]
    for gone, channel in enumerate(order):
        if trigger.success(model, images) <= residue:
            return gone
        with torch.no_grad():
            for member in group.members:
                if member.role == "consumer":
                    member.of(model).index_fill_(member.axis, member.positions(channel[None]), 0)
    return len(order)


def last_stage(model: nn.Module) -> Group:
    """Return the channels of the last convolution; in a network without any, those of the last hidden layer.

    Raises:
        UnsupportedModel: they belong to no group of their own.
    """
    groups = channel_groups(model)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    found = [group for group in groups if not convolutions or convolutions[-1] in group.layers("producer")]
    if not found:
        raise UnsupportedModel("the units of the last convolution are tied to others; they cannot be pruned alone")
    return found[-1]


def _activation(model: nn.Module, group: Group, images: Tensor) -> Tensor:
    """Return the mean activation per channel (C,), as the first layer that reads the group sees it."""
    reader = next(member for member in group.members if member.role == "consumer")
    total = torch.zeros(group.channels, device=images.device)
    channels = torch.arange(group.channels, device=images.device)

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen = args[0].flatten(2).mean(2) if args[0].dim() > 2 else args[0]
        total.add_(seen[:, reader.positions(channels)].view(len(seen), group.channels, -1).mean(2).sum(0))

    handle = model.get_submodule(reader.module).register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            for part in in_chunks(images):
                model(part)
    finally:
        handle.remove()
    return total / len(images)
