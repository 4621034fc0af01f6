"""Channel variables: union-find over the channel axes of a network, and the tensors that lie along them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from assay.attacks.parts.channels import Group, Member, Role

Kind = Literal["map", "vector", "sequence", "last", "flat"]


@dataclass(frozen=True)
class Axis:
    """The channel axis of an activation: variables laid end to end.

    Kinds: `map` (N, C, …) with `spatial` axes behind the channels, `vector` (N, C), `sequence` (N, L, C), `last` (…, C)
    with who knows what before, and `flat` (N, C·H·W). Without variables the shape is known, and nobody may move.
    """

    variables: tuple[int, ...]
    kind: Kind
    spatial: int = 0


Value = Axis | tuple["Value", ...] | None
"""What is known of an intermediate value: its channel axis, a tuple of such, or None: channels nobody may move."""


class Variables:
    """Every channel variable of one network.

    Attributes:
        model: the network.
        scaling: whether the variables are to be scaled. Then layers that rescale channels one by one (batch norm,
            depthwise convolution) end a variable and begin another, and what is not positively homogeneous freezes.
    """

    def __init__(self, model: nn.Module, scaling: bool) -> None:
        self.model, self.scaling = model, scaling
        self._parent: list[int] = []
        self._size: list[int] = []
        self._frozen: set[int] = set()
        self._offset: set[int] = set()
        self._members: list[tuple[int, Member]] = []

    def new(self, size: int) -> int:
        """Return a new variable of `size` channels."""
        self._parent.append(len(self._parent))
        self._size.append(size)
        return len(self._parent) - 1

    def sizes(self, axis: Axis) -> list[int]:
        """Return the channels of each variable along an axis."""
        return [self._size[variable] for variable in axis.variables]

    def freeze(self, *values: Value) -> Axis | None:
        """Forbid any change of the variables of `values`; return None, as what is known of the result."""
        for value in values:
            if isinstance(value, tuple):
                self.freeze(*value)
            elif value is not None:
                self._frozen.update(value.variables)
        return None

    def passes_unscaled(self, axis: Axis, zero: bool) -> Axis | None:
        """Return the axis behind an operation that treats channels alike but does not commute with a factor.

        Args:
            axis: the axis before it.
            zero: whether it maps 0 to 0.
        """
        if self.scaling:
            return self.freeze(axis)
        if not zero:
            self._offset.update(axis.variables)
        return axis

    def union(self, a: Axis, b: Axis) -> None:
        """Tie two axes of equal sizes, variable by variable."""
        for left, right in zip(a.variables, b.variables, strict=True):
            first, second = sorted((self.find(left), self.find(right)))
            self._parent[second] = first

    def find(self, variable: int) -> int:
        """Return the representative of a variable."""
        while self._parent[variable] != variable:
            variable = self._parent[variable]
        return variable

    def attach(self, axis: Axis, role: Role, module: str, tensor: str, place: int, start: int | None = None) -> None:
        """Tie one axis of a module's tensor to the variables of `axis`; freeze them where the sizes do not fit.

        A tensor that the module does not have (no bias) is passed over, and so is an axis without variables.

        Args:
            axis: the variables, laid end to end.
            role, module, tensor, place: see `Member`.
            start: where on the tensor's axis they begin, if they fill a part of it; None: they fill it.
        """
        value = getattr(self.model.get_submodule(module), tensor, None)
        if value is None or not axis.variables:
            return
        block, rest = divmod(value.shape[place], sum(self.sizes(axis))) if start is None else (1, 0)
        if rest or (block != 1 and axis.kind != "flat"):
            self.freeze(axis)
            return
        start = start or 0
        for variable, size in zip(axis.variables, self.sizes(axis), strict=True):
            self._members.append((variable, Member(role, module, tensor, place, start, block)))
            start += size * block

    def groups(self) -> list[Group]:
        """Return the classes of tied variables that are produced and consumed and nowhere frozen."""
        frozen = {self.find(variable) for variable in self._frozen}
        offset = {self.find(variable) for variable in self._offset}
        found: dict[int, list[Member]] = {}
        for variable, member in self._members:
            root = self.find(variable)
            if root not in frozen:
                found.setdefault(root, []).append(member)
        return [
            Group(self._size[root], tuple(members), root not in offset)
            for root, members in found.items()
            if {"producer", "consumer"} <= {member.role for member in members}
        ]
