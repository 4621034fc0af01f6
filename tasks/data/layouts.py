"""Ways in which any data set may lie under the data root: named files, Parquet, or folders of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from assay.tasks.data.checks import outside
from assay.tasks.data.datasets import DatasetInfo
from assay.tasks.data.formats import Part, read_images, tracks
from assay.tasks.data.parquet import read_parquet_images, read_parquet_text
from assay.tasks.data.pictures import Fit
from assay.tasks.data.shards import Found, Paths, find_parts
from assay.tasks.data.splits import Labelled
from assay.tasks.data.text import encode
from assay.tasks.errors import BadInput

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".ppm", ".bmp"})
# Sets whose pictures come in many sizes; in any other a wrong size is an error.
_FITS: Mapping[str, Fit] = {
    "caltech101": "crop", "caltech256": "crop", "gtsrb": "stretch", "imagenet100": "crop", "lisa": "stretch",
    "youtube_faces": "stretch",
}  # fmt: skip
_TRACKED = frozenset({"gtsrb"})  # sets of which several pictures show one thing (frames of one traffic sign)
_LABELS = {"cifar100": "fine_label", "trec": "coarse_label"}  # columns of labels under another name


@dataclass(frozen=True)
class Layout:
    """One way in which a data set may lie under the root.

    Attributes:
        wanted: what is looked for, in words.
        find: returns what is there under a root, or None. Where pictures are files of their own it names their folders:
            a hundred thousand files would take seconds to look at, each time.
        read: returns the training and the test part.
    """

    wanted: str
    find: Callable[[Path], Found | None]
    read: Callable[[Found], tuple[Labelled, Labelled]]


def fit_of(info: DatasetInfo) -> Fit:
    """Return what becomes of a picture of another size than the data set's."""
    return _FITS.get(info.key, "exact")


def as_labelled(info: DatasetInfo, parts: Iterable[Part]) -> tuple[Labelled, Labelled]:
    """Return both parts as tensors; the training part of tracked data sets is grouped by track.

    Raises:
        BadInput: a label is no class of the data set; names its place.
    """
    train, test = parts
    for part in (train, test):
        if found := outside(part.labels, info.classes):
            row, why = found
            raise BadInput(f"{part.place(row)}: {why}")
    groups = torch.from_numpy(tracks(train)) if info.key in _TRACKED else None
    return (
        Labelled(torch.from_numpy(train.inputs), torch.from_numpy(train.labels), groups),
        Labelled(torch.from_numpy(test.inputs), torch.from_numpy(test.labels)),
    )


# --- files -----------------------------------------------------------------------------------------------------------


def files(info: DatasetInfo, train: Sequence[str], test: Sequence[str], read: Callable[[Paths], Part]) -> Layout:
    """Return the layout of named files, each part read by itself."""

    def find(root: Path) -> Found | None:
        found = tuple(tuple(root / name for name in names) for names in (train, test))
        return (found[0], found[1]) if all(path.is_file() for paths in found for path in paths) else None

    return Layout(f"{train[0]} …", find, lambda found: as_labelled(info, map(read, found)))


def parquet(info: DatasetInfo) -> Layout:
    """Return the Hugging Face image or text layout under the data set's key."""
    label = _LABELS.get(info.key, "label")

    def images(found: Found) -> Iterable[Part]:
        return (read_parquet_images(paths, info.shape, fit_of(info), label) for paths in found)

    def texts(found: Found) -> Iterable[Part]:
        parts = [read_parquet_text(paths, label) for paths in found]
        ids = encode([texts for texts, _, _ in parts], info.shape[0])
        return (Part(tokens, labels, files) for tokens, (_, labels, files) in zip(ids, parts, strict=True))

    read = texts if info.kind == "text" else images
    wanted = f"{info.key}/train.parquet … (or its shards, also one folder down)"
    return Layout(wanted, lambda root: find_parts(root / info.key), lambda found: as_labelled(info, read(found)))


# --- folders ---------------------------------------------------------------------------------------------------------


def class_folders(folder: Path) -> list[Path]:
    """Return a folder's folders: by number where all are numbers, else by name."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    numbered = all(path.name.isdecimal() for path in found)
    return sorted(found, key=lambda path: (int(path.name), path.name) if numbered else (0, path.name))


def pictures_in(folder: Path) -> list[Path]:
    """Return a class folder's own image files in the order of their names.

    Raises:
        BadInput: there are none.
    """
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not pictures:
        raise BadInput(f"{folder}: a class without a picture ({', '.join(sorted(_PICTURES))})")
    return pictures


def read_classes(classes: Mapping[str, int], folders: Paths, info: DatasetInfo, fit: Fit, inside: str = "") -> Part:
    """Return the pictures of class folders, labelled by the folders' names."""
    files: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        if folder.name not in classes:
            raise BadInput(f"{folder}: a class that the training part lacks")
        pictures = pictures_in(folder / inside)
        files += pictures
        labels += [classes[folder.name]] * len(pictures)
    return read_images(files, labels, info.shape, fit)


def class_labels(folders: Paths, info: DatasetInfo) -> dict[str, int]:
    """Return the label of each class, by name.

    Raises:
        BadInput: there are not as many folders as classes.
    """
    if len(folders) != info.classes:
        where = folders[0].parent if folders else info.key
        raise BadInput(f"{where}: {len(folders)} folders of classes, expected {info.classes}")
    return {folder.name: label for label, folder in enumerate(folders)}


def tree(info: DatasetInfo, folder: str = "", first: int | None = None) -> Layout:
    """Return the layout `<folder>/train/<class>/<picture>` with `test` or `val` beside it; `first` classes count."""
    base = folder or info.key

    def find(root: Path) -> Found | None:
        held = next((path for name in ("test", "val") if (path := root / base / name).is_dir()), None)
        train = root / base / "train"
        if held is None or not train.is_dir():
            return None
        chosen = class_folders(train)[:first]
        names = {path.name for path in chosen}
        held_out = [path for path in class_folders(held) if first is None or path.name in names]
        return (tuple(chosen), tuple(held_out)) if chosen and held_out else None

    def read(found: Found) -> tuple[Labelled, Labelled]:
        labels = class_labels(found[0], info)
        return as_labelled(info, (read_classes(labels, part, info, fit_of(info)) for part in found))

    return Layout(f"{base}/{{train,test}}/<class>/", find, read)
