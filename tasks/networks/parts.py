"""What the image networks share: the shape of an image, its normalisation, an initial law."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel; constants, not parameters."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Not persistent: the constants belong to the task, and a state dict then holds trained tensors only.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images (N, C, H, W)."""
        return (x - self.mean) / self.std


def he_init(model: nn.Module) -> None:
    """Draw the convolutions' weights from He et al.'s normal law, by their fan-out; biases stay as they are.

    Source: the greedy-residuals paper's public code. Without batch norm, torch's own law lets the signal die out.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
