"""Which weight tensor carries a white-box mark, and how it is read by its plain name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from assay.tasks.errors import UnsupportedModel, nearest

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def weight_names(model: nn.Module) -> dict[str, list[str]]:
    """Return plain names of the weight tensors that can carry bits, by kind of layer and in module order.

    Kinds: `convolution`, `recurrent` (input weights of the first level), `linear`.
    """
    names: dict[str, list[str]] = {"convolution": [], "recurrent": [], "linear": []}
    for name, module in model.named_modules():
        if isinstance(module, _CONVOLUTIONS):
            names["convolution"].append(f"{name}.weight")
        elif isinstance(module, _RECURRENT):
            names["recurrent"].append(f"{name}.weight_ih_l0")
        elif isinstance(module, nn.Linear):
            names["linear"].append(f"{name}.weight")
    return names


def carrier_name(model: nn.Module, layer: str) -> str:
    """Return the plain name of the weight tensor that `layer` means.

    Args:
        model: a plain network.
        layer: the name of a layer (`conv2`) or of its weight (`conv2.weight`), or `auto`: the second convolution in
            module order, in networks without convolutions the second recurrent or linear layer; the only one if there
            are no two.

    Raises:
        UnsupportedModel: there is no such layer.
    """
    kinds = weight_names(model)
    if layer == "auto":
        found = next((names for names in kinds.values() if names), [])
        if not found:
            raise UnsupportedModel("the network has no convolution, recurrent or linear layer to carry a mark")
        return found[min(1, len(found) - 1)]
    every = [name for names in kinds.values() for name in names]
    matching = [name for name in every if layer in (name, name.rpartition(".")[0])]
    if not matching:
        raise UnsupportedModel(f"no layer {layer!r}{nearest(layer, every)} (weights: {', '.join(every)})")
    return matching[0]


def carrier(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the weight tensor `name` of a suspect.

    Raises:
        UnsupportedModel: the suspect has no such tensor.
    """
    if name not in weights:
        raise UnsupportedModel(f"the suspect has no weight {name!r}")
    return weights[name]


def mean_filter(weight: Tensor) -> Tensor:
    """Return a weight tensor averaged over its first axis (output channels or stacked gates), flattened to (d,)."""
    return weight.mean(0).flatten()
