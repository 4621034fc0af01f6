"""Groups of channels that are tied together, and what can be done to them in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Role = Literal["producer", "carrier", "consumer"]


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that a group runs along.

    Attributes:
        role: `producer` (rows of a layer's weight or bias), `carrier` (per-channel values) or `consumer` (columns).
        module, tensor: names, e.g. `blocks.0.conv1` and `weight` or `running_var`.
        axis: the tensor's axis.
        start: first position on that axis (not 0 behind a concatenation).
        block: consecutive positions that one channel owns (H·W behind a flattened map, else 1).
    """

    role: Role
    module: str
    tensor: str
    axis: int
    start: int = 0
    block: int = 1

    def of(self, model: nn.Module) -> Tensor:
        """Return the tensor itself in `model`."""
        tensor: Tensor = getattr(model.get_submodule(self.module), self.tensor)
        return tensor

    def positions(self, channels: Tensor) -> Tensor:
        """Return the positions on the axis that `channels` (K,) own, in that order (K·block,)."""
        steps = torch.arange(self.block, device=channels.device)
        return self.start + (channels[:, None] * self.block + steps).flatten()


@dataclass(frozen=True)
class Group:
    """Channels that are tied together through the whole network.

    Attributes:
        channels: how many there are.
        members: in the order of the forward pass.
        scalable: whether every operation on the way commutes with a positive factor per channel.
    """

    channels: int
    members: tuple[Member, ...]
    scalable: bool

    def layers(self, role: Role) -> tuple[str, ...]:
        """Return the names of the modules in one role, each once, in the order of the forward pass."""
        return tuple(dict.fromkeys(member.module for member in self.members if member.role == role))

    @property
    def name(self) -> str:
        """The first producer; unique, because a layer produces one variable."""
        return self.layers("producer")[0]

    @property
    def is_stream(self) -> bool:
        """Whether several layers add into the same channels (the stream of a residual stage)."""
        return len(self.layers("producer")) > 1


def permute(model: nn.Module, group: Group, order: Tensor) -> None:
    """Reorder the channels of `group` in place: channel i becomes the former channel `order[i]`.

    Args:
        model: a network with the structure from which the group was read.
        order: a permutation of 0 … channels-1 (channels,), int64.
    """
    with torch.no_grad():
        for member in group.members:
            tensor = member.of(model)
            index = torch.arange(tensor.shape[member.axis], device=tensor.device)
            everyone = torch.arange(group.channels, device=tensor.device)
            index[member.positions(everyone)] = member.positions(order.to(tensor.device))
            tensor.copy_(tensor.index_select(member.axis, index))
