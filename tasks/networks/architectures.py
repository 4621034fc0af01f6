"""Architectures by key. Every image network takes pixels in [0, 1] and normalises them itself, as its first module."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from assay.tasks.networks.classic import MLP, LeNet5, MiniCNN
from assay.tasks.networks.deep import VGG16, AlexNet
from assay.tasks.networks.mobile import MobileNetV2, ShuffleNetV2
from assay.tasks.networks.parts import Normalize, Shape
from assay.tasks.networks.plain import DIGIT, INGRAIN, INGRAIN_STUDENT, SMALL, TRAFFIC, ConvNet, DeepID, Plan
from assay.tasks.networks.residual import PreResNet, ResNet
from assay.tasks.networks.text import LSTM, TextCNN
from assay.tasks.registry import Registry

__all__ = ["ARCHITECTURES", "Builder", "Normalize", "Shape", "kind_of", "register_architecture"]

Builder = Callable[..., nn.Module]
"""Called with (shape, classes, normalize) for images, with ((length,), classes, vocabulary size) for text."""

_RESNET18 = ((64, 128, 256, 512), (2, 2, 2, 2))


def _mlp(*widths: int, dropout: float = 0.5) -> Builder:
    return lambda shape, classes, normalize: MLP(shape, classes, normalize, widths, dropout)


def _plain(plan: Plan) -> Builder:
    return lambda shape, classes, normalize: ConvNet(shape, classes, normalize, plan)


ARCHITECTURES: Registry[Builder] = Registry(
    "architecture",
    {
        "alexnet": AlexNet,
        "alexnet-bn": lambda shape, classes, normalize: AlexNet(shape, classes, normalize, norm=True),
        "cnn-3conv2fc": _plain(INGRAIN_STUDENT),
        "cnn-4conv2fc": _plain(INGRAIN),
        "cnn-mini": MiniCNN,
        "conv2-fc2": _plain(DIGIT),
        "conv6-fc3": _plain(TRAFFIC),
        "conv6-fc3-half": _plain(TRAFFIC.times(1 / 2)),
        "convnet-p": _plain(SMALL),
        "convnet-p-half": _plain(SMALL.times(1 / 2)),
        "convnet-p-quarter": _plain(SMALL.times(1 / 4)),
        "convnet-p-wide": _plain(SMALL.times(2)),
        "deepid": DeepID,
        "lenet5": LeNet5,
        "lstm": LSTM,
        "mlp-1200x2": _mlp(1200, 1200),
        "mlp-256x2": _mlp(256, 256, dropout=0),
        "mlp-300x2": _mlp(300, 300),
        "mlp-400x2": _mlp(400, 400),
        "mlp-800x2": _mlp(800, 800),
        "mobilenetv2": MobileNetV2,
        "preresnet20": lambda shape, classes, normalize: PreResNet(shape, classes, normalize, (16, 32, 64), 3),
        "resnet18": lambda shape, classes, normalize: ResNet(shape, classes, normalize, *_RESNET18),
        "resnet18-nobn": lambda shape, classes, normalize: ResNet(shape, classes, normalize, *_RESNET18, norm=False),
        "resnet8": lambda shape, classes, normalize: ResNet(shape, classes, normalize, (16, 32, 64), (1, 1, 1)),
        "shufflenetv2": ShuffleNetV2,
        "textcnn": TextCNN,
        "vgg16": VGG16,
    },
)


_KINDS: dict[str, str] = {"lstm": "text", "textcnn": "text"}  # of architectures whose inputs are no images


def kind_of(key: str) -> str:
    """Return the kind of input that an architecture takes (`DatasetInfo.kind`)."""
    return _KINDS.get(key, "image")


def register_architecture(key: str, builder: Builder, kind: str = "image") -> None:
    """Add an architecture: `builder(shape, classes, normalize)` returns a network whose first module is `normalize`.

    Args:
        key: its key, the second half of the tasks' keys.
        builder: draws the initial weights from torch's global generator, which the caller seeds. For kind `text` it is
            called with the number of tokens `(L,)`, the classes and the vocabulary's size; token 0 is padding.
        kind: what it takes; it is paired with the data sets of that kind.

    Raises:
        BadInput: the key is taken by another architecture.
    """
    ARCHITECTURES.register(key, builder)
    if kind != "image":
        _KINDS[key] = kind
