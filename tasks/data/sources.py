"""Data sets by key: facts, where their files lie, and loading them as tensors. Nothing downloads here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from assay.tasks.data.archives import layouts
from assay.tasks.data.cache import GROUPS, ORDER, Arrays, Entry, digest
from assay.tasks.data.datasets import BUILT_IN
from assay.tasks.data.datasets import DatasetInfo as DatasetInfo
from assay.tasks.data.layouts import Found, Layout
from assay.tasks.data.splits import Labelled, stratified
from assay.tasks.errors import BadInput, MissingData, unknown
from assay.tasks.registry import Registry
from assay.tasks.streams import stream

Loader = Callable[[Path | None], tuple[Labelled, Labelled]]
"""Returns the training and the test part, given the data root."""

Finder = Callable[[Path | None], tuple[Path, ...]]
"""Returns the files (or folders of files) that a loader reads, given the data root; raises `MissingData`."""

# What torchvision downloads of these is pickled.
_PICKLED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def data_root(root: Path | None = None) -> Path | None:
    """Return the data root: the argument, else $ASSAY_DATA, else None."""
    own = os.environ.get("ASSAY_DATA")
    chosen = root or (Path(own) if own else None)
    return chosen.expanduser() if chosen else None


@dataclass(frozen=True)
class Source:
    """A data set: its facts, its loader, and the finder of its files (None: it needs none and is not cached)."""

    info: DatasetInfo
    loader: Loader
    finder: Finder | None = None


def _find(info: DatasetInfo, root: Path | None) -> tuple[Layout, Found]:
    base = data_root(root)
    fetch = info.obtain or f"fetch it with: assay data fetch {info.key} --data-root {base or 'DIR'}"
    if base is None:
        raise MissingData(f"{info.key}: no data root is given (--data-root or $ASSAY_DATA); {fetch}")
    known = layouts(info)
    for layout in known:
        if found := layout.find(base):
            return layout, found
    own = info.part_of or info.key
    if own in _PICKLED and (pickled := base / _PICKLED[own]).is_dir():
        raise MissingData(f"{info.key}: {pickled} is pickled, and nothing is unpickled; {fetch}")
    wanted = " or ".join(layout.wanted for layout in known)
    raise MissingData(f"{info.key}: not found under {base}, looked for {wanted}; {fetch}")


def _stored(info: DatasetInfo) -> Source:
    """Return the source of a built-in data set that lies under the root."""

    def loader(root: Path | None) -> tuple[Labelled, Labelled]:
        layout, found = _find(info, root)
        return layout.read(found)

    def finder(root: Path | None) -> tuple[Path, ...]:
        train, test = _find(info, root)[1]
        return (*train, *test)

    return Source(info, loader, finder)


def _digits(_root: Path | None) -> tuple[Labelled, Labelled]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    whole = Labelled(large.mul(255).round().to(torch.uint8), torch.from_numpy(bunch.target).long())
    test, train = stratified(whole.labels, 0.2, stream("digits", "test"))
    return whole.take(train), whole.take(test)


_BUILT_IN = tuple(Source(info, _digits) if info.key == "digits" else _stored(info) for info in BUILT_IN)
SOURCES: Registry[Source] = Registry("data set", {source.info.key: source for source in _BUILT_IN})
DATASETS: Registry[DatasetInfo] = Registry("data set", {source.info.key: source.info for source in _BUILT_IN})


def register_dataset(info: DatasetInfo, loader: Loader, finder: Finder | None = None) -> None:
    """Add a data set.

    Args:
        info: its facts.
        loader: returns (training part, test part); labels int64; images uint8 (N, C, H, W) or float32 in [0, 1], texts
            int32 or int64 (N, L) ids of one numbering (`tasks.data.text.encode`): 0 is padding, words start at 2.
        finder: the files that `loader` reads. With it, decoded arrays are cached on disk and shared by all trials.

    Raises:
        BadInput: the key is taken by another data set.
    """
    DATASETS.register(info.key, info)
    SOURCES.register(info.key, Source(info, loader, finder))
    _whole.cache_clear()


def _source(dataset: str) -> Source:
    if dataset not in SOURCES:
        raise unknown("data set", dataset, SOURCES)
    return SOURCES[dataset]


def decode(dataset: str, root: Path | None) -> Arrays:
    """Return the arrays of a data set as its loader gives them, past every cache.

    Raises:
        MissingData: its files are not under the root.
        BadInput: a file, or what the loader returns, is not what it should be.
    """
    source = _source(dataset)
    train, test = source.loader(data_root(root))
    for name, part in (("training", train), ("test", test)):
        _check(source.info, name, part)
    return _arrays(train, test)


def _arrays(train: Labelled, test: Labelled) -> Arrays:
    parts = dict(zip(ORDER, (train.inputs, train.labels, test.inputs, test.labels), strict=True))
    if train.groups is not None:
        parts[GROUPS] = train.groups
    return {key: tensor.contiguous().numpy() for key, tensor in parts.items()}


def _check(info: DatasetInfo, name: str, part: Labelled) -> None:
    where = f"data set {info.key}, {name} part"
    if len(part.inputs) != len(part.labels) or not len(part):
        raise BadInput(f"{where}: {len(part.inputs)} inputs and {len(part.labels)} labels; expected as many, and some")
    if info.kind in ("image", "text") and tuple(part.inputs.shape[1:]) != info.shape:
        raise BadInput(f"{where}: inputs of shape {tuple(part.inputs.shape[1:])}, expected {info.shape}")
    if info.kind == "text" and (part.inputs.dtype not in (torch.int32, torch.int64) or int(part.inputs.min()) < 0):
        raise BadInput(
            f"{where}: {part.inputs.dtype} from {int(part.inputs.min())} on, expected int32 or int64 from 0 on"
        )
    low, high = int(part.labels.min()), int(part.labels.max())
    if part.labels.dtype != torch.int64 or low < 0 or high >= info.classes:
        raise BadInput(
            f"{where}: labels {low} to {high} ({part.labels.dtype}), expected int64 in 0..{info.classes - 1}"
        )


@lru_cache(maxsize=4)
def _whole(dataset: str, root: Path | None, _entry: str) -> tuple[Labelled, Labelled]:
    source = _source(dataset)
    if source.finder is None:
        arrays = decode(dataset, root)
    else:
        arrays = Entry(dataset, source.finder(root)).open(lambda: decode(dataset, root))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    train = Labelled(tensors["train_inputs"], tensors["train_labels"], tensors.get(GROUPS))
    return train, Labelled(tensors["test_inputs"], tensors["test_labels"])


def _parts(dataset: str, root: Path | None) -> tuple[Labelled, Labelled]:
    """Return the whole data set, held in memory (or mapped into it) for as long as its files stay the same."""
    source, base = _source(dataset), data_root(root)
    if source.finder is None:
        return _whole(dataset, base, "")
    return _whole(dataset, base, Entry(dataset, source.finder(base)).folder.name)


def load(dataset: str, root: Path | None, samples: int | None, test_samples: int | None) -> tuple[Labelled, Labelled]:
    """Return the training and test part; `samples` takes a fixed stratified subset, the same for every seed.

    The tensors may be mapped from the shared cache: treat them as read-only.

    Raises:
        MissingData: its files are not under the root; names what was looked for, where, and the fetching command.
        BadInput: a file is damaged.
    """
    train, test = _parts(dataset, root)

    def some(part: Labelled, count: int | None, name: str) -> Labelled:
        if count is None or count >= len(part):
            return part
        index, rest = stratified(part.labels, count / len(part), stream(dataset, "subset", name))
        # Rounding per class may miss the count by a few samples.
        return part.take(torch.cat([index, rest])[:count])

    return some(train, samples, "train"), some(test, test_samples, "test")


def fingerprint(dataset: str, root: Path | None) -> str:
    """Return a SHA-256 over the decoded arrays of a data set; equal for every storage layout of the same pixels.

    Decodes on the first call on a machine; later it reads the cache's note of it.

    Raises:
        MissingData, BadInput: as `load`.
    """
    source, base = _source(dataset), data_root(root)
    if source.finder is None:
        return digest(_arrays(*_parts(dataset, base)))
    return Entry(dataset, source.finder(base)).fingerprint(lambda: decode(dataset, base))
