"""Data sets by key: facts, where their files lie, and loading them as tensors. Nothing downloads here."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.tasks.data.archives import layouts
from assay.tasks.data.cache import GROUPS, ORDER, Arrays, Entry, digest
from assay.tasks.data.checks import check_info, check_part
from assay.tasks.data.datasets import BUILT_IN
from assay.tasks.data.datasets import DatasetInfo as DatasetInfo
from assay.tasks.data.layouts import Layout
from assay.tasks.data.phrases import phrases
from assay.tasks.data.shards import Found
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
    """A data set: its facts and how it is read.

    Attributes:
        info: its facts.
        loader: reads it.
        finder: of the files that it is read from; None: it needs none and is not cached.
        code: the source of a loader that comes from outside: what an edited one decodes is not the earlier one's.
    """

    info: DatasetInfo
    loader: Loader
    finder: Finder | None = None
    code: str = ""


def _find(info: DatasetInfo, root: Path | None) -> tuple[Layout, Found]:
    base = data_root(root)
    fetch = info.obtain or f"fetch it with: assay data fetch {info.key} --data-root {base or 'DIR'}"
    if base is None:
        raise MissingData(f"{info.key}: no data root is given (--data-root or $ASSAY_DATA); {fetch}")
    known = layouts(info)
    for layout in known:
        try:
            if found := layout.find(base):
                return layout, found
        except MissingData as why:
            raise MissingData(f"{info.key}: {why}; put it right, or move these files elsewhere and {fetch}") from None
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


_BUNDLED: dict[str, Loader] = {"digits": _digits, "phrases": lambda _root: phrases()}
_BUILT_IN = tuple(Source(info, _BUNDLED[info.key]) if info.key in _BUNDLED else _stored(info) for info in BUILT_IN)
SOURCES: Registry[Source] = Registry("data set", {source.info.key: source for source in _BUILT_IN})
DATASETS: Registry[DatasetInfo] = Registry("data set", {source.info.key: source.info for source in _BUILT_IN})


def register_dataset(info: DatasetInfo, loader: Loader, finder: Finder | None = None) -> None:
    """Add a data set.

    Args:
        info: its facts.
        loader: returns (training part, test part); labels int64 in 0..K-1; images uint8 (N, C, H, W) or float32 in
            [0, 1], texts int32 or int64 (N, L) ids of one numbering (`tasks.data.text.encode`): 0 is padding, words
            start at 2.
        finder: the files that `loader` reads. With it, decoded arrays are cached on disk and shared by all trials; they
            are decoded anew when one of these files, or the one in which `loader` is written, changes.

    Raises:
        BadInput: the key is taken by another data set, or the facts are of no image or text. What `loader` returns is
            checked when it is first decoded.
    """
    check_info(info)
    DATASETS.register(info.key, info)
    SOURCES.register(info.key, Source(info, loader, finder, _code_of(loader)))
    _whole.cache_clear()


def _code_of(loader: Loader) -> str:
    """Return the source of the module in which a loader is written; of the loader alone in a notebook."""
    for written in (inspect.getmodule(loader), loader):
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(written)  # type: ignore[arg-type]
    return ""


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
    parts = source.loader(data_root(root))
    if not isinstance(parts, tuple) or len(parts) != 2:
        raise BadInput(
            f"data set {dataset}: the loader returned {type(parts).__name__}, expected (training, test) part"
        )
    for name, part in zip(("training", "test"), parts, strict=True):
        check_part(source.info, name, part)
    return _arrays(*parts)


def _entry(source: Source, root: Path | None) -> Entry:
    """Return the place of a data set with files in the cache."""
    return Entry(source.info.key, source.finder(root) if source.finder else (), source.code)


def _arrays(train: Labelled, test: Labelled) -> Arrays:
    parts = dict(zip(ORDER, (train.inputs, train.labels, test.inputs, test.labels), strict=True))
    if train.groups is not None:
        parts[GROUPS] = train.groups
    return {key: tensor.detach().cpu().contiguous().numpy() for key, tensor in parts.items()}


@lru_cache(maxsize=4)
def _whole(dataset: str, root: Path | None, _name: str) -> tuple[Labelled, Labelled]:
    source = _source(dataset)
    if source.finder is None:
        arrays = decode(dataset, root)
    else:
        arrays = _entry(source, root).open(lambda: decode(dataset, root))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    train = Labelled(tensors["train_inputs"], tensors["train_labels"], tensors.get(GROUPS))
    return train, Labelled(tensors["test_inputs"], tensors["test_labels"])


def _parts(dataset: str, root: Path | None) -> tuple[Labelled, Labelled]:
    """Return the whole data set, held in memory (or mapped into it) for as long as its files stay the same."""
    source, base = _source(dataset), data_root(root)
    if source.finder is None:
        return _whole(dataset, base, "")
    return _whole(dataset, base, _entry(source, base).folder.name)


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
        return part.take(subset_order(dataset, name, part.labels, count)[:count])

    return some(train, samples, "train"), some(test, test_samples, "test")


def subset_order(dataset: str, part: str, labels: Tensor, count: int) -> Tensor:
    """Return all positions of a part (`train`, `test`): first the `count` of its fixed subset, then what it leaves."""
    # Rounding per class may miss the count by a few samples, so that the border is not between the two.
    return torch.cat(stratified(labels, count / len(labels), stream(dataset, "subset", part)))


def fingerprint(dataset: str, root: Path | None) -> str:
    """Return a SHA-256 over the decoded arrays of a data set; equal for every storage layout of the same pixels.

    Decodes on the first call on a machine; later it reads the cache's note of it.

    Raises:
        MissingData, BadInput: as `load`.
    """
    source, base = _source(dataset), data_root(root)
    if source.finder is None:
        return digest(_arrays(*_parts(dataset, base)))
    return _entry(source, base).fingerprint(lambda: decode(dataset, base))
