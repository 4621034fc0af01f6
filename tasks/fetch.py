"""Downloading data sets, only when asked to: `assay data fetch NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.errors import BadInput, MissingData, unknown
from tasks.sources import DATASETS

# The binary form, because the one that torchvision downloads is pickled. MD5 as its authors print it.
_CIFAR10 = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")


def _mnist(root: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(str(root), download=True)


def _cifar10(root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    url, md5 = _CIFAR10
    download_and_extract_archive(url, str(root), md5=md5, remove_finished=True)


_FETCHERS: Mapping[str, Callable[[Path], None]] = {"cifar10": _cifar10, "mnist": _mnist}


def fetch(name: str, root: Path | None) -> Path:
    """Download a data set into `root` and return `root`; checksums are verified, nothing is unpickled.

    Raises:
        BadInput: no data root is given, or nothing is known to download for this data set.
        MissingData: the download failed (no network, a refused connection, a wrong checksum).
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    if name not in _FETCHERS:
        raise BadInput(f"data set {name!r} needs no download (can be fetched: {', '.join(_FETCHERS)})")
    if root is None:
        raise BadInput(f"data fetch {name}: where to? Give --data-root DIR or set ASSAY_DATA")
    root.mkdir(parents=True, exist_ok=True)
    try:
        _FETCHERS[name](root)
    except (OSError, RuntimeError) as why:
        text = " ".join(str(why).split())
        raise MissingData(f"data fetch {name}: the download failed ({text}); is there a network?") from None
    return root
