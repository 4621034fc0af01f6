"""What functions and methods do to the channel variables of their inputs.

`OPERATIONS` maps the name of an operation to its rule; others that treat every channel alike stand in the tables below
it. What is in none of them freezes its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from assay.attacks.parts.variables import Axis, Value, Variables

# Operations that treat every channel alike, by the lower-case name of function, method or module.
_HOMOGENEOUS = {  # f(δx) = δ f(x) for δ > 0
    "relu", "relu_", "leaky_relu", "leaky_relu_", "leakyrelu", "dropout", "dropout_", "identity", "clone", "contiguous",
    "detach", "float", "double", "mul", "imul", "neg", "div", "truediv",
}  # fmt: skip
_HOMOGENEOUS_ON_MAPS = {  # the same, where the channel axis must be followed by spatial ones
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "interpolate", "dropout1d", "dropout2d", "maxpool1d", "maxpool2d",
    "avgpool1d", "avgpool2d", "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptivemaxpool1d", "adaptivemaxpool2d",
    "upsample",
}  # fmt: skip
_KEEPS_ZERO = {"relu6", "hardswish", "silu", "gelu", "mish", "elu", "selu", "tanh", "softsign"}
_MOVES_ZERO = {"hardsigmoid", "hardtanh", "softplus", "sigmoid", "add", "iadd", "sub", "isub"}
_READS = {"size", "dim", "numel"}


def passes(variables: Variables, name: str, value: Value) -> Value:
    """Return what is known behind an operation on one input that has no rule of its own."""
    axis = value if isinstance(value, Axis) else None
    if axis and (name in _HOMOGENEOUS or (name in _HOMOGENEOUS_ON_MAPS and axis.kind == "map")):
        return axis
    if axis and (name in _KEEPS_ZERO or name in _MOVES_ZERO):
        return variables.passes_unscaled(axis, zero=name in _KEEPS_ZERO)
    return variables.freeze(value)


def flatten(variables: Variables, axis: Axis | None, whole: bool) -> Axis | None:
    """Return the axis behind flattening; `whole`: from the channel axis to the last one."""
    if axis is None and whole:
        return Axis((), "flat")
    if axis is None or not whole or axis.kind in ("sequence", "last"):
        return variables.freeze(axis)
    return Axis(axis.variables, "flat") if axis.kind == "map" else axis


def _flatten(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    start, end = _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
    return flatten(variables, _only(variables, values), (start, end) == (1, -1))


def _view(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Pass `x.view(x.size(0), -1)`; other shapes mix channels."""
    axis = values[0] if isinstance(values[0], Axis) else None
    whole = len(node.args) == 3 and _is_batch(node.args[1]) and node.args[2:] == (-1,)
    return flatten(variables, axis, whole)


def _is_batch(size: Any) -> bool:
    """Return whether a number in the graph is the batch's size: `x.size(0)`, `x.shape[0]` or `x.size()[0]`."""
    if not isinstance(size, fx.Node) or size.args[1:] != (0,):
        return False
    if operation(size) == "size":
        return True
    source = size.args[0]
    return operation(size) == "getitem" and isinstance(source, fx.Node) and _is_shape(source)


def _is_shape(node: fx.Node) -> bool:
    return operation(node) == "size" or (operation(node) == "getattr" and node.args[1:] == ("shape",))


def _reduce(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Pass a mean, sum or maximum over spatial axes, or over the positions of a sequence."""
    axis, dims = _only(variables, values), _argument(node, 1, "dim", ())
    dims = (dims,) if isinstance(dims, int) else dims if isinstance(dims, (tuple, list)) else ()
    if axis is None or not dims or axis.kind not in ("map", "sequence"):
        return variables.freeze(axis)
    rank, places = (3, {1}) if axis.kind == "sequence" else (2 + axis.spatial, {*range(2, 2 + axis.spatial)})
    gone = {_forward(dim, rank) for dim in dims}
    if not gone <= places:
        return variables.freeze(axis)
    if _argument(node, 2, "keepdim", False):
        return axis
    return Axis(axis.variables, "vector") if gone == places else Axis(axis.variables, "map", axis.spatial - len(gone))


def _maximum(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Pass the values of `x.max(dim)`; the positions, its second result, know no channels' names."""
    return _reduce(variables, node, values), None


def _item(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Pass an element of a tuple, one position of a sequence, spatial slices, and new spatial axes of a vector."""
    value, index = values[0], node.args[1]
    if isinstance(value, tuple):
        return value[index] if isinstance(index, int) and -len(value) <= index < len(value) else variables.freeze(value)
    if value is None or len(values) > 1 or not isinstance(index, tuple) or index[:1] != (slice(None),):
        return variables.freeze(value)
    rest = index[1:]
    if value.kind == "sequence" and len(rest) in (1, 2) and rest[1:] in ((), (slice(None),)):
        if isinstance(rest[0], int):
            return Axis(value.variables, "vector")
        return value if isinstance(rest[0], slice) else variables.freeze(value)
    if rest[:1] == (slice(None),) and value.kind == "vector" and all(entry is None for entry in rest[1:]):
        return Axis(value.variables, "map", len(rest) - 1) if len(rest) > 1 else value
    if rest[:1] == (slice(None),) and value.kind == "map" and all(isinstance(entry, slice) for entry in rest[1:]):
        return value
    return variables.freeze(value)


def _attribute(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    name = str(node.args[1])
    if name == "values" and isinstance(values[0], tuple):
        return values[0][0]
    return None if name in ("shape", "device", "dtype") else variables.freeze(*values)


def _transpose(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Pass between (N, L, C) and (N, C, L)."""
    axis = _only(variables, values)
    dims: tuple[Any, ...] = node.args[1:]
    dims = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    swaps = all(isinstance(dim, int) for dim in dims) and [_forward(dim, 3) for dim in dims] in (
        [1, 2],
        [2, 1],
        [0, 2, 1],
    )
    if axis and swaps and axis.kind == "sequence":
        return Axis(axis.variables, "map", 1)
    if axis and swaps and axis.kind == "map" and axis.spatial == 1:
        return Axis(axis.variables, "sequence")
    return variables.freeze(axis)


def _squeeze(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    axis, dim = _only(variables, values), _argument(node, 1, "dim", None)
    if axis and axis.kind == "sequence" and dim in (1, -2):
        return Axis(axis.variables, "vector")
    if axis and axis.kind == "map" and isinstance(dim, int) and _forward(dim, 2 + axis.spatial) >= 2:
        return Axis(axis.variables, "map" if axis.spatial > 1 else "vector", axis.spatial - 1)
    return variables.freeze(axis)


def _unsqueeze(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    axis, dim = _only(variables, values), _argument(node, 1, "dim", None)
    spatial = axis.spatial if axis and axis.kind in ("map", "vector") else None
    if axis and spatial is not None and isinstance(dim, int) and _forward(dim, 3 + spatial) >= 2:
        return Axis(axis.variables, "map", spatial + 1)
    return variables.freeze(axis)


def _gather(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Pass positions picked out of a sequence, `x.gather(1, index.view(-1, l, 1).expand(-1, l, c))`.

    The index must be one expanded along the channels: then every channel is picked at the same position.
    """
    axis = values[0] if isinstance(values[0], Axis) else None
    index = node.args[2] if len(node.args) == 3 else None
    source = index.args[0] if isinstance(index, fx.Node) and operation(index) == "expand" else None
    one = isinstance(source, fx.Node) and operation(source) in ("view", "reshape") and source.args[3:] == (1,)
    if axis and axis.kind == "sequence" and node.args[1] == 1 and one:
        return axis
    return variables.freeze(*values)


def _concatenate(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    dim = _argument(node, 1, "dim", 0)
    parts = [value for value in values if isinstance(value, Axis)]
    listed = node.args[0] if node.args else node.kwargs.get("tensors")
    shapes = {(axis.kind, axis.spatial) for axis in parts}
    # all_input_nodes names a part that is listed twice only once.
    complete = isinstance(listed, (list, tuple)) and len(parts) == len(listed)
    if not complete or len(shapes) != 1 or (kind := parts[0].kind) == "flat":
        return variables.freeze(*values)
    places = {"map": (1, -1 - parts[0].spatial), "vector": (1, -1), "sequence": (2, -1), "last": (-1,)}[kind]
    if dim not in places:
        return variables.freeze(*values)
    return Axis(tuple(variable for axis in parts for variable in axis.variables), kind, parts[0].spatial)


def _sum(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    pair = _pair(variables, node, values)
    if pair is None:
        return _alone(variables, node, values)
    variables.union(*pair)
    return pair[0]


def _product(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Tie the channels of a gate and of what it gates; a gate is never scaled, so the product scales as the rest."""
    pair = _pair(variables, node, values)
    if pair is None:
        return _alone(variables, node, values)
    if not variables.scaling:
        variables.union(*pair)
        return pair[0]
    gated, gate = pair if pair[0].spatial else (pair[1], pair[0])
    variables.freeze(gate)
    return gated


def _quotient(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    if _pair(variables, node, values) is not None:
        return variables.freeze(*values)
    return _alone(variables, node, values)


def _pair(variables: Variables, node: fx.Node, values: list[Value]) -> tuple[Axis, Axis] | None:
    """Return the two axes that an operation joins channel by channel; freeze them and return None where it does not."""
    operands = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, fx.Node)]
    if len(operands) != 2:
        return None
    a, b = values[0], values[-1]  # one and the same where an activation meets itself
    if isinstance(a, Axis) and isinstance(b, Axis):
        shapes = [(axis.kind, axis.spatial, variables.sizes(axis)) for axis in (a, b)]
        if shapes[0] == shapes[1]:
            return a, b
    variables.freeze(a, b)
    return None


def _alone(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Pass an operation between an activation and a number; two activations that do not pair are frozen by then."""
    first = node.args[0] if node.args else None
    name = operation(node)
    if len(values) != 1 or (not isinstance(first, fx.Node) and name in ("div", "truediv")):
        return variables.freeze(*values)
    return passes(variables, name, values[0])


def operation(node: fx.Node) -> str:
    """Return the lower-case name of a function or method."""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def _only(variables: Variables, values: list[Value]) -> Axis | None:
    """Return the one input's axis; freeze whatever else there is."""
    if len(values) == 1 and isinstance(values[0], Axis):
        return values[0]
    return variables.freeze(*values)


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _forward(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


OPERATIONS: Mapping[str, Callable[[Variables, fx.Node, list[Value]], Value]] = {
    "add": _sum,
    "amax": _reduce,
    "cat": _concatenate,
    "concat": _concatenate,
    "div": _quotient,
    "flatten": _flatten,
    "gather": _gather,
    "getattr": _attribute,
    "getitem": _item,
    "iadd": _sum,
    "imul": _product,
    "isub": _sum,
    "max": _maximum,
    "mean": _reduce,
    "mul": _product,
    "permute": _transpose,
    "reshape": _view,
    "squeeze": _squeeze,
    "sub": _sum,
    "sum": _reduce,
    "transpose": _transpose,
    "truediv": _quotient,
    "unsqueeze": _unsqueeze,
    "view": _view,
}


def apply_operation(variables: Variables, node: fx.Node, values: list[Value]) -> Value:
    """Return what is known of the result of a call of a function or method."""
    name = operation(node)
    if name in _READS:
        return None
    if (rule := OPERATIONS.get(name)) and values:
        return rule(variables, node, values)
    return passes(variables, name, values[0]) if len(values) == 1 else variables.freeze(*values)
