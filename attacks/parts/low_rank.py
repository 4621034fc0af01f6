"""Low-rank factors of a convolution: two small ones in a row that do the work of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

Scheme = Literal["spatial", "channel"]


class Factors(nn.Sequential):
    """Convolutions in a row that stand for one.

    Attributes:
        geometry: stride, padding and dilation of the one.
    """

    def __init__(self, layers: Sequence[nn.Module], whole: nn.Conv2d | Factors) -> None:
        super().__init__(*layers)
        own = whole.geometry if isinstance(whole, Factors) else (whole.stride, whole.padding, whole.dilation)
        self.geometry: tuple[Any, Any, Any] = own

    def convolutions(self) -> list[nn.Conv2d]:
        """Return them in order."""
        return [layer for layer in self if isinstance(layer, nn.Conv2d)]


def full_rank(layer: nn.Conv2d, scheme: Scheme) -> int:
    """Return the rank at which the factors reproduce every weight."""
    outputs, inputs, height, width = layer.weight.shape
    return min(inputs * height, outputs * width) if scheme == "spatial" else min(outputs, inputs * height * width)


def rank_for(layer: nn.Conv2d, scheme: Scheme, speedup: float) -> int:
    """Return the rank that needs 1/speedup of the multiplications (stride 1): at least 1, at most the full one.

    For d×d kernels the spatial scheme gives ⌊N·C·d / (s·(N+C))⌋, the channel scheme ⌊N·C·d² / (s·(C·d²+N))⌋.
    """
    outputs, inputs, height, width = layer.weight.shape
    whole = outputs * inputs * height * width
    each = inputs * height + outputs * width if scheme == "spatial" else inputs * height * width + outputs
    return max(1, min(int(whole / (speedup * each)), full_rank(layer, scheme)))


def spatial_factors(layer: nn.Conv2d, rank: int) -> Factors:
    """Return a column of filters followed by a row of filters (Jaderberg et al. 2014, scheme 2).

    W[n,c,y,x] is read as M[(c,y),(x,n)]; its SVD is cut at `rank`, and each factor takes the root of the singular
    values. The first factor has no bias: zero padding of its outputs would not commute with one.
    """
    outputs, inputs, height, width = layer.weight.shape
    matrix = layer.weight.detach().double().permute(1, 2, 3, 0).reshape(inputs * height, width * outputs)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    first = (left[:, :rank] * roots).T.reshape(rank, inputs, height, 1)
    second = (roots[:, None] * right[:rank]).reshape(rank, width, outputs).permute(2, 0, 1).unsqueeze(2)
    pad = layer.padding
    pads = (pad, pad) if isinstance(pad, str) else ((pad[0], 0), (0, pad[1]))
    (down, across), (tall, wide) = layer.stride, layer.dilation
    column = _convolution(first, (down, 1), pads[0], (tall, 1), None)
    row = _convolution(second, (1, across), pads[1], (1, wide), layer.bias)
    return Factors((column, row), layer).to(layer.weight)


def channel_factors(layer: nn.Conv2d, rank: int, responses: tuple[Tensor, Tensor] | None = None) -> Factors:
    """Return fewer filters of the same size followed by a 1×1 convolution (Zhang et al. 2015, the linear case).

    Args:
        layer: the convolution.
        rank: of its weights as a matrix (N, C·d·d).
        responses: mean ȳ (N,) and covariance (N, N) of its outputs on data; None: the weights' own singular vectors.
    """
    outputs, inputs, height, width = layer.weight.shape
    matrix = layer.weight.detach().double().reshape(outputs, -1)
    bias = None if layer.bias is None else layer.bias.detach().double()
    if responses is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        roots = values[:rank].sqrt()
        wide, thin = left[:, :rank] * roots, roots[:, None] * right[:rank]
    else:
        mean, covariance = (value.to(matrix) for value in responses)
        wide = torch.linalg.eigh(covariance)[1].flip(1)[:, :rank]  # P: the directions of largest variance
        thin = wide.T @ matrix
        # y ≈ P Pᵀ (y - ȳ) + ȳ with y = Wx + b, so the constant is P Pᵀ (b - ȳ) + ȳ.
        bias = wide @ (wide.T @ ((0 if bias is None else bias) - mean)) + mean
    few = _convolution(thin.reshape(rank, inputs, height, width), layer.stride, layer.padding, layer.dilation, None)
    mixed = _convolution(wide.reshape(outputs, rank, 1, 1), 1, 0, 1, bias)
    return Factors((few, mixed), layer).to(layer.weight)


def recompose(factors: Factors) -> nn.Conv2d:
    """Return the one convolution that factors in a row amount to; computed in float64."""
    layers = factors.convolutions()
    weight = layers[0].weight.detach().double()
    for layer in layers[1:]:
        # W[n,c,y,x] = Σ_r second[n,r,y'',x''] first[r,c,y',x'], where along each axis one of the two has a single tap
        weight = torch.einsum("nrab,rcyx->ncyaxb", layer.weight.detach().double(), weight).flatten(4).flatten(2, 3)
    return _convolution(weight, *factors.geometry, layers[-1].bias).to(layers[0].weight)


def _convolution(weight: Tensor, stride: Any, padding: Any, dilation: Any, bias: Tensor | None) -> nn.Conv2d:
    """Return a convolution with these values, on the CPU in float64, without drawing initial ones."""
    outputs, inputs, *kernel = weight.shape
    sizes = (inputs, outputs, tuple(kernel), stride, padding, dilation)
    layer = skip_init(nn.Conv2d, *sizes, bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer
