"""Architectures by key. Every network takes pixels in [0, 1] and normalises them itself, as its first module."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.errors import UnsupportedModel
from tasks.registry import Registry

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


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling (61,706 parameters for 1x28x28 or 1x32x32 and 10 classes)."""

    def __init__(self, shape: Shape, classes: int, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        self.conv1 = nn.Conv2d(shape[0], 6, 5, padding=2 if shape[1] == 28 else 0)
        self.conv2 = nn.Conv2d(6, 16, 5)
        side = ((shape[1] + (4 if shape[1] == 28 else 0) - 4) // 2 - 4) // 2
        if shape[1] != shape[2] or side < 1:
            raise UnsupportedModel(f"lenet5 needs square inputs of at least 16x16, got {shape[1]}x{shape[2]}")
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        # ReLU commutes with max pooling; after it, it costs a quarter.
        x = F.relu(F.max_pool2d(self.conv1(self.normalize(x)), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class MLP(nn.Module):
    """A multi-layer perceptron with ReLU and dropout after each hidden layer."""

    def __init__(
        self, shape: Shape, classes: int, normalize: Normalize, widths: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.normalize = normalize
        sizes = (shape[0] * shape[1] * shape[2], *widths)
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.head(self.hidden(self.normalize(x).flatten(1)))


class MiniCNN(nn.Module):
    """Two conv-BN-ReLU-pool blocks and two dense layers (105,914 parameters for 1x28x28 and 10 classes)."""

    def __init__(self, shape: Shape, classes: int, normalize: Normalize) -> None:
        super().__init__()
        self.normalize = normalize
        self.conv1 = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32 * (shape[1] // 4) * (shape[2] // 4), 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(self.normalize(x))), 2))
        x = F.relu(F.max_pool2d(self.bn2(self.conv2(x)), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (identity, or a 1x1 projection)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return activations (N, outputs, H', W')."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network with the CIFAR stem: one 3x3 convolution, no pooling before the stages."""

    def __init__(
        self, shape: Shape, classes: int, normalize: Normalize, widths: tuple[int, ...], blocks: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.conv1 = nn.Conv2d(shape[0], widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stages.append(BasicBlock(channels, width, 2 if stage and not block else 1))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(self.normalize(x)))))
        return self.fc(x.mean((2, 3)))


Builder = Callable[[Shape, int, Normalize], nn.Module]

ARCHITECTURES: Registry[Builder] = Registry(
    "architecture",
    {
        "cnn-mini": MiniCNN,
        "lenet5": LeNet5,
        "mlp-1200x2": lambda shape, classes, norm: MLP(shape, classes, norm, (1200, 1200), 0.5),
        "mlp-800x2": lambda shape, classes, norm: MLP(shape, classes, norm, (800, 800), 0.5),
        "resnet8": lambda shape, classes, norm: ResNet(shape, classes, norm, (16, 32, 64), (1, 1, 1)),
        "resnet18": lambda shape, classes, norm: ResNet(shape, classes, norm, (64, 128, 256, 512), (2, 2, 2, 2)),
    },
)


_KINDS: dict[str, str] = {}  # of registered architectures whose inputs are no images


def kind_of(key: str) -> str:
    """Return the kind of input that an architecture takes (`DatasetInfo.kind`)."""
    return _KINDS.get(key, "image")


def register_architecture(key: str, builder: Builder, kind: str = "image") -> None:
    """Add an architecture: `builder(shape, classes, normalize)` returns a network whose first module is `normalize`.

    Args:
        key: its key, the second half of the tasks' keys.
        builder: draws the initial weights from torch's global generator, which the caller seeds.
        kind: what it takes; it is paired with the data sets of that kind.

    Raises:
        BadInput: the key is taken by another architecture.
    """
    ARCHITECTURES.register(key, builder)
    if kind != "image":
        _KINDS[key] = kind
