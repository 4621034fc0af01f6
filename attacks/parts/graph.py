"""The channel-coupling graph: which slices of which tensors must be reordered, scaled or removed together.

Every channel axis of a network is a variable; operations tie, separate or freeze variables. A group is a class of tied
variables with its producers (rows), carriers (batch norm, PReLU, depthwise) and consumers (columns). The graph comes
from symbolic tracing; whatever the tracer does not know freezes what it touches, so an unknown operation costs reach,
never correctness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import fx, nn

from attacks.parts.channels import Group, Member, Role
from tasks.errors import UnsupportedModel


@dataclass(frozen=True)
class _Axis:
    """The channel axis of an activation: variables laid end to end.

    Kinds: `map` (N, C, …), `vector` (N, C), `flat` (N, C·H·W).
    """

    variables: tuple[int, ...]
    kind: Literal["map", "vector", "flat"]


class _Variables:
    """Union-find over channel variables."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.size: list[int] = []
        self.frozen: list[bool] = []
        self.stiff: list[bool] = []  # may be permuted, not scaled

    def new(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.frozen.append(False)
        self.stiff.append(False)
        return len(self.parent) - 1

    def find(self, variable: int) -> int:
        while self.parent[variable] != variable:
            variable = self.parent[variable]
        return variable

    def union(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        self.parent[b] = a
        self.frozen[a] |= self.frozen[b]
        self.stiff[a] |= self.stiff[b]


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Operations that treat every channel alike, by the lower-case name of function, method or module.
_PASSES = {
    "relu", "relu_", "leaky_relu", "leaky_relu_", "leakyrelu", "dropout", "dropout_", "identity", "clone", "contiguous",
    "detach", "float", "double", "mul", "imul", "neg",
}  # fmt: skip
_PASSES_MAPS = {  # the same, where the channel axis must be followed by spatial ones
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "interpolate", "dropout1d", "dropout2d", "maxpool1d", "maxpool2d",
    "avgpool1d", "avgpool2d", "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptivemaxpool1d", "adaptivemaxpool2d",
    "upsample",
}  # fmt: skip
_PASSES_UNSCALED = {
    "relu6", "hardswish", "hardsigmoid", "silu", "gelu", "mish", "elu", "softplus", "sigmoid", "tanh", "hardtanh",
    "add", "iadd", "sub", "isub", "div", "truediv",
}  # fmt: skip
_READS = {"size", "dim", "numel"}


class _Builder:
    """Walks a traced network once and collects members per variable."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.variables = _Variables()
        self.members: list[tuple[int, Member]] = []
        self.axes: dict[fx.Node, _Axis | None] = {}
        self.called: dict[str, tuple[_Axis | None, _Axis | None]] = {}

    def build(self) -> list[Group]:
        for node in _trace(self.model).nodes:
            self.axes[node] = self._visit(node)
        found: dict[int, list[Member]] = {}
        for variable, member in self.members:
            root = self.variables.find(variable)
            if not self.variables.frozen[root]:
                found.setdefault(root, []).append(member)
        return [
            Group(self.variables.size[root], tuple(members), not self.variables.stiff[root])
            for root, members in found.items()
            if {"producer", "consumer"} <= {member.role for member in members}
        ]

    # --- variables ---

    def _freeze(self, *axes: _Axis | None) -> None:
        for axis in axes:
            for variable in axis.variables if axis else ():
                self.variables.frozen[self.variables.find(variable)] = True

    def _stiffen(self, axis: _Axis | None) -> None:
        for variable in axis.variables if axis else ():
            self.variables.stiff[self.variables.find(variable)] = True

    def _total(self, axis: _Axis) -> int:
        return sum(self.variables.size[variable] for variable in axis.variables)

    def _attach(self, axis: _Axis, role: Role, module: str, tensor: str, place: int) -> None:
        """Tie one axis of a module's tensor to the variables of `axis`; freeze them where the sizes do not fit."""
        value = getattr(self.model.get_submodule(module), tensor)
        block, rest = divmod(value.shape[place], self._total(axis))
        if rest or (block != 1 and axis.kind != "flat"):
            self._freeze(axis)
            return
        start = 0
        for variable in axis.variables:
            self.members.append((variable, Member(role, module, tensor, place, start, block)))
            start += self.variables.size[variable] * block

    # --- operations ---

    def _visit(self, node: fx.Node) -> _Axis | None:
        inputs = [self.axes[source] for source in node.all_input_nodes]
        if node.op == "call_module":
            return self._module(str(node.target), inputs[0] if inputs else None)
        if node.op in ("call_function", "call_method"):
            return self._function(node, inputs)
        self._freeze(*inputs)  # logits keep their order; inputs and constants have no variables
        return None

    def _module(self, name: str, axis: _Axis | None) -> _Axis | None:
        module = self.model.get_submodule(name)
        if name in self.called and any(True for _ in module.parameters()):
            # A layer that is run twice reads and writes two variables at once.
            self._freeze(axis, *self.called[name])
            return None
        out = self._layer(name, module, axis)
        self.called[name] = (axis, out)
        return out

    def _layer(self, name: str, module: nn.Module, axis: _Axis | None) -> _Axis | None:
        if type(module) in (*_CONVOLUTIONS, nn.Linear):
            return self._linear(name, module, axis)
        per_channel = type(module) in _BATCH_NORMS or (isinstance(module, nn.PReLU) and module.num_parameters > 1)
        if per_channel and axis:
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, tensor, None) is not None:
                    self._attach(axis, "carrier", name, tensor, 0)
            return axis
        if isinstance(module, nn.Flatten):
            return self._flatten(axis, module.start_dim == 1 and module.end_dim == -1)
        if isinstance(module, nn.PReLU):
            return axis
        return self._passes(type(module).__name__.lower(), axis)

    def _linear(self, name: str, module: Any, axis: _Axis | None) -> _Axis | None:
        dense = isinstance(module, nn.Linear)
        groups = 1 if dense else module.groups
        if groups > 1:
            if axis and groups == module.in_channels == module.out_channels:
                self._stiffen(axis)  # scaling would have to end at this layer; permuting runs through it
                for tensor in ("weight", "bias"):
                    if getattr(module, tensor) is not None:
                        self._attach(axis, "carrier", name, tensor, 0)
                return axis
            self._freeze(axis)
            return None
        if axis and dense == (axis.kind == "map"):
            self._freeze(axis)  # a dense layer along the last spatial axis, or a convolution over something flat
            return None
        if axis:
            self._attach(axis, "consumer", name, "weight", 1)
        out = _Axis((self.variables.new(module.weight.shape[0]),), "vector" if dense else "map")
        for tensor in ("weight", "bias"):
            if getattr(module, tensor) is not None:
                self._attach(out, "producer", name, tensor, 0)
        return out

    def _flatten(self, axis: _Axis | None, whole: bool) -> _Axis | None:
        if axis is None or not whole:
            self._freeze(axis)
            return None
        return _Axis(axis.variables, "flat") if axis.kind == "map" else axis

    def _passes(self, name: str, axis: _Axis | None) -> _Axis | None:
        if name in _PASSES or (name in _PASSES_MAPS and axis and axis.kind == "map"):
            return axis
        if name in _PASSES_UNSCALED:
            self._stiffen(axis)
            return axis
        self._freeze(axis)
        return None

    def _function(self, node: fx.Node, inputs: list[_Axis | None]) -> _Axis | None:
        name = str(node.target) if isinstance(node.target, str) else node.target.__name__
        first = inputs[0] if inputs else None
        if name in _READS or (name == "getattr" and node.args[1:2] == ("shape",)):
            return None
        if name == "flatten":
            start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
            return self._flatten(first, bool(start == 1) and len(node.args) < 3 and "end_dim" not in node.kwargs)
        if name in ("view", "reshape"):
            return self._flatten(first, len(node.args) == 3 and bool(node.args[2] == -1))
        if name in ("mean", "sum", "amax"):
            return self._reduce(node, first)
        if name in ("cat", "concat"):
            return self._concatenate(node, inputs)
        if len(inputs) == 2 and name in ("add", "iadd", "sub", "isub", "mul", "imul", "truediv", "div"):
            return self._combine(name, *inputs)
        if len(inputs) == 1:
            return self._passes(name, first)
        self._freeze(*inputs)
        return None

    def _reduce(self, node: fx.Node, axis: _Axis | None) -> _Axis | None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = (dims,) if isinstance(dims, int) else tuple(dims) if isinstance(dims, (tuple, list)) else ()
        spatial = bool(dims) and (all(isinstance(dim, int) and dim >= 2 for dim in dims) or {*dims} == {-1, -2})
        if axis is None or axis.kind != "map" or not spatial:
            self._freeze(axis)
            return None
        keeps = bool(node.kwargs.get("keepdim", len(node.args) > 2 and node.args[2]))
        # Without shapes, mean(2) counts as removing the last spatial axis; a wrong guess only freezes.
        return axis if keeps or dims == (3,) else _Axis(axis.variables, "vector")

    def _concatenate(self, node: fx.Node, inputs: list[_Axis | None]) -> _Axis | None:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        parts = [axis for axis in inputs if axis is not None]
        kinds = {axis.kind for axis in parts}
        parts_listed = len(node.args[0]) if node.args and isinstance(node.args[0], (list, tuple)) else -1
        if dim != 1 or len(parts) != parts_listed or len(kinds) != 1 or "flat" in kinds:
            self._freeze(*inputs)
            return None
        return _Axis(tuple(variable for axis in parts for variable in axis.variables), kinds.pop())

    def _combine(self, name: str, a: _Axis | None, b: _Axis | None) -> _Axis | None:
        sizes = [[self.variables.size[v] for v in axis.variables] if axis else None for axis in (a, b)]
        if a is None or b is None or sizes[0] != sizes[1]:
            self._freeze(a, b)
            return None
        for left, right in zip(a.variables, b.variables, strict=True):
            self.variables.union(left, right)
        if name not in ("add", "iadd", "sub", "isub"):
            self._stiffen(a)
        return a


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as why:
        raise UnsupportedModel(f"{type(model).__name__} cannot be traced symbolically: {why}") from why


def channel_groups(model: nn.Module) -> list[Group]:
    """Return the groups of channels that may be permuted together, in the order of the forward pass.

    Raises:
        UnsupportedModel: the forward pass depends on values, so it cannot be traced.
    """
    return _Builder(model).build()


def logit_layer(model: nn.Module) -> str:
    """Return the name of the `nn.Linear` whose output is the network's output (dropout and the like aside).

    Raises:
        UnsupportedModel: the network cannot be traced, or its logits come from something else.
    """
    node = next(node for node in reversed(_trace(model).nodes) if node.op == "output")
    while True:
        sources = node.all_input_nodes
        if len(sources) != 1:
            raise UnsupportedModel(f"{type(model).__name__}: the logits do not come from a dense layer")
        node = sources[0]
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Linear):
            return str(node.target)
