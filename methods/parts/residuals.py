"""Greedy residuals of weight tensors: pooling, greedy selection, hinge; "Eq." as in Liu, Weng, Zhu (ICML 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.tasks.errors import CapacityError, UnsupportedModel, nearest

_MOST_BITS, _FEWEST_BITS, _LONGEST_ROW = 256, 64, 253
_DENSE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def eligible_weights(model: nn.Module) -> dict[str, int]:
    """Return the tensors that can carry bits, plain name to size, in module order.

    Weights of convolutions, linear layers and recurrent layers; no biases, normalisation layers or embeddings.
    """
    sizes: dict[str, int] = {}
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            recurrent = isinstance(module, nn.RNNBase) and name.startswith(("weight_ih", "weight_hh"))
            if recurrent or (isinstance(module, _DENSE) and name == "weight"):
                sizes[f"{prefix}.{name}".lstrip(".")] = weight.numel()
    return sizes


@dataclass(frozen=True)
class Carriers:
    """The tensors that carry bits, and the form of their reading.

    Attributes:
        names, sizes, shapes: of the tensors.
        bits: b, the number of rows.
        row_len: b', their length.
        candidates: how many tensors of the network could have carried.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    bits: int
    row_len: int
    candidates: int


def choose(
    model: nn.Module, layers: tuple[str, ...], bits: int | None, row_len: int | None, *, truncate: bool = False
) -> Carriers:
    """Return the carriers that a configuration means in a network.

    Args:
        model: a plain network.
        layers: names of layers or of their weights, or `auto` alone: the first tensor in module order with four
            weights per bit or more, in networks without any the largest.
        bits: None: 256 in a carrier of 1,024 weights or more, else 64.
        row_len: None: as long as the smallest carrier fills, at most 253.
        truncate: weights are cut to a multiple of the row's length.

    Raises:
        UnsupportedModel: there is no such layer.
        CapacityError: a carrier has fewer than two weights per bit, so that bits would share weights.
    """
    sizes = eligible_weights(model)
    if not sizes:
        raise UnsupportedModel("the network has no convolution, recurrent or linear layer to carry bits")
    names = () if layers == ("auto",) else tuple(_named(layer, sizes) for layer in layers)
    room = min(sizes[name] for name in names) if names else max(sizes.values())
    count = bits or (_MOST_BITS if room >= 4 * _MOST_BITS else _FEWEST_BITS)
    if not names:
        roomy = [name for name, size in sizes.items() if size >= 4 * count]
        names = (roomy[0] if roomy else max(sizes, key=lambda name: sizes[name]),)
    length = row_len or max(1, min(_LONGEST_ROW, min(sizes[name] for name in names) // count))
    for name in names:
        used = sizes[name] // length * length if truncate else sizes[name]
        if used < 2 * count:
            raise CapacityError(f"{count} bits need {2 * count} weights; {name} has {used}: lower bits")
    shapes = tuple(tuple(model.get_parameter(name).shape) for name in names)
    return Carriers(names, tuple(sizes[name] for name in names), shapes, count, length, len(sizes))


def _named(layer: str, sizes: Mapping[str, int]) -> str:
    found = [name for name in sizes if layer in (name, name.rpartition(".")[0])]
    if not found:
        raise UnsupportedModel(f"no layer {layer!r}{nearest(layer, sizes)} (weights: {', '.join(sizes)})")
    return found[0]


@lru_cache(maxsize=32)
def widths(inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return how many inputs each output averages: sigma (outputs,), on a device, in a type (Eq. 7)."""
    t = torch.arange(outputs, device=device)
    return (-(-(t + 1) * inputs // outputs) - t * inputs // outputs).to(dtype)


class _Pool(torch.autograd.Function):
    """One-dimensional adaptive average pooling with a backward pass that is deterministic on every device.

    The library's own adds into shared cells in any order on a GPU. Which outputs an input went into is again a bin of
    adaptive pooling, the other way round, so the transpose is a pooling as well.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, outputs: int) -> Tensor:
        ctx.inputs = len(w)
        return F.adaptive_avg_pool1d(w[None, None], outputs)[0, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        inputs, outputs = ctx.inputs, len(g)
        shares = g / widths(inputs, outputs, g.device, g.dtype)
        mean = F.adaptive_avg_pool1d(shares[None, None], inputs)[0, 0]
        return mean * widths(outputs, inputs, g.device, g.dtype), None


def extract(weight: Tensor, bits: int, row_len: int, *, truncate: bool = False) -> Tensor:
    """Return gamma (bits, row_len): the flattened weight averaged into d = bits * row_len cells (Eq. 5 to 7).

    With fewer than d weights cells repeat. `truncate` first cuts the weights to a multiple of `row_len`.
    """
    w = weight.flatten()
    if truncate:
        w = w[: len(w) // row_len * row_len]
    pooled: Tensor = _Pool.apply(w, bits * row_len)
    return pooled.view(bits, row_len)


def selected_count(row_len: int, eta: float) -> int:
    """Return kappa = floor(eta b'), at least 1: how many cells of a row are chosen."""
    return max(1, int(Fraction(str(eta)) * row_len))  # as a decimal: 0.7 of 90 is 63, in binary a little less


def selection(gamma: Tensor, eta: float) -> Tensor:
    """Return which cells of each row are among its largest by magnitude, bool (bits, row_len); ties: lower index."""
    magnitude = gamma.detach().abs()
    count = selected_count(gamma.shape[1], eta)
    # Stable, so that ties go to the lower index; few kernels, as every training step pays for each.
    chosen = magnitude.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(magnitude, dtype=torch.bool).scatter_(1, chosen, True)


def residuals(gamma: Tensor, eta: float) -> Tensor:
    """Return psi (bits,): the sum of the selected cells over the row's length, not over their number (Eq. 8)."""
    return (gamma * selection(gamma, eta)).sum(1) / gamma.shape[1]


def residuals_of(weights: Sequence[Tensor], form: Mapping[str, Any]) -> Tensor:
    """Return psi (bits,) of one or several layers, whose cells are averaged.

    Args:
        weights: the carriers.
        form: `bits`, `row_len`, `eta` and `truncate`.
    """
    cells = [extract(w, form["bits"], form["row_len"], truncate=form["truncate"]) for w in weights]
    return residuals(torch.stack(cells).mean(0) if len(cells) > 1 else cells[0], form["eta"])


def hinge(psi: Tensor, signs: Tensor, margin: float) -> Tensor:
    """Return sum_i max(0, mu - omega_i psi_i), a sum over bits (Eq. 2 without lambda)."""
    return F.relu(margin - signs * psi).sum()
