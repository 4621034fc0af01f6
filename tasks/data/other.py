"""An attacker's other data: which data sets the papers pair, and fitting foreign images to a victim's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.tasks.data.sources import DATASETS, load, subset_order
from assay.tasks.data.splits import Labelled, stratified, validation_size
from assay.tasks.errors import BadInput

Noise = Literal["uniform", "gaussian"]
"""Pixels, each for itself: uniform over all 256 values, or normal around 1/2 with deviation 1/4, clipped."""

# Other tasks that stolen networks are turned to: CIFAR-10 to CIFAR-100 and MNIST, CIFAR-100 to Tiny ImageNet
# (function-coupled watermarks), between CIFAR and Caltech (greedy residuals), GTSRB to LISA (null embedding).
TRANSFER: Mapping[str, tuple[str, ...]] = {
    "caltech101": ("caltech256", "cifar10", "cifar100"),
    "caltech256": ("caltech101", "cifar10", "cifar100"),
    "cifar10": ("cifar100", "mnist", "caltech101", "caltech256"),
    "cifar100": ("tiny_imagenet", "cifar10", "caltech101", "caltech256"),
    "gtsrb": ("lisa",),
}
# What takes their place where a paper's data are rarely at hand, and for networks that no paper transfers.
TRANSFER_STAND_IN: Mapping[str, str] = {
    "cifar10": "tiny_imagenet_32", "fashion-mnist": "gtsrb", "gtsrb26": "gtsrb17", "mnist": "gtsrb",
}  # fmt: skip

# Queries from elsewhere: ImageNet and faces against a traffic-sign model (null embedding), and their stand-ins.
QUERIES: Mapping[str, tuple[str, ...]] = {"gtsrb": ("imagenet100", "youtube_faces")}
QUERIES_STAND_IN: Mapping[str, str] = {
    "cifar10": "tiny_imagenet_32", "cifar100": "gtsrb", "cifar5": "tiny_imagenet_32", "digits": "cifar10",
    "fashion-mnist": "cifar10", "gtsrb": "tiny_imagenet_32", "gtsrb17": "tiny_imagenet_32",
    "gtsrb26": "tiny_imagenet_32", "mnist": "cifar10", "tiny20": "gtsrb", "tiny_imagenet": "gtsrb",
    "tiny_imagenet_32": "gtsrb",
}  # fmt: skip

# Data sets that hold each other's images: to an attacker on one of them the other is the owner's data and the test set.
_SAME_IMAGES = ({"tiny_imagenet", "tiny_imagenet_32"},)

_CHUNK = 1000  # images resized at once, as float32
_GREY = (0.299, 0.587, 0.114)  # luminance of red, green and blue (ITU-R BT.601)


def shares_images(dataset: str, other: str) -> bool:
    """Return whether two data sets, known by their keys, hold the same images; a data set does with itself."""
    (one, own), (two, others) = (_place(key) for key in (dataset, other))
    if one == two:
        return own is None or others is None or bool(set(own) & set(others))
    return any({one, two} <= family for family in _SAME_IMAGES)


def _place(key: str) -> tuple[str, range | None]:
    """Return whose files a data set reads, and which of their labels; None: all."""
    info = DATASETS.get(key)
    return (info.part_of, info.labels) if info and info.part_of else (key, None)


def adapt(data: Labelled, shape: Sequence[int]) -> Labelled:
    """Return images as a network for `shape` takes them: resized (bilinear, antialiased), grey or colour as it expects.

    Args:
        data: images (N, C, H, W), uint8 or float32 in [0, 1]; the type is kept.
        shape: (C, H, W) with 1 or 3 channels.

    Raises:
        BadInput: either side is no image.
    """
    if data.inputs.dim() != 4 or len(shape) != 3:
        raise BadInput(
            f"inputs of shape {tuple(data.inputs.shape[1:])} cannot be turned into {tuple(shape)}: no images"
        )
    if tuple(data.inputs.shape[1:]) == tuple(shape):
        return data
    channels, size = shape[0], tuple(shape[1:])
    whole = data.inputs.dtype == torch.uint8
    done = []
    for part in torch.split(data.inputs, _CHUNK):
        images = _recoloured(part.float(), channels)
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        done.append(images.round().clamp(0, 255).to(torch.uint8) if whole else images)
    return replace(data, inputs=torch.cat(done))


def _recoloured(images: Tensor, channels: int) -> Tensor:
    own = images.shape[1]
    if own == channels:
        return images
    if {own, channels} != {1, 3}:
        raise BadInput(f"images of {own} channels cannot be turned into {channels} (allowed: 1 to 3 and 3 to 1)")
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor(_GREY, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def classes_of(data: Labelled, classes: Sequence[int]) -> Labelled:
    """Return the samples of some classes, in their order; `classes[i]` becomes class i."""
    table = torch.full((int(data.labels.max()) + 1 if len(data) else 1,), -1)
    for new, old in enumerate(classes):
        if old < len(table):
            table[old] = new
    labels = table.to(data.labels.device)[data.labels]
    return replace(data, labels=labels).take(torch.nonzero(labels >= 0).flatten())


def held_out(data: Labelled, generator: torch.Generator) -> tuple[Labelled, Labelled]:
    """Split off a validation part, stratified by class, of the size in docs/protocol.md §1; return (training, it)."""
    share = validation_size(len(data)) / max(len(data), 1)
    chosen, rest = (index.to(data.labels.device) for index in stratified(data.labels, share, generator, data.groups))
    return data.take(rest), data.take(chosen)


def noise_images(count: int, shape: Sequence[int], kind: Noise, generator: torch.Generator) -> Tensor:
    """Return uint8 images (count, *shape) of independent pixels, drawn from a CPU generator."""
    if kind == "uniform":
        return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    pixels = torch.randn(count, *shape, generator=generator).mul_(0.25).add_(0.5)
    return pixels.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def noise_tokens(count: int, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Return texts (count, length) of independent words, uniform over the ids but 0, which is padding."""
    return torch.randint(1, vocabulary, (count, length), generator=generator)


def untouched(dataset: str, root: Path | None, samples: int | None) -> Labelled:
    """Return the part of a public training set that a task with so many `samples` leaves alone.

    Nobody holds it, so that an attacker short of in-distribution images may have it. Samples of a group (frames of one
    traffic sign) of which the task uses any stay out.
    """
    whole, _ = load(dataset, root, None, None)
    if samples is None or samples >= len(whole):
        return whole.take(slice(0, 0))
    order = subset_order(dataset, "train", whole.labels, samples)
    rest = whole.take(order[samples:])
    if rest.groups is None or whole.groups is None:
        return rest
    return rest.take(torch.nonzero(~torch.isin(rest.groups, whole.groups[order[:samples]])).flatten())
