"""MobileNetV2 and ShuffleNetV2 for small images: students in the soft-label-perturbation paper.

The paper prints their parameter counts. With three poolings by stride instead of five, biases in the convolutions and
the stems below they come out exactly, as in the widespread CIFAR-100 collection of W. Wei.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.tasks.networks.parts import Normalize, Shape


def _conv(
    inputs: int, outputs: int, kernel: int, act: type[nn.Module] | None, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a padded convolution, its batch norm, and its activation if there is one."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups), nn.BatchNorm2d(outputs)]
    return [*layers, act()] if act else layers


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.body = nn.Sequential(
            *_conv(inputs, inner, 1, nn.ReLU6),
            *_conv(inner, inner, 3, nn.ReLU6, stride, groups=inner),
            *_conv(inner, outputs, 1, None),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return activations (N, outputs, H', W')."""
        return x + self.body(x) if self.adds else self.body(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (2,254,090 parameters for 3x32x32 and 10 classes, as the soft-label-perturbation paper prints).

    The stem is a 1x1 convolution with a border of one pixel. The last layer is dense on the pooled features, the same
    function as a 1x1 convolution on them.
    """

    def __init__(self, shape: Shape, classes: int, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        self.stem = nn.Sequential(nn.Conv2d(shape[0], 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        blocks: list[nn.Module] = [InvertedResidual(32, 16, 1, 1)]
        channels = 16
        for width, count, stride in ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 1), (320, 1, 1)):
            for block in range(count):
                blocks.append(InvertedResidual(channels, width, 1 if block else stride, 6))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*_conv(channels, 1280, 1, nn.ReLU6))
        self.fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        x = self.last(self.blocks(self.stem(self.normalize(x))))
        return self.fc(x.mean((2, 3)))


class ShuffleUnit(nn.Module):
    """Two branches side by side, then shuffled; one half of the channels passes unchanged where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.splits = stride == 1 and inputs == outputs
        own = half if self.splits else inputs
        self.body = nn.Sequential(
            *_conv(own, own, 1, nn.ReLU), *_conv(own, own, 3, None, stride, groups=own), *_conv(own, half, 1, nn.ReLU)
        )
        self.shortcut: nn.Module = nn.Identity()
        if not self.splits:
            self.shortcut = nn.Sequential(
                *_conv(inputs, inputs, 3, None, stride, groups=inputs), *_conv(inputs, half, 1, nn.ReLU)
            )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return activations (N, outputs, H', W')."""
        halves = x.chunk(2, 1) if self.splits else (x, x)
        return self.shuffle(torch.cat((self.shortcut(halves[0]), self.body(halves[1])), 1))


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 1x (1,268,646 parameters for 3x32x32 and 10 classes, as the soft-label-perturbation paper prints).

    The stem is a 3x3 convolution with batch norm and without ReLU.
    """

    def __init__(self, shape: Shape, classes: int, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        self.stem = nn.Sequential(*_conv(shape[0], 24, 3, None))
        units: list[nn.Module] = []
        channels = 24
        for width, count in ((116, 4), (232, 8), (464, 4)):
            for unit in range(count):
                units.append(ShuffleUnit(channels, width, 1 if unit else 2))
                channels = width
        self.units = nn.Sequential(*units)
        self.last = nn.Sequential(*_conv(channels, 1024, 1, nn.ReLU))
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        x = self.last(self.units(self.stem(self.normalize(x))))
        return self.fc(x.mean((2, 3)))
