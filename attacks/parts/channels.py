"""Groups of channels that are tied together, and what can be done to them in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from assay.methods.base import Method
from assay.tasks.errors import UnsupportedModel
from assay.tasks.task import Task

Role = Literal["producer", "carrier", "consumer"]

_CARRIER = ("carrier", "carrier-rows")  # targets that stand for the layers that a method is known to use


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that a group runs along.

    Attributes:
        role: `producer` (rows of a layer's weight or bias), `carrier` (per-channel values) or `consumer` (columns).
        module, tensor: names, e.g. `blocks.0.conv1` and `weight` or `running_var`.
        axis: the tensor's axis.
        start: first position on that axis (not 0 behind a concatenation, or for the gates of a recurrent layer).
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
        keeps_zero: whether a channel that its producers leave at zero reaches every consumer as zero.
    """

    channels: int
    members: tuple[Member, ...]
    keeps_zero: bool = True

    def layers(self, role: Role) -> tuple[str, ...]:
        """Return the names of the modules in one role, each once, in the order of the forward pass."""
        return tuple(dict.fromkeys(member.module for member in self.members if member.role == role))

    @property
    def name(self) -> str:
        """The first producer; with its tensor where a layer has several (a recurrent layer's levels)."""
        first = next(member for member in self.members if member.role == "producer")
        return first.module if first.tensor in ("weight", "bias") else f"{first.module}.{first.tensor}"

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


def scale(model: nn.Module, group: Group, factors: Tensor) -> Tensor:
    """Multiply the channels of `group` by positive factors in place, and divide where they are read.

    A batch norm that reads them takes over the scaled statistics: mean δμ, variance δ²(σ²+ε) - ε. A factor that would
    make a variance negative is raised to the least that does not.

    Args:
        model: a network with the structure from which the group was read, by `scaling_groups`.
        factors: δ > 0 (channels,), float64.

    Returns:
        The factors used (channels,), float64.
    """
    everyone = torch.arange(group.channels)
    read = [member for member in group.members if member.tensor == "running_var"]
    with torch.no_grad():
        for member in read:
            least = _epsilon(model, member) / (member.of(model).double().cpu() + _epsilon(model, member))
            factors = torch.maximum(factors, least[member.positions(everyone)].sqrt())
        for member in group.members:
            tensor = member.of(model)
            size = tensor.shape[member.axis]
            spread = torch.ones(size, dtype=torch.float64)
            spread[member.positions(everyone)] = factors.repeat_interleave(member.block)
            spread = spread.to(tensor.device).view([-1 if axis == member.axis else 1 for axis in range(tensor.dim())])
            exact = tensor.double()
            if member.tensor == "running_var":
                epsilon = _epsilon(model, member)
                exact = (spread.square() * (exact + epsilon) - epsilon).clamp_(min=0)
            elif member.tensor == "running_mean" or member.role == "producer":
                exact = exact * spread
            else:
                exact = exact / spread
            # Only the group's own positions are written: the arithmetic of the others would not be exact.
            own = member.positions(everyone).to(tensor.device)
            tensor.index_copy_(member.axis, own, exact.index_select(member.axis, own).to(tensor.dtype))
    return factors


def silence(model: nn.Module, group: Group, channels: Tensor) -> None:
    """Zero what produces and carries some channels of `group`, in place; running statistics stay.

    Args:
        model: a network with the structure from which the group was read.
        channels: positions (K,), int64.
    """
    with torch.no_grad():
        for member in group.members:
            if member.role != "consumer" and member.tensor not in ("running_mean", "running_var"):
                tensor = member.of(model)
                tensor.index_fill_(member.axis, member.positions(channels).to(tensor.device), 0)


def cut(model: nn.Module, removed: Sequence[tuple[Group, Tensor]]) -> None:
    """Remove channels from a network, in place: rows, per-channel values and the columns that read them.

    Args:
        model: a network with the structure from which the groups were read.
        removed: groups with the positions of the channels to remove (K,), at least one of each group left.
    """
    gone: dict[tuple[str, str, int], list[Tensor]] = {}
    for group, channels in removed:
        for member in group.members:
            gone.setdefault((member.module, member.tensor, member.axis), []).append(member.positions(channels))
    for (name, tensor, axis), positions in gone.items():
        layer = model.get_submodule(name)
        value = getattr(layer, tensor)
        kept = torch.ones(value.shape[axis], dtype=torch.bool)
        kept[torch.cat(positions)] = False
        rest = value.detach().index_select(axis, kept.nonzero().flatten().to(value.device))
        setattr(layer, tensor, nn.Parameter(rest) if isinstance(value, nn.Parameter) else rest)
    for name in {module for module, _, _ in gone}:
        _resize(model.get_submodule(name))


def _resize(layer: Any) -> None:
    """Make a layer's own sizes those of its tensors."""
    shape = next(tensor for tensor in (layer.weight, getattr(layer, "running_var", None)) if tensor is not None).shape
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = shape[0]
    else:
        layer.groups = shape[0] if layer.groups > 1 else 1  # only depthwise layers have groups that can be cut
        layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups


def _epsilon(model: nn.Module, member: Member) -> float:
    return float(model.get_submodule(member.module).eps)  # type: ignore[arg-type]


def no_carrier(targets: str, task: Task, method: Method[Any]) -> str | None:
    """Return why the targets `carrier` and `carrier-rows` mean nothing for a method, or None."""
    if targets in _CARRIER and not method.carrier_layers(task):
        return f"{method.key} names no carrier layer; its mark is not read by position"
    return None


def targeted(groups: Sequence[Group], targets: str, task: Task, method: Method[Any], action: str) -> list[Group]:
    """Return the groups that touch the targets.

    Args:
        groups: the network's.
        targets: `all`; `carrier`: the layers that the method is known to use; `carrier-rows`: the channels that those
            layers produce, not the ones that they read; or layers' names joined by "+".
        task, method: the victim's.
        action: for the error's text, e.g. `permute`.

    Raises:
        UnsupportedModel: there is none.
    """
    named = {*(method.carrier_layers(task) if targets in _CARRIER else targets.split("+"))}

    def touched(group: Group) -> bool:
        return bool(named & {m.module for m in group.members if targets != "carrier-rows" or m.role == "producer"})

    chosen = [group for group in groups if targets == "all" or touched(group)]
    if not chosen:
        found = ", ".join(group.name for group in groups) or "none"
        allowed = f"all, {', '.join(_CARRIER)}, or layers of the groups led by: {found}"
        raise UnsupportedModel(f"targets: nothing to {action} at {targets!r} (allowed: {allowed})")
    return chosen
