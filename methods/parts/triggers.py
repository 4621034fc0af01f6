"""Trigger images made from nothing but a random stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COMPONENTS = 8
HIGHEST_FREQUENCY = 6


def waves(amplitude: Tensor, k: Tensor, l: Tensor, phase: Tensor, height: int, width: int) -> Tensor:  # noqa: E741
    """Return images that are sums of plane waves, each image scaled to [0, 1].

    `g(u, v) = sum_m a_m cos(2 pi (k_m u + l_m v) + phi_m)` at pixel centres `u = (column + 1/2) / width`,
    `v = (row + 1/2) / height`.

    Args:
        amplitude, k, l, phase: float (n, C, components); frequencies in periods per image, phases in radians.
        height, width: size of the images.

    Returns:
        float32 (n, C, height, width).
    """
    u = (torch.arange(width) + 0.5) / width
    v = (torch.arange(height) + 0.5) / height
    across = 2 * math.pi * k.unsqueeze(-1) * u + phase.unsqueeze(-1)  # (n, C, M, width)
    down = 2 * math.pi * l.unsqueeze(-1) * v
    weight = amplitude.unsqueeze(-1)
    # cos(a + d) = cos a cos d - sin a sin d makes the sum over components two matrix products.
    image = torch.einsum("ncmh,ncmw->nchw", down.cos(), weight * across.cos())
    image = image - torch.einsum("ncmh,ncmw->nchw", down.sin(), weight * across.sin())
    low = image.amin((1, 2, 3), keepdim=True)
    span = image.amax((1, 2, 3), keepdim=True) - low
    return (image - low) / span.clamp_min(1e-12)


def abstract_images(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw smooth abstract pictures, unrelated to any data set: float32 (count, C, H, W) in [0, 1]."""
    channels, height, width = shape
    size = (count, channels, COMPONENTS)
    amplitude = 0.2 + 0.8 * torch.rand(size, generator=generator)
    k, l = (  # noqa: E741
        torch.randint(-HIGHEST_FREQUENCY, HIGHEST_FREQUENCY + 1, size, generator=generator).float() for _ in range(2)
    )
    phase = 2 * math.pi * torch.rand(size, generator=generator)
    return waves(amplitude, k, l, phase, height, width)
