"""LeNet-5, multi-layer perceptrons and the smallest network with batch norm."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.parts import Normalize, Shape


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling (61,706 parameters for 1x28x28 or 1x32x32 and 10 classes).

    Used by the function-coupled paper, which says LeNet-5 and prints no count.
    """

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
    """A multi-layer perceptron with ReLU and dropout after each hidden layer.

    Parameters for 1x28x28 and 10 classes: 2,395,210 with 1200-1200, dropout 0.5, the network of the ingrain paper
    (section 5.1), and 1,276,810 with 800-800, its student (section 5.3); neither count is printed. Ours for smaller
    machines: 478,410 (400-400), 328,810 (300-300), 269,322 (256-256, no dropout).
    """

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
