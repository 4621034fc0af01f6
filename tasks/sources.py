"""Data sets by key: facts, and loading them as tensors. Nothing downloads here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from tasks.data import Labelled, stratified
from tasks.errors import unknown
from tasks.streams import stream


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a data set: shape (C, H, W), classes, normalisation constants in pixel space, source and licence."""

    key: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    kind: str = "image"


DATASETS: Mapping[str, DatasetInfo] = {
    info.key: info
    for info in (
        DatasetInfo("cifar10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "research use"),
        DatasetInfo("digits", (1, 28, 28), 10, (0.3053,), (0.3604,), "CC BY 4.0 (UCI, bundled with scikit-learn)"),
        DatasetInfo("mnist", (1, 28, 28), 10, (0.1307,), (0.3081,), "CC BY-SA 3.0"),
    )
}


@lru_cache(maxsize=4)
def _digits() -> tuple[Labelled, Labelled]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    whole = Labelled(large.mul(255).round().to(torch.uint8), torch.from_numpy(bunch.target).long())
    test, train = stratified(whole.labels, 0.2, stream("digits", "test"))
    return whole.take(train), whole.take(test)


def _whole(dataset: str, root: Path | None) -> tuple[Labelled, Labelled]:
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    return _digits()


def load(dataset: str, root: Path | None, samples: int | None, test_samples: int | None) -> tuple[Labelled, Labelled]:
    """Return the training and test part; `samples` takes a fixed stratified subset, the same for every seed."""
    train, test = _whole(dataset, root)

    def some(part: Labelled, count: int | None, name: str) -> Labelled:
        if count is None or count >= len(part):
            return part
        index, _ = stratified(part.labels, count / len(part), stream(dataset, "subset", name))
        return part.take(index[:count])

    return some(train, samples, "train"), some(test, test_samples, "test")


def fingerprint(dataset: str, root: Path | None) -> str:
    """Return a SHA-256 over the decoded arrays of a data set; equal for every storage layout of the same pixels."""
    digest = hashlib.sha256()
    for part in _whole(dataset, root):
        digest.update(part.inputs.numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()
