"""Plain convolutional networks: convolutions with ReLU, max pooling, dense layers; no normalisation layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.parts import Normalize, Shape


@dataclass(frozen=True)
class Plan:
    """The layers of a plain network.

    Attributes:
        convs: output channels of the convolutions, one tuple for each stage that ends in 2x2 max pooling.
        dense: widths of the hidden dense layers.
        kernel: side of the convolutions' kernels.
        padding: of the convolutions.
        dropout: share of activations dropped after each hidden dense layer.
    """

    convs: tuple[tuple[int, ...], ...]
    dense: tuple[int, ...]
    kernel: int
    padding: int
    dropout: float = 0.0

    def side(self, pixels: int) -> int:
        """Return the height or width of the last pooled maps for that of the image; below 1: the image is too small."""
        for stage in self.convs:
            pixels = (pixels + len(stage) * (2 * self.padding - self.kernel + 1)) // 2
        return pixels

    def times(self, factor: float) -> Plan:
        """Return the same layers with `factor` times as many channels and hidden units."""
        convs = tuple(tuple(int(channels * factor) for channels in stage) for stage in self.convs)
        dense = tuple(int(units * factor) for units in self.dense)
        return Plan(convs, dense, self.kernel, self.padding, self.dropout)


# The digit network of the null-embedding paper, table 10: convolutions of 5x5 without padding (the table gives none).
DIGIT = Plan(convs=((32,), (64,)), dense=(512,), kernel=5, padding=0)

# Its traffic-sign and object network, tables 12 and 13. Padded by one pixel: unpadded, as the tables can be read,
# nothing of a 32x32 image would be left to pool at the end.
TRAFFIC = Plan(convs=((32, 32), (64, 64), (128, 128)), dense=(512, 512), kernel=3, padding=1)

# The CIFAR-10 network of the ingrain paper, section 5.1. It cites the network of Papernot et al. 2016 (defensive
# distillation), whose convolutions have no padding.
INGRAIN = Plan(convs=((64, 64), (128, 128)), dense=(256, 256), kernel=3, padding=0, dropout=0.5)

# The student of that network, section 5.3. The paper names dropout for the teacher only.
INGRAIN_STUDENT = Plan(convs=((64, 64), (128,)), dense=(200, 200), kernel=3, padding=0)

# Net P, ours: the smallest network that tells on the claims at laptop scale.
SMALL = Plan(convs=((16,), (32,)), dense=(128,), kernel=5, padding=2)


class ConvNet(nn.Module):
    """A plain convolutional network, as its plan says.

    | key               | plan            | images  | classes | parameters |
    |-------------------|-----------------|---------|---------|------------|
    | conv2-fc2         | DIGIT           | 1x28x28 | 10      | 582,026    |
    | conv6-fc3         | TRAFFIC         | 3x48x48 | 43      | 2,931,531  |
    | conv6-fc3         | TRAFFIC         | 3x32x32 | 10      | 1,603,882  |
    | conv6-fc3-half    | TRAFFIC / 2     | 3x32x32 | 43      | 411,323    |
    | cnn-4conv2fc      | INGRAIN         | 3x32x32 | 10      | 1,147,978  |
    | cnn-3conv2fc      | INGRAIN_STUDENT | 3x32x32 | 10      | 1,076,586  |
    | convnet-p         | SMALL           | 1x28x28 | 10      | 215,370    |
    | convnet-p-wide    | 2 SMALL         | 1x28x28 | 10      | 857,738    |
    | convnet-p-half    | SMALL / 2       | 1x28x28 | 10      | 54,314     |
    | convnet-p-quarter | SMALL / 4       | 1x28x28 | 10      | 13,818     |

    No paper prints counts of these.
    """

    def __init__(self, shape: Shape, classes: int, normalize: Normalize, plan: Plan) -> None:
        """Build the layers of `plan`.

        Raises:
            UnsupportedModel: the images are too small for the convolutions and poolings.
        """
        super().__init__()
        rows, columns = plan.side(shape[1]), plan.side(shape[2])
        if min(rows, columns) < 1:
            least = next(pixels for pixels in count(1) if plan.side(pixels) >= 1)
            raise UnsupportedModel(
                f"{'-'.join(str(c) for stage in plan.convs for c in stage)} convolutions of {plan.kernel}x{plan.kernel}"
                f" need images of at least {least}x{least}, got {shape[1]}x{shape[2]}"
            )
        self.normalize = normalize
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage in plan.convs:
            for position, width in enumerate(stage, 1):
                layers.append(nn.Conv2d(channels, width, plan.kernel, padding=plan.padding))
                if position == len(stage):
                    layers.append(nn.MaxPool2d(2))
                # ReLU commutes with max pooling; after it, it costs a quarter.
                layers.append(nn.ReLU())
                channels = width
        self.features = nn.Sequential(*layers)
        sizes = (channels * rows * columns, *plan.dense)
        hidden: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            hidden += [nn.Linear(inputs, outputs), nn.ReLU()]
            if plan.dropout:
                hidden.append(nn.Dropout(plan.dropout))
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.head(self.hidden(self.features(self.normalize(x)).flatten(1)))


class DeepID(nn.Module):
    """The face network of the null-embedding paper, table 11 (601,643 parameters for 3x55x47 and 1,283 classes).

    Sun et al.'s DeepID: the last pooled maps and one more convolution on them are each mapped to 160 features, which
    are added. No padding, as in DeepID; the paper prints no count.
    """

    def __init__(self, shape: Shape, classes: int, normalize: Normalize) -> None:
        super().__init__()
        sides = tuple((((pixels - 3) // 2 - 2) // 2 - 2) // 2 for pixels in shape[1:])
        if min(sides) < 2:
            raise UnsupportedModel(f"deepid needs images of at least 31x31, got {shape[1]}x{shape[2]}")
        self.normalize = normalize
        self.conv1 = nn.Conv2d(shape[0], 20, 4)
        self.conv2 = nn.Conv2d(20, 40, 3)
        self.conv3 = nn.Conv2d(40, 60, 3)
        self.conv4 = nn.Conv2d(60, 80, 2)
        self.fc1 = nn.Linear(60 * sides[0] * sides[1], 160)
        self.fc2 = nn.Linear(80 * (sides[0] - 1) * (sides[1] - 1), 160)
        self.fc3 = nn.Linear(160, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        x = F.relu(F.max_pool2d(self.conv1(self.normalize(x)), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(F.max_pool2d(self.conv3(x), 2))
        y = F.relu(self.conv4(x))
        return self.fc3(F.relu(self.fc1(x.flatten(1)) + self.fc2(y.flatten(1))))
