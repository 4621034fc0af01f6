"""The channel-coupling graph: which slices of which tensors must be reordered, scaled or removed together.

Every channel axis of a network is a variable; operations tie, separate or freeze variables. A group is a class of tied
variables with its producers (rows), carriers (batch norm, PReLU, depthwise) and consumers (columns). The graph comes
from symbolic tracing; whatever the tracer does not know freezes what it touches, so an unknown operation costs reach,
never correctness. Channel shuffles, splits and channel padding are such operations: the streams through them stay,
the inner channels of their blocks are free.
"""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from assay.attacks.parts.channels import Group
from assay.attacks.parts.layers import apply_layer
from assay.attacks.parts.operations import apply_operation
from assay.attacks.parts.variables import Value, Variables
from assay.tasks.errors import UnsupportedModel


class _Builder:
    """Walks a traced network once."""

    def __init__(self, model: nn.Module, scaling: bool) -> None:
        self.graph = _trace(model)
        self.variables = Variables(model, scaling)
        self.values: dict[fx.Node, Value] = {}
        self.called: dict[str, tuple[Value, ...]] = {}
        self.shared = _shared_layers(model, self.graph)

    def build(self) -> list[Group]:
        for node in self.graph.nodes:
            self.values[node] = self._visit(node)
        return self.variables.groups()

    def _visit(self, node: fx.Node) -> Value:
        inputs = [self.values[source] for source in node.all_input_nodes]
        if node.op == "call_module":
            return self._module(str(node.target), inputs)
        if node.op in ("call_function", "call_method"):
            return apply_operation(self.variables, node, inputs)
        return self.variables.freeze(*inputs)  # logits keep their order; inputs and constants have no variables

    def _module(self, name: str, inputs: list[Value]) -> Value:
        trained = any(True for _ in self.variables.model.get_submodule(name).parameters())
        axis = inputs[0] if len(inputs) == 1 else None
        if trained and (name in self.called or name in self.shared):
            # A layer that is run twice reads and writes two variables at once.
            return self.variables.freeze(*inputs, *self.called.get(name, ()))
        if isinstance(axis, tuple) or len(inputs) > 1:
            return self.variables.freeze(*inputs)
        out = apply_layer(self.variables, name, axis)
        self.called[name] = (axis, out)
        return out


def _shared_layers(model: nn.Module, graph: fx.Graph) -> set[str]:
    """Return the names of layers with a parameter that another layer holds too or that is used outside its layer."""
    places = [(name, id(value)) for name, value in model.named_parameters(remove_duplicate=False)]
    count = Counter(value for _, value in places)
    outside = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    return outside | {name.rpartition(".")[0] for name, value in places if count[value] > 1}


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as why:
        raise UnsupportedModel(f"{type(model).__name__} cannot be traced symbolically: {why}") from why


def channel_groups(model: nn.Module) -> list[Group]:
    """Return the groups of channels that may be permuted or removed together, in the order of the forward pass.

    Raises:
        UnsupportedModel: the forward pass depends on values, so it cannot be traced.
    """
    return _Builder(model, scaling=False).build()


def scaling_groups(model: nn.Module) -> list[Group]:
    """Return the groups of channels that may be multiplied by a positive factor each, in the order of the forward pass.

    Finer than those that permute: a batch norm or a depthwise convolution reads one group and produces the next.

    Raises:
        UnsupportedModel: the forward pass depends on values, so it cannot be traced.
    """
    return _Builder(model, scaling=True).build()


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
