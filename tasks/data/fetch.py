"""Downloading data sets, only when asked to: `assay data fetch NAME`."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from assay.tasks.data.sources import DATASETS
from assay.tasks.errors import BadInput, MissingData, unknown

# (folder under the root, file, MD5). CIFAR in its binary form, because the one that torchvision downloads is pickled;
# GTSRB with its complete training part, of which no MD5 is published, where torchvision has the smaller one of the
# online competition.
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_ERDA = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_CIFAR10 = (("", f"{_TORONTO}cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),)
_TINY_IMAGENET = (("", "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),)
_ARCHIVES: Mapping[str, tuple[tuple[str, str, str | None], ...]] = {
    "cifar10": _CIFAR10,
    "cifar100": (("", f"{_TORONTO}cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
    "gtsrb": (
        ("gtsrb", f"{_ERDA}GTSRB_Final_Training_Images.zip", None),
        ("gtsrb", f"{_ERDA}GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
        ("gtsrb", f"{_ERDA}GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
    ),
    "tiny_imagenet": _TINY_IMAGENET,
    "tiny_imagenet_32": _TINY_IMAGENET,
}
_TORCHVISION = {
    "caltech101": "Caltech101",
    "caltech256": "Caltech256",
    "fashion-mnist": "FashionMNIST",
    "mnist": "MNIST",
}
# Of each data set on the hub the Parquet files that the hub itself makes: (repository, configuration).
_HUB = {"imdb": ("stanfordnlp/imdb", "plain_text"), "trec": ("CogComp/trec", "default")}


def _archives(name: str, root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    for folder, url, md5 in _ARCHIVES[name]:
        download_and_extract_archive(url, str(root / folder), md5=md5, remove_finished=True)


def _torchvision(name: str, root: Path) -> None:
    from torchvision import datasets

    getattr(datasets, _TORCHVISION[name])(str(root), download=True)


def _hub(name: str, root: Path) -> None:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise BadInput(
            f"data fetch {name}: it lies on the Hugging Face hub, and its client is not installed; "
            "pip install huggingface_hub"
        ) from None
    repository, configuration = _HUB[name]
    for part in ("train", "test"):
        path = f"{configuration}/{part}/0000.parquet"
        cached = hf_hub_download(repository, path, repo_type="dataset", revision="refs/convert/parquet")
        (root / name).mkdir(exist_ok=True)
        aside = root / name / f".{part}.parquet"
        shutil.copyfile(cached, aside)
        aside.replace(root / name / f"{part}.parquet")


_FETCHERS: Mapping[str, Callable[[Path], None]] = {
    **{name: partial(_archives, name) for name in _ARCHIVES},
    **{name: partial(_torchvision, name) for name in _TORCHVISION},
    **{name: partial(_hub, name) for name in _HUB},
}


def fetch(name: str, root: Path | None) -> Path:
    """Download a data set into `root` and return `root`; nothing is unpickled.

    Checksums are verified where the authors publish them, and by the hub's client. What the downloaders print goes to
    standard error.

    Raises:
        BadInput: no data root is given, nothing is known to download for this data set, or a client is not installed.
        MissingData: the download failed (no network, a refused connection, a wrong checksum).
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    own = DATASETS[name].part_of or name
    if own not in _FETCHERS:
        why = DATASETS[own].obtain or f"it needs no download (can be fetched: {', '.join(sorted(_FETCHERS))})"
        raise BadInput(f"data fetch {name}: {why}")
    if root is None:
        raise BadInput(f"data fetch {name}: where to? Give --data-root DIR or set ASSAY_DATA")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):
            _FETCHERS[own](root)
    except (OSError, RuntimeError) as why:
        text = " ".join(str(why).split())
        raise MissingData(f"data fetch {name}: the download failed ({text}); is there a network?") from None
    return root
