"""What each kind of layer does to the channel variables of its input: `LAYERS` maps a module's class to its rule.

A rule gets the variables, the layer's name, the layer and the axis of its input; it returns the axis of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from assay.attacks.parts.operations import flatten, passes
from assay.attacks.parts.variables import Axis, Kind, Value, Variables

Rule = Callable[[Variables, str, Any, Axis | None], Value]
_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def _dense(variables: Variables, name: str, layer: nn.Linear, axis: Axis | None) -> Value:
    if axis and axis.kind == "map":
        variables.freeze(axis)  # a dense layer along the last spatial axis
        axis = None
    if axis:
        variables.attach(axis, "consumer", name, "weight", 1)
    kind: Kind = "last" if axis is None else "vector" if axis.kind == "flat" else axis.kind
    return _produced(variables, name, ("weight", "bias"), Axis((variables.new(layer.out_features),), kind))


def _convolution(variables: Variables, name: str, layer: Any, axis: Axis | None) -> Value:
    if axis and axis.kind != "map":
        variables.freeze(axis)
        axis = None
    if layer.groups > 1:
        depthwise = axis and layer.groups == layer.in_channels == layer.out_channels
        return _per_channel(variables, name, axis, ()) if axis and depthwise else variables.freeze(axis)
    if axis:
        variables.attach(axis, "consumer", name, "weight", 1)
    out = Axis((variables.new(layer.out_channels),), "map", len(layer.kernel_size))
    return _produced(variables, name, ("weight", "bias"), out)


def _per_channel(variables: Variables, name: str, axis: Axis, statistics: tuple[str, ...]) -> Axis:
    """Rule of a layer with values per channel: an order runs through it, a factor ends here and another one begins.

    Args:
        variables, name, axis: as for every rule.
        statistics: its tensors that take over the incoming factor; none: the weight does (depthwise).
    """
    if not variables.scaling:
        for tensor in ("weight", "bias", *statistics):
            variables.attach(axis, "carrier", name, tensor, 0)
        return axis
    for tensor in statistics or ("weight",):
        variables.attach(axis, "consumer", name, tensor, 0)
    out = Axis(tuple(variables.new(size) for size in variables.sizes(axis)), axis.kind, axis.spatial)
    return _produced(variables, name, ("weight", "bias"), out)


def _batch_norm(variables: Variables, name: str, layer: Any, axis: Axis | None) -> Value:
    if axis is None or axis.kind not in ("map", "vector") or sum(variables.sizes(axis)) != layer.num_features:
        return variables.freeze(axis)
    if layer.running_var is None and variables.scaling:
        return variables.freeze(axis)  # it takes no statistics over
    out = _per_channel(variables, name, axis, ("running_mean", "running_var"))
    # Without gamma and beta, a channel that is zero before it is not behind it.
    return out if layer.affine or variables.scaling else variables.passes_unscaled(out, zero=False)


def _layer_norm(variables: Variables, name: str, layer: nn.LayerNorm, axis: Axis | None) -> Value:
    if axis is None or axis.kind not in ("vector", "sequence", "last") or len(layer.normalized_shape) != 1:
        return variables.freeze(axis)
    for tensor in ("weight", "bias"):
        variables.attach(axis, "carrier", name, tensor, 0)
    return variables.passes_unscaled(axis, zero=False)


def _slopes(variables: Variables, name: str, layer: nn.PReLU, axis: Axis | None) -> Value:
    if axis and layer.num_parameters > 1 and not variables.scaling:
        variables.attach(axis, "carrier", name, "weight", 0)
    return axis


def _embedding(variables: Variables, name: str, layer: Any, axis: Axis | None) -> Value:
    if layer.max_norm is not None:
        return None  # looking a row up rescales it
    return _produced(
        variables, name, ("weight",), Axis((variables.new(layer.embedding_dim),), "sequence"), place=1
    )  # fmt: skip


def _recurrent(variables: Variables, name: str, layer: Any, axis: Axis | None) -> Value:
    """Rule of LSTM, GRU and RNN: hidden unit h owns row h of every gate and column h of the recurrent weights.

    Gates saturate, so hidden units are permuted and never scaled. Returns (outputs, last states) as the layer does.
    """
    if not layer.batch_first or layer.proj_size or (axis and axis.kind != "sequence"):
        return variables.freeze(axis)
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    states: list[int] = []
    for level in range(layer.num_layers):
        units: list[int] = []
        for direction in directions:
            suffix = f"l{level}{direction}"
            if axis:
                variables.attach(axis, "consumer", name, f"weight_ih_{suffix}", 1)
            unit = Axis((variables.new(layer.hidden_size),), "vector")
            for gate in range(_GATES[type(layer)]):
                for tensor in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    start = gate * layer.hidden_size
                    variables.attach(unit, "producer", name, f"{tensor}_{suffix}", 0, start)
            variables.attach(unit, "consumer", name, f"weight_hh_{suffix}", 1)
            units += unit.variables
        states += units
        axis = Axis(tuple(units), "sequence")
        if variables.scaling:
            variables.freeze(axis)
    last = tuple(Axis((state,), "vector") for state in states)
    return axis, (last, last) if isinstance(layer, nn.LSTM) else last


def _flatten(variables: Variables, name: str, layer: nn.Flatten, axis: Axis | None) -> Value:
    return flatten(variables, axis, layer.start_dim == 1 and layer.end_dim == -1)


def _produced(variables: Variables, name: str, tensors: tuple[str, ...], axis: Axis, place: int = 0) -> Axis:
    for tensor in tensors:
        variables.attach(axis, "producer", name, tensor, place)
    return axis


LAYERS: Mapping[type[nn.Module], Rule] = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.Flatten: _flatten,
    nn.GRU: _recurrent,
    nn.LSTM: _recurrent,
    nn.LayerNorm: _layer_norm,
    nn.Linear: _dense,
    nn.PReLU: _slopes,
    nn.RNN: _recurrent,
}


def apply_layer(variables: Variables, name: str, axis: Axis | None) -> Value:
    """Return what is known behind the layer `name`; a layer without a rule passes by its name or freezes."""
    layer = variables.model.get_submodule(name)
    rule = LAYERS.get(type(layer))
    return rule(variables, name, layer, axis) if rule else passes(variables, type(layer).__name__.lower(), axis)
