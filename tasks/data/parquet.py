"""Columns of Parquet files, decoded: pictures or texts, with labels, in the layout of the Hugging Face hub."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.tasks.data.formats import Classes, Part, place, whole
from assay.tasks.data.pictures import Fit, Pixels, read_picture
from assay.tasks.errors import BadInput

_BATCH = 1000  # rows in memory at once
_KIND = "a Parquet file"


def read_parquet_images(
    paths: Sequence[Path], shape: tuple[int, ...], fit: Fit = "exact", label: str = "label"
) -> Part:
    """Return images (N, C, H, W) and labels (N,) of Parquet files in the Hugging Face image layout.

    Args:
        paths: the shards of one part. Columns `img` or `image` (struct of `bytes`, an encoded picture, and `path`) and
            `label`.
        shape: (C, H, W) of the result; one channel is grey, three are RGB.
        fit: what becomes of an image of another size.
        label: further name that the label's column may have.

    Raises:
        BadInput: no Parquet file, other columns, a label that is no whole number, or an image that is null, cannot be
            decoded, has another size, or would lose something as 8-bit pixels. Of a row its number is told.
    """
    files = [(path, _rows(path)) for path in paths]
    images = np.empty((sum(rows for _, rows in files), *shape), np.uint8)
    labels: list[Classes] = []
    names: list[str] = []
    for path in paths:
        for first, pictures, classes in _batches(path, ("img", "image"), ("label", label)):
            if "bytes" not in [field.name for field in pictures.type]:
                raise BadInput(f"{path}: expected images as a struct of bytes and path, found {pictures.type}")
            labels.append(classes)
            for row, picture in enumerate(pictures, first):
                found = picture.as_py() or {}
                name = found.get("path") or ""
                images[len(names)] = _decoded(place(path, row), found.get("bytes"), name, shape, fit)
                names.append(name)
    return Part(images, _joined(labels), files, names)


def _decoded(where: str, encoded: bytes | None, name: str, shape: tuple[int, ...], fit: Fit) -> Pixels:
    if encoded is None:
        why = f"no bytes are stored, only the path {name!r}" if name else "the image is missing (null)"
        raise BadInput(f"{where}: expected an image that fits {shape}: {why}")
    try:
        return read_picture(io.BytesIO(encoded), shape, fit)
    except ValueError as why:
        raise BadInput(f"{where}: expected an image that fits {shape}: {why}") from None


def read_parquet_text(paths: Sequence[Path], label: str = "label") -> tuple[list[str], Classes, list[tuple[Path, int]]]:
    """Return texts, labels and (file, rows) of Parquet files with the columns `text` and `label` (or another name).

    Raises:
        BadInput: no Parquet file, other columns, or a row whose text is missing or whose label is no whole number.
    """
    import pyarrow as pa

    texts: list[str] = []
    labels: list[Classes] = []
    for path in paths:
        for first, column, classes in _batches(path, ("text",), ("label", label)):
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise BadInput(f"{path}: expected texts, found {column.type}")
            if column.null_count:
                raise BadInput(f"{place(path, first + _first(column.is_null()))}: the text is missing (null)")
            texts += column.to_pylist()
            labels.append(classes)
    return texts, _joined(labels), [(path, _rows(path)) for path in paths]


def _joined(labels: Sequence[Classes]) -> Classes:
    return np.concatenate(labels) if labels else np.empty(0, np.int64)


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    with whole(path, _KIND):
        return int(pq.read_metadata(path).num_rows)


def _batches(path: Path, inputs: tuple[str, ...], labels: tuple[str, ...]) -> Iterator[tuple[int, Any, Classes]]:
    """Yield the number of the first row, the first input column and the first label column that are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with whole(path, _KIND):
        file = pq.ParquetFile(path)
    with file:
        found = file.schema_arrow.names
        columns = [name for names in (inputs, labels) for name in [n for n in names if n in found][:1]]
        if len(columns) < 2:
            wanted = " and ".join(" or ".join(dict.fromkeys(names)) for names in (inputs, labels))
            raise BadInput(f"{path}: expected the columns {wanted}, found {', '.join(found)}")
        batches = file.iter_batches(batch_size=_BATCH, columns=columns)
        first = 0
        while True:
            with whole(path, _KIND):
                batch = next(batches, None)
            if batch is None:
                return
            column = batch.column(columns[0])
            if isinstance(column, pa.DictionaryArray):
                column = column.dictionary_decode()
            yield first, column, _labels(path, first, batch.column(columns[1]))
            first += len(batch)


def _labels(path: Path, first: int, column: Any) -> Classes:
    """Return labels that are whole numbers, of any integer type; nothing is rounded, parsed or left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if column.null_count:
        raise BadInput(f"{place(path, first + _first(column.is_null()))}: the label is missing (null)")
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False), np.int64)
    row = 0
    if pa.types.is_floating(column.type):  # the one that is no number of a class, where there is one
        row = _first(pc.not_equal(pc.floor(column), column))
    raise BadInput(
        f"{place(path, first + row)}: the label {column[row].as_py()!r} is a {column.type}, expected a whole number"
    )


def _first(mask: Any) -> int:
    """Return the position of the first True, or 0."""
    return max(int(mask.index(True).as_py()), 0)
