"""How each data set may lie under the data root: Parquet, what its authors publish, or a tree of classes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from assay.tasks.data import formats
from assay.tasks.data.datasets import BUILT_IN, DatasetInfo
from assay.tasks.data.layouts import (
    Found,
    Layout,
    as_labelled,
    class_folders,
    class_labels,
    files,
    parquet,
    parquet_text,
    pictures_in,
    read_classes,
    tree,
)
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import BadInput


def layouts(info: DatasetInfo) -> tuple[Layout, ...]:
    """Return the layouts in which a built-in data set is looked for; the first one found is read."""
    if info.part_of:
        (whole,) = (other for other in BUILT_IN if other.key == info.part_of)
        return tuple(_only(layout, info.labels) for layout in layouts(whole))
    if info.kind == "text":
        return (parquet_text(info),)
    published = _PUBLISHED[info.key](info) if info.key in _PUBLISHED else ()
    return (parquet(info), *published, tree(info))


def _only(layout: Layout, labels: range) -> Layout:
    """Return a layout whose samples are those of some classes of another one, numbered anew."""

    def read(found: Found) -> tuple[Labelled, Labelled]:
        train, test = (
            replace(chosen, labels=chosen.labels - labels.start)
            for part in layout.read(found)
            for chosen in [part.take((part.labels >= labels.start) & (part.labels < labels.stop))]
        )
        return train, test

    return replace(layout, read=read)


def _idx(folder: str) -> tuple[Layout, ...]:
    """Return MNIST's layouts, plain and gzipped."""
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return tuple(
        files(
            [f"{folder}/train-{kind}{ending}" for kind in kinds],
            [f"{folder}/t10k-{kind}{ending}" for kind in kinds],
            lambda paths: formats.read_idx_pair(*paths),
        )
        for ending in ("", ".gz")
    )


def _categories(info: DatasetInfo, folder: str) -> Layout:
    """Return Caltech's layout. It has no test part: the last fifth of each class's files is one.

    So it is in the code released with greedy residuals.
    """

    def find(root: Path) -> Found | None:
        return (tuple(class_folders(root / folder)), ()) if (root / folder).is_dir() else None

    def read(found: Found) -> tuple[Labelled, Labelled]:
        sides: tuple[list[Path], list[Path]] = ([], [])
        labels: tuple[list[int], list[int]] = ([], [])
        for label, path in enumerate(found[0]):
            pictures = pictures_in(path)
            cut = int(0.8 * len(pictures))
            for side, part in enumerate((pictures[:cut], pictures[cut:])):
                sides[side].extend(part)
                labels[side].extend([label] * len(part))
        class_labels(found[0], info)
        return as_labelled(formats.read_images(*both, info.shape, "crop") for both in zip(sides, labels, strict=True))

    return Layout(f"{folder}/<class>/", find, read)


def _tiny_imagenet(info: DatasetInfo, step: int) -> Layout:
    """Return the layout of Tiny ImageNet's archive, of every `step`-th class; its validation part is the test part."""
    base = "tiny-imagenet-200"

    def find(root: Path) -> Found | None:
        notes, train = root / base / "val/val_annotations.txt", root / base / "train"
        if not notes.is_file() or not train.is_dir():
            return None
        return tuple(class_folders(train)[::step]), (notes, notes.with_name("images"))

    def read(found: Found) -> tuple[Labelled, Labelled]:
        labels = class_labels(found[0], info)
        train = read_classes(labels, found[0], info, "stretch", "images")
        notes, folder = found[1]
        rows = [(row[0], row[1]) for row in _rows(notes, "\t") if row[1] in labels]
        test = [labels[name] for _, name in rows]
        return as_labelled((train, formats.read_images(_inside(folder, rows), test, info.shape, "stretch")))

    return Layout(f"{base}/", find, read)


def _gtsrb(info: DatasetInfo, training: str) -> Layout:
    """Return the layout of GTSRB's archives, as torchvision unpacks them."""

    def find(root: Path) -> Found | None:
        base = root / "gtsrb"
        notes, train, test = base / "GT-final_test.csv", base / training, base / "GTSRB/Final_Test/Images"
        found = notes.is_file() and train.is_dir() and test.is_dir()
        return (tuple(class_folders(train)), (notes, test)) if found else None

    def read(found: Found) -> tuple[Labelled, Labelled]:
        train = read_classes(class_labels(found[0], info), found[0], info, "stretch")
        notes, folder = found[1]
        rows = [(row[0], row[-1]) for row in _rows(notes, ";")[1:]]
        try:
            labels = [int(label) for _, label in rows]
        except ValueError as why:
            raise BadInput(f"{notes}: expected class numbers: {why}; fetch it again") from None
        return as_labelled((train, formats.read_images(_inside(folder, rows), labels, info.shape, "stretch")), True)

    return Layout(f"gtsrb/{training}/", find, read)


def _rows(notes: Path, separator: str) -> list[list[str]]:
    """Return the rows of a table, of two columns at least.

    Raises:
        BadInput: the file is no such table.
    """
    try:
        rows = [row for row in csv.reader(notes.read_text("utf-8").splitlines(), delimiter=separator) if row]
    except (UnicodeDecodeError, csv.Error) as why:
        raise BadInput(f"{notes}: expected a table: {why}; fetch it again") from None
    if short := next((row for row in rows if len(row) < 2), None):
        raise BadInput(f"{notes}: expected columns, found {short[0][:40]!r}; fetch it again")
    return rows


def _inside(folder: Path, rows: Iterable[tuple[str, str]]) -> list[Path]:
    """Return the files that a table names, which all lie in `folder` itself."""
    names = [name for name, _ in rows]
    if strange := next((name for name in names if Path(name).name != name or name in ("", "..")), None):
        raise BadInput(f"{folder}: the table beside it names {strange!r}, which is not in this folder")
    return [folder / name for name in names]


_CIFAR10 = [f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
_PUBLISHED: Mapping[str, Callable[[DatasetInfo], tuple[Layout, ...]]] = {
    "caltech101": lambda info: (_categories(info, "caltech101/101_ObjectCategories"),),
    "caltech256": lambda info: (_categories(info, "caltech256/256_ObjectCategories"),),
    "cifar10": lambda _: (files(_CIFAR10[:5], _CIFAR10[5:], formats.read_cifar_binary),),
    "cifar100": lambda _: (
        files(
            ["cifar-100-binary/train.bin"], ["cifar-100-binary/test.bin"],
            lambda paths: formats.read_cifar_binary(paths, labels=2),
        ),
    ),
    "fashion-mnist": lambda _: _idx("FashionMNIST/raw"),
    # The complete training archive; then the smaller one of the online competition, which torchvision downloads.
    "gtsrb": lambda info: (_gtsrb(info, "GTSRB/Final_Training/Images"), _gtsrb(info, "GTSRB/Training")),
    "imagenet100": lambda info: (tree(info, "imagenet", first=info.classes),),
    "mnist": lambda _: _idx("MNIST/raw"),
    "tiny_imagenet": lambda info: (_tiny_imagenet(info, 1),),
    "tiny_imagenet_32": lambda info: (_tiny_imagenet(info, 2),),
}  # fmt: skip
