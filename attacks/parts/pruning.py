"""Zeroing the smallest weights, in place: shared by the attacks that prune, whether or not they train afterwards."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from assay.attacks.parts.graph import logit_layer

Scope = Literal["global", "layer", "wrt", "all"]
"""What is ranked together.

global, layer: weights of dense and convolution layers, all together or each alone. For comparison only: wrt: every
floating entry of the state dict whose name lacks "bn", each alone, rounded up (SoK's toolkit); all: all parameters
together, batch norm included (DeepIPR's script).
"""

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def zero_smallest(tensors: list[Tensor], count: int) -> None:
    """Set the `count` entries of smallest magnitude over all tensors together to zero, in place.

    Ties go to the lower (tensor, flat index), so that larger counts zero supersets.
    """
    if not tensors:
        return
    order = torch.cat([tensor.flatten().abs() for tensor in tensors]).argsort(stable=True)
    gone = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    gone[order[:count]] = True
    for tensor, mask in zip(tensors, gone.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.masked_fill_(mask.view_as(tensor), 0)


def prune_weights(model: nn.Module, ratio: float, scope: Scope, *, skip_last: bool = False) -> list[Tensor]:
    """Zero the share `ratio` of the entries that `scope` names, in place; return the pruned tensors themselves.

    Args:
        model: a network in plain form.
        ratio: in [0, 1], meant in decimal: 0.29 of 100 entries are 29.
        scope: what is ranked together.
        skip_last: spare the layer that gives the logits; scopes `global` and `layer`.

    Raises:
        UnsupportedModel: `skip_last`, and the layer of the logits cannot be told.
    """
    tensors = _tensors(model, scope, skip_last)
    share = Fraction(str(ratio))
    rounded = math.ceil if scope == "wrt" else math.floor
    together = scope in ("global", "all")
    with torch.no_grad():
        for pool in [tensors] if together else [[tensor] for tensor in tensors]:
            zero_smallest(pool, rounded(share * sum(tensor.numel() for tensor in pool)))
    return tensors


def _tensors(model: nn.Module, scope: Scope, skip_last: bool) -> list[Tensor]:
    if scope == "all":
        return list(model.parameters())
    if scope == "wrt":
        entries = model.state_dict().items()
        return [value for name, value in entries if "bn" not in name and value.is_floating_point()]
    last = logit_layer(model) if skip_last else None
    layers = [m for name, m in model.named_modules() if isinstance(m, _WEIGHTED) and name != last]
    return [layer.weight for layer in layers]
