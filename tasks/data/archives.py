"""How each data set may lie under the data root: Parquet, what its authors publish, or a tree of classes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from assay.tasks.data import formats
from assay.tasks.data.datasets import BUILT_IN, DatasetInfo
from assay.tasks.data.layouts import (
    Layout,
    as_labelled,
    class_folders,
    class_labels,
    files,
    fit_of,
    parquet,
    pictures_in,
    read_classes,
    tree,
)
from assay.tasks.data.pictures import Fit
from assay.tasks.data.shards import Found
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import BadInput


def layouts(info: DatasetInfo) -> tuple[Layout, ...]:
    """Return the layouts in which a built-in data set is looked for; the first one found is read."""
    if info.part_of:
        (whole,) = (other for other in BUILT_IN if other.key == info.part_of)
        return tuple(_only(layout, info.labels) for layout in layouts(whole))
    if info.kind == "text":
        return (parquet(info),)
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


def _idx(info: DatasetInfo, folder: str) -> tuple[Layout, ...]:
    """Return MNIST's layouts, plain and gzipped."""
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return tuple(
        files(
            info,
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
        pairs = zip(sides, labels, strict=True)
        return as_labelled(info, (formats.read_images(*pair, info.shape, fit_of(info)) for pair in pairs))

    return Layout(f"{folder}/<class>/", find, read)


def _tiny_imagenet(info: DatasetInfo, step: int) -> Layout:
    """Return the layout of Tiny ImageNet's archive, of every `step`-th class; its validation part is the test part."""
    base = "tiny-imagenet-200"
    fit: Fit = "exact" if step == 1 else "stretch"  # the smaller set has half the size too

    def find(root: Path) -> Found | None:
        notes, train = root / base / "val/val_annotations.txt", root / base / "train"
        if not notes.is_file() or not train.is_dir():
            return None
        return tuple(class_folders(train)[::step]), (notes, notes.with_name("images"))

    def read(found: Found) -> tuple[Labelled, Labelled]:
        labels = class_labels(found[0], info)
        train = read_classes(labels, found[0], info, fit, "images")
        notes, folder = found[1]
        known = {path.name for path in class_folders(found[0][0].parent)}
        rows = _rows(notes, "\t")
        for line, row in rows:
            if row[1] not in known:
                raise BadInput(f"{notes}, line {line}: found class {row[1]!r}, which the training part lacks")
        chosen = [(row[0], labels[row[1]]) for _, row in rows if row[1] in labels]
        names, numbers = _inside(folder, [name for name, _ in chosen]), [number for _, number in chosen]
        return as_labelled(info, (train, formats.read_images(names, numbers, info.shape, fit)))

    return Layout(f"{base}/", find, read)


def _gtsrb(info: DatasetInfo, training: str) -> Layout:
    """Return the layout of GTSRB's archives, as torchvision unpacks them."""

    def find(root: Path) -> Found | None:
        base = root / "gtsrb"
        notes, train, test = base / "GT-final_test.csv", base / training, base / "GTSRB/Final_Test/Images"
        found = notes.is_file() and train.is_dir() and test.is_dir()
        return (tuple(class_folders(train)), (notes, test)) if found else None

    def read(found: Found) -> tuple[Labelled, Labelled]:
        train = read_classes(class_labels(found[0], info), found[0], info, fit_of(info))
        notes, folder = found[1]
        rows = _rows(notes, ";")[1:]
        for line, row in rows:
            if not row[-1].isdecimal() or int(row[-1]) >= info.classes:
                raise BadInput(f"{notes}, line {line}: found class {row[-1]!r}, expected 0..{info.classes - 1}")
        labels = [int(row[-1]) for _, row in rows]
        test = formats.read_images(_inside(folder, [row[0] for _, row in rows]), labels, info.shape, fit_of(info))
        return as_labelled(info, (train, test))

    return Layout(f"gtsrb/{training}/", find, read)


def _rows(notes: Path, separator: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a table, of two columns at least, each with the number of its line.

    Raises:
        BadInput: the file is no such table.
    """
    with formats.whole(notes, "a table"):
        text = notes.read_text("utf-8")
    try:
        rows = [(line, row) for line, row in enumerate(csv.reader(text.splitlines(), delimiter=separator), 1) if row]
    except csv.Error as why:
        raise BadInput(f"{notes}: expected a table: {why}") from None
    for line, row in rows:
        if len(row) < 2:
            raise BadInput(f"{notes}, line {line}: expected columns, found {row[0][:40]!r}")
    return rows


def _inside(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files that a table names, which all lie in `folder` itself."""
    paths = []
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise BadInput(f"{folder}: the table beside it names {name!r}, which is not in this folder")
        paths.append(folder / name)
    return paths


_CIFAR10 = [f"cifar-10-batches-bin/{name}.bin" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
_PUBLISHED: Mapping[str, Callable[[DatasetInfo], tuple[Layout, ...]]] = {
    "caltech101": lambda info: (_categories(info, "caltech101/101_ObjectCategories"),),
    "caltech256": lambda info: (_categories(info, "caltech256/256_ObjectCategories"),),
    "cifar10": lambda info: (files(info, _CIFAR10[:5], _CIFAR10[5:], formats.read_cifar_binary),),
    "cifar100": lambda info: (
        files(
            info, ["cifar-100-binary/train.bin"], ["cifar-100-binary/test.bin"],
            lambda paths: formats.read_cifar_binary(paths, labels=2),
        ),
    ),
    "fashion-mnist": lambda info: _idx(info, "FashionMNIST/raw"),
    # The complete training archive; then the smaller one of the online competition, which torchvision downloads.
    "gtsrb": lambda info: (_gtsrb(info, "GTSRB/Final_Training/Images"), _gtsrb(info, "GTSRB/Training")),
    "imagenet100": lambda info: (tree(info, "imagenet", first=info.classes),),
    "mnist": lambda info: _idx(info, "MNIST/raw"),
    "tiny_imagenet": lambda info: (_tiny_imagenet(info, 1),),
    "tiny_imagenet_32": lambda info: (_tiny_imagenet(info, 2),),
}  # fmt: skip
