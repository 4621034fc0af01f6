"""Storage formats of data sets, decoded to arrays: IDX, CIFAR's records, encoded images, Parquet with images or text.

Nothing here unpickles: every format is plain bytes, whoever wrote them.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from assay.tasks.errors import BadInput

Pixels = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]
Fit = Literal["exact", "stretch", "crop"]
"""What becomes of an image of another size: an error, resized to the shape, or cut to its proportions first."""


@dataclass(frozen=True)
class Part:
    """One part of an image data set.

    Attributes:
        inputs: images (N, C, H, W).
        labels: class indices (N,).
        names: where each image lay in the original data set, as far as the format tells.
    """

    inputs: Pixels
    labels: Classes
    names: Sequence[str] = ()


def read_idx(path: Path) -> Pixels:
    """Return the bytes of an IDX file (LeCun's format, plain or gzipped) in its own shape.

    Raises:
        BadInput: the file is no IDX file of unsigned bytes, or is cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        if zeros or kind != 8:
            raise ValueError("not an IDX file of unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (ValueError, struct.error, EOFError, gzip.BadGzipFile) as why:
        raise BadInput(f"{path}: {why}; fetch the file again") from None


def read_idx_pair(images: Path, labels: Path) -> Part:
    """Return the images (N, 1, H, W) and labels of two IDX files."""
    return Part(read_idx(images)[:, None], read_idx(labels).astype(np.int64))


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
        data = np.fromfile(path, np.uint8)
        if not len(data) or len(data) % size:
            raise BadInput(f"{path}: {len(data)} bytes are no whole number of {size:,}-byte records; fetch it again")
        parts.append(data.reshape(-1, size))
    records = np.concatenate(parts)
    return Part(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].astype(np.int64))


def read_images(paths: Sequence[Path], labels: Sequence[int], shape: tuple[int, ...], fit: Fit) -> Part:
    """Return encoded image files (PNG, JPEG, PPM, …) as one part.

    Raises:
        BadInput: a file that cannot be decoded, or has another size than `shape` where `fit` is `exact`.
    """
    images = np.empty((len(paths), *shape), np.uint8)
    for row, path in enumerate(paths):
        with _one_line(path, f"an image that fits {shape}"), path.open("rb") as file:
            images[row] = _pixels(file, shape, fit)
    return Part(images, np.array(labels, np.int64), [str(path) for path in paths])


def read_parquet_images(
    paths: Sequence[Path], shape: tuple[int, ...], fit: Fit = "exact", label: str = "label"
) -> Part:
    """Return images (N, C, H, W) and labels (N,) of Parquet files in the Hugging Face image layout.

    Args:
        paths: the shards of one part. Columns `img` or `image` (struct of `bytes`, an encoded image, and `path`) and
            `label`.
        shape: (C, H, W) of the result; one channel is read as grey, three as RGB.
        fit: what becomes of an image of another size.
        label: further name that the label's column may have.

    Raises:
        BadInput: no Parquet file, other columns, or an image that cannot be decoded or has another size.
    """
    import pyarrow.compute as pc

    total = sum(_rows(path) for path in paths)
    images, labels = np.empty((total, *shape), np.uint8), np.empty(total, np.int64)
    names: list[str] = []
    row = 0
    for path in paths:
        with _one_line(path, f"encoded images of {shape} with labels"):
            for pictures, classes in _batches(path, ("img", "image"), ("label", label)):
                labels[row : row + len(classes)] = classes
                names += [name or "" for name in pc.struct_field(pictures, "path").to_pylist()]
                for encoded in pc.struct_field(pictures, "bytes"):
                    images[row] = _pixels(io.BytesIO(encoded.as_py()), shape, fit)
                    row += 1
    return Part(images, labels, names)


def read_parquet_text(paths: Sequence[Path], label: str = "label") -> tuple[list[str], Classes]:
    """Return texts and labels of Parquet files with the columns `text` and `label` (or another name for it).

    Raises:
        BadInput: no Parquet file, other columns, or values that are no texts and whole numbers.
    """
    texts: list[str] = []
    labels = []
    for path in paths:
        with _one_line(path, "texts with labels"):
            for column, classes in _batches(path, ("text",), ("label", label)):
                if column.null_count:
                    raise ValueError("a text is missing")
                texts += column.to_pylist()
                labels.append(classes)
    return texts, np.concatenate(labels) if labels else np.empty(0, np.int64)


def tracks(part: Part) -> npt.NDArray[np.int64]:
    """Return a number for each image's track (N,), of images named `<track>_<frame>.<ending>`, within their class.

    Images whose name has no such form, or that have none, are tracks of their own.
    """
    keys = []
    for row, label in enumerate(part.labels):
        stem = Path(part.names[row]).stem if part.names else ""
        track, underscore, _ = stem.rpartition("_")
        keys.append(f"{label}/{track}" if underscore else f"#{row}")
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    with _one_line(path, "a Parquet file"):
        return int(pq.read_metadata(path).num_rows)


def _batches(path: Path, inputs: tuple[str, ...], labels: tuple[str, ...]) -> Iterator[tuple[Any, Classes]]:
    """Yield the first input column and the first label column that are there, a thousand rows at a time."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    found = file.schema_arrow.names
    columns = [name for names in (inputs, labels) for name in [n for n in names if n in found][:1]]
    if len(columns) < 2:
        wanted = " and ".join(" or ".join(dict.fromkeys(names)) for names in (inputs, labels))
        raise BadInput(f"{path}: expected the columns {wanted}, found {', '.join(found)}")
    for batch in file.iter_batches(batch_size=1000, columns=columns):
        classes = batch.column(columns[1]).to_numpy(zero_copy_only=False)
        yield batch.column(columns[0]), classes.astype(np.int64, casting="safe")


def _pixels(file: IO[bytes], shape: tuple[int, ...], fit: Fit) -> Pixels:
    """Return an encoded image as (C, H, W)."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    with Image.open(file) as opened:
        image: Image.Image = opened.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height) and fit != "exact":
        how = Image.Resampling.BILINEAR  # antialiased, as torchvision's Resize
        image = image.resize((width, height), how) if fit == "stretch" else ImageOps.fit(image, (width, height), how)
    pixels = np.asarray(image)
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"found {image.size[0]}x{image.size[1]} pixels")
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def _one_line(path: Path, wanted: str) -> Iterator[None]:
    """Turn what libraries raise for a damaged file into one line."""
    import pyarrow as pa
    from PIL import Image

    errors = (pa.ArrowException, Image.DecompressionBombError, KeyError, TypeError, ValueError, OSError)
    try:
        yield
    except errors as why:
        text = " ".join(str(why).split())
        raise BadInput(f"{path}: expected {wanted}: {text}; fetch it again") from None
