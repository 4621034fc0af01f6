"""Residual networks: basic blocks (He et al. 2016a) and pre-activation blocks (He et al. 2016b)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from assay.tasks.networks.parts import Normalize, Shape, he_init


def _norm(channels: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (identity, or a 1x1 projection).

    Without batch norm, the convolutions have biases.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not norm)
        self.bn1 = _norm(outputs, norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=not norm)
        self.bn2 = _norm(outputs, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=not norm), _norm(outputs, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Return activations (N, outputs, H', W')."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network with the CIFAR stem: one 3x3 convolution, no pooling before the stages.

    ResNet-18 has 11,173,962 parameters for 3x32x32 and 10 classes, as the soft-label-perturbation paper prints; without
    batch norm 11,169,162 (greedy-residuals paper, no count printed). ResNet-8, ours for the CPU, has 78,042.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        normalize: Normalize,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.conv1 = nn.Conv2d(shape[0], widths[0], 3, 1, 1, bias=not norm)
        self.bn1 = _norm(widths[0], norm)
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stages.append(BasicBlock(channels, width, 2 if stage and not block else 1, norm))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)
        if not norm:
            he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(self.normalize(x)))))
        return self.fc(x.mean((2, 3)))


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and ReLU; the shortcut takes the block's input as it is."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return activations (N, outputs, H', W')."""
        y = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(y))) + self.shortcut(x)


class PreResNet(nn.Module):
    """A residual network with pre-activation blocks and the CIFAR stem.

    PreResNet-20 has 272,282 parameters for 3x32x32 and 10 classes, as the soft-label-perturbation paper prints. That
    takes shortcuts of 1x1 convolutions without batch norm; He et al.'s parameter-free ones would leave 269,722.
    """

    def __init__(self, shape: Shape, classes: int, normalize: Normalize, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.normalize = normalize
        self.conv1 = nn.Conv2d(shape[0], widths[0], 3, 1, 1, bias=False)
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(PreActivationBlock(channels, width, 2 if stage and not block else 1))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        x = F.relu(self.bn(self.blocks(self.conv1(self.normalize(x)))))
        return self.fc(x.mean((2, 3)))
