"""AlexNet and VGG-16 for images of about 32x32."""

from __future__ import annotations

from torch import Tensor, nn

from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.parts import Normalize, Shape, he_init

# (channels, kernel, whether 2x2 max pooling follows), and channels per stage that ends in pooling.
_ALEXNET = ((64, 5, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class AlexNet(nn.Module):
    """AlexNet for 32x32 images (2,492,234 parameters for 3x32x32 and 10 classes; 2,493,386 with batch norm).

    Five convolutions and one dense layer, as in DeepIPR's public code (Fan et al. 2019), to which the greedy-residuals
    paper refers for its set-up; with batch norm, the convolutions have no biases. The papers print no count.
    """

    def __init__(self, shape: Shape, classes: int, normalize: Normalize, norm: bool = False) -> None:
        super().__init__()
        if min(shape[1:]) < 8:
            raise UnsupportedModel(f"alexnet needs images of at least 8x8, got {shape[1]}x{shape[2]}")
        self.normalize = normalize
        layers: list[nn.Module] = []
        channels = shape[0]
        for width, kernel, pools in _ALEXNET:
            layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm2d(width))
            if pools:
                layers.append(nn.MaxPool2d(2))
            # ReLU commutes with max pooling; after it, it costs a quarter.
            layers.append(nn.ReLU())
            channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * (shape[1] // 8) * (shape[2] // 8), classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.fc(self.features(self.normalize(x)).flatten(1))


class VGG16(nn.Module):
    """VGG-16 with batch norm and one dense layer (14,774,436 parameters for 3x32x32 and 100 classes).

    As in the public code of the function-coupled paper, whose text says VGG-16 only and prints no count; Simonyan and
    Zisserman's own has no batch norm and three dense layers. The convolutions keep their biases, as there.
    """

    def __init__(self, shape: Shape, classes: int, normalize: Normalize) -> None:
        super().__init__()
        if min(shape[1:]) < 32:
            raise UnsupportedModel(f"vgg16 needs images of at least 32x32, got {shape[1]}x{shape[2]}")
        self.normalize = normalize
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage in _VGG16:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.insert(-1, nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * (shape[1] // 32) * (shape[2] // 32), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.fc(self.features(self.normalize(x)).flatten(1))
