"""Data sets by key: facts, where their files lie, and loading them as tensors. Nothing downloads here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from tasks import formats
from tasks.cache import ORDER, Arrays, Entry, digest
from tasks.data import Labelled, stratified
from tasks.errors import BadInput, MissingData, unknown
from tasks.registry import Registry
from tasks.streams import stream


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a data set.

    Attributes:
        key: its key.
        shape: of one input, (C, H, W).
        classes: number of classes.
        mean, std: normalisation constants per channel, in pixel space [0, 1].
        licence: what is known of it.
        kind: `image`.
        counts: samples of the complete training and test part, if known.
    """

    key: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    kind: str = "image"
    counts: tuple[int, int] | None = None


Loader = Callable[[Path | None], tuple[Labelled, Labelled]]
"""Returns the training and the test part, given the data root."""

Finder = Callable[[Path | None], tuple[Path, ...]]
"""Returns the files that a loader reads, given the data root; raises `MissingData`."""


@dataclass(frozen=True)
class _Layout:
    """One way in which a data set may lie under the root."""

    files: tuple[str, ...]
    read: Callable[[list[Path]], tuple[tuple[formats.Pixels, formats.Classes], tuple[formats.Pixels, formats.Classes]]]


def _idx(folder: str, ending: str) -> _Layout:
    names = [
        f"{part}-{kind}{ending}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    return _Layout(
        tuple(f"{folder}/{name}" for name in names),
        lambda paths: (formats.read_idx_pair(*paths[:2]), formats.read_idx_pair(*paths[2:])),
    )


def _parquet(folder: str, shape: tuple[int, int, int]) -> _Layout:
    return _Layout(
        (f"{folder}/train.parquet", f"{folder}/test.parquet"),
        lambda paths: (formats.read_parquet_images(paths[0], shape), formats.read_parquet_images(paths[1], shape)),
    )


_CIFAR_BINARY = _Layout(
    tuple(f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
    lambda paths: (formats.read_cifar_binary(paths[:5]), formats.read_cifar_binary(paths[5:])),
)
# The first layout found is read.
_LAYOUTS: Mapping[str, tuple[_Layout, ...]] = {
    "cifar10": (_parquet("cifar10", (3, 32, 32)), _CIFAR_BINARY),
    "mnist": (_idx("MNIST/raw", ""), _idx("MNIST/raw", ".gz"), _parquet("mnist", (1, 28, 28))),
}


def data_root(root: Path | None = None) -> Path | None:
    """Return the data root: the argument, else $ASSAY_DATA, else None."""
    own = os.environ.get("ASSAY_DATA")
    chosen = root or (Path(own) if own else None)
    return chosen.expanduser() if chosen else None


def _find(dataset: str, root: Path | None) -> tuple[_Layout, tuple[Path, ...]]:
    base = data_root(root)
    fetch = f"fetch it with: assay data fetch {dataset} --data-root {base or 'DIR'}"
    if base is None:
        raise MissingData(f"{dataset}: no data root is given (--data-root or $ASSAY_DATA); {fetch}")
    for layout in _LAYOUTS[dataset]:
        paths = tuple(base / name for name in layout.files)
        if all(path.is_file() for path in paths):
            return layout, paths
    if dataset == "cifar10" and (base / "cifar-10-batches-py").is_dir():
        raise MissingData(f"cifar10: {base / 'cifar-10-batches-py'} is pickled, and nothing is unpickled; {fetch}")
    wanted = " or ".join(
        f"{layout.files[0]} …" if len(layout.files) > 1 else layout.files[0] for layout in _LAYOUTS[dataset]
    )
    raise MissingData(f"{dataset}: not found under {base}, looked for {wanted}; {fetch}")


def _stored(dataset: str) -> tuple[Loader, Finder]:
    """Return loader and finder of a built-in data set that lies under the root."""

    def loader(root: Path | None) -> tuple[Labelled, Labelled]:
        layout, paths = _find(dataset, root)
        (train_x, train_y), (test_x, test_y) = layout.read(list(paths))
        return Labelled(torch.tensor(train_x), torch.tensor(train_y)), Labelled(
            torch.tensor(test_x), torch.tensor(test_y)
        )

    return loader, lambda root: _find(dataset, root)[1]


def _digits(_root: Path | None) -> tuple[Labelled, Labelled]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    large = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    whole = Labelled(large.mul(255).round().to(torch.uint8), torch.from_numpy(bunch.target).long())
    test, train = stratified(whole.labels, 0.2, stream("digits", "test"))
    return whole.take(train), whole.take(test)


@dataclass(frozen=True)
class Source:
    """A data set: its facts, its loader, and the finder of its files (None: it needs none and is not cached)."""

    info: DatasetInfo
    loader: Loader
    finder: Finder | None = None


_BUILT_IN = (
    Source(
        DatasetInfo(
            "cifar10", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "research use",
            counts=(50_000, 10_000),
        ),
        *_stored("cifar10"),
    ),
    Source(
        DatasetInfo(
            "digits", (1, 28, 28), 10, (0.3055,), (0.3251,), "CC BY 4.0 (UCI, bundled with scikit-learn)",
            counts=(1_438, 359),
        ),
        _digits,
    ),
    Source(
        DatasetInfo("mnist", (1, 28, 28), 10, (0.1307,), (0.3081,), "CC BY-SA 3.0", counts=(60_000, 10_000)),
        *_stored("mnist"),
    ),
)  # fmt: skip
SOURCES: Registry[Source] = Registry("data set", {source.info.key: source for source in _BUILT_IN})
DATASETS: Registry[DatasetInfo] = Registry("data set", {source.info.key: source.info for source in _BUILT_IN})


def register_dataset(info: DatasetInfo, loader: Loader, finder: Finder | None = None) -> None:
    """Add a data set.

    Args:
        info: its facts.
        loader: returns (training part, test part); inputs uint8 (N, C, H, W) or float32 in [0, 1], labels int64.
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
    """Return the four arrays of a data set as its loader gives them, past every cache.

    Raises:
        MissingData: its files are not under the root.
        BadInput: a file, or what the loader returns, is not what it should be.
    """
    source = _source(dataset)
    train, test = source.loader(data_root(root))
    for name, part in (("training", train), ("test", test)):
        _check(source.info, name, part)
    parts = (train.inputs, train.labels, test.inputs, test.labels)
    return {key: tensor.contiguous().numpy() for key, tensor in zip(ORDER, parts, strict=True)}


def _check(info: DatasetInfo, name: str, part: Labelled) -> None:
    where = f"data set {info.key}, {name} part"
    if len(part.inputs) != len(part.labels) or not len(part):
        raise BadInput(f"{where}: {len(part.inputs)} inputs and {len(part.labels)} labels; expected as many, and some")
    if info.kind == "image" and tuple(part.inputs.shape[1:]) != info.shape:
        raise BadInput(f"{where}: inputs of shape {tuple(part.inputs.shape[1:])}, expected {info.shape}")
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
    tensors = [torch.from_numpy(arrays[name]) for name in ORDER]
    return Labelled(*tensors[:2]), Labelled(*tensors[2:])


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
        train, test = _parts(dataset, base)
        tensors = (train.inputs, train.labels, test.inputs, test.labels)
        return digest({name: tensor.numpy() for name, tensor in zip(ORDER, tensors, strict=True)})
    return Entry(dataset, source.finder(base)).fingerprint(lambda: decode(dataset, base))
