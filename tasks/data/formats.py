"""Storage formats of data sets, decoded to arrays: IDX, CIFAR's records, files of one picture each.

Parquet is in `parquet`. Nothing here unpickles: every format is plain bytes, whoever wrote them.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assay.tasks.data.pictures import Fit, Pixels, read_picture
from assay.tasks.errors import BadInput

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Attributes:
        inputs: images (N, C, H, W), or ids of texts (N, L).
        labels: class indices (N,).
        files: where the rows come from, in order: (file, number of rows).
        names: where each image lay in the original data set, as far as the format tells.
    """

    inputs: npt.NDArray[Any]
    labels: Classes
    files: Sequence[tuple[Path, int]]
    names: Sequence[str] = ()

    def place(self, row: int) -> str:
        """Return where a row comes from, in words."""
        for path, count in self.files:
            if row < count:
                return place(path, row)
            row -= count
        raise IndexError(row)


def place(path: Path, row: int) -> str:
    """Return a row of a file in words."""
    return f"{path}, row {row} (the first is 0)"


@contextmanager
def whole(path: Path, kind: str) -> Iterator[None]:
    """Turn what is raised on reading a file into one line: the system refuses, or the file is no whole `kind`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, struct.error) as why:
        if isinstance(why, OSError) and why.errno is not None:
            raise BadInput(f"{path}: cannot be read: {why.strerror}") from None
        text = " ".join(str(why).split())
        raise BadInput(f"{path}: expected {kind}, whole: {text}; copy or fetch the file again") from None


def read_idx(path: Path) -> Pixels:
    """Return the bytes of an IDX file (LeCun's format, plain or gzipped) in its own shape.

    Raises:
        BadInput: the file is no IDX file of unsigned bytes, or is cut short.
    """
    with whole(path, "an IDX file of unsigned bytes"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        if zeros or kind != 8:
            raise ValueError(f"it begins with {data[:4].hex(' ')}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def read_idx_pair(images: Path, labels: Path) -> Part:
    """Return the images (N, 1, H, W) and labels of two IDX files."""
    inputs, classes = read_idx(images), read_idx(labels).astype(np.int64)
    if inputs.ndim != 3 or classes.shape != (len(inputs),):
        raise BadInput(
            f"{labels}: labels of shape {classes.shape} beside images of shape {inputs.shape}, expected (N,) beside "
            "(N, H, W); these files are not of one data set"
        )
    return Part(inputs[:, None], classes, [(labels, len(classes))])


def read_cifar_binary(paths: Sequence[Path], labels: int = 1) -> Part:
    """Return images (N, 3, 32, 32) and labels of CIFAR's binary files: records of labels and 3,072 pixels.

    Args:
        paths: the files of one part.
        labels: label bytes of a record, of which the last counts: 1 in CIFAR-10, 2 (coarse, fine) in CIFAR-100.

    Raises:
        BadInput: a file is no whole number of records.
    """
    size = labels + 3072
    parts = []
    for path in paths:
        with whole(path, f"records of {size:,} bytes"):
            data = np.fromfile(path, np.uint8)
            if not len(data) or len(data) % size:
                raise ValueError(f"{len(data):,} bytes are no whole number of records")
        parts.append(data.reshape(-1, size))
    records = np.concatenate(parts)
    files = [(path, len(part)) for path, part in zip(paths, parts, strict=True)]
    return Part(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].astype(np.int64), files)


def read_images(paths: Sequence[Path], labels: Sequence[int], shape: tuple[int, ...], fit: Fit) -> Part:
    """Return files of one picture each as one part.

    Raises:
        BadInput: a file that is absent, cannot be decoded, has another size than `shape` where `fit` is `exact`, or
            would lose something as 8-bit pixels.
    """
    images = np.empty((len(paths), *shape), np.uint8)
    for row, path in enumerate(paths):
        try:
            with path.open("rb") as file:
                images[row] = read_picture(file, shape, fit)
        except OSError as why:
            raise BadInput(f"{path}: cannot be read: {why.strerror}") from None
        except ValueError as why:
            raise BadInput(f"{path}: expected an image that fits {shape}: {why}") from None
    return Part(images, np.array(labels, np.int64), [(path, 1) for path in paths], [str(path) for path in paths])


def tracks(part: Part) -> Classes:
    """Return a number for each image's track (N,), of images named `<track>_<frame>.<ending>`, within their class.

    Images whose name has no such form, or that have none, are tracks of their own.
    """
    keys = []
    for row, label in enumerate(part.labels):
        stem = Path(part.names[row]).stem if part.names else ""
        track, underscore, _ = stem.rpartition("_")
        keys.append(f"{label}/{track}" if underscore else f"#{row}")
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)
