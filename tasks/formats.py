"""Storage layouts of image data sets, decoded to arrays: IDX, Parquet with encoded images, CIFAR's binary records.

Nothing here unpickles: every layout is plain bytes, whoever wrote them.
"""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.errors import BadInput

Pixels = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]


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
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (ValueError, struct.error, EOFError, gzip.BadGzipFile) as why:
        raise BadInput(f"{path}: {why}; fetch the file again") from None


def read_idx_pair(images: Path, labels: Path) -> tuple[Pixels, Classes]:
    """Return images (N, 1, H, W) and labels (N,) of two IDX files."""
    return read_idx(images)[:, None], read_idx(labels).astype(np.int64)


def read_parquet_images(path: Path, shape: tuple[int, int, int]) -> tuple[Pixels, Classes]:
    """Return images (N, C, H, W) and labels (N,) of a Parquet file in the Hugging Face image layout.

    Args:
        path: columns `img` or `image` (struct of `bytes`, an encoded image, and `path`) and `label`.
        shape: (C, H, W) that every image must have; one channel is read as grey, three as RGB.

    Raises:
        BadInput: no Parquet file, other columns, or an image that cannot be decoded or has another size.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from PIL import Image, UnidentifiedImageError

    try:
        file = pq.ParquetFile(path)
        column = next((name for name in ("img", "image") if name in file.schema_arrow.names), None)
        if column is None or "label" not in file.schema_arrow.names:
            found = ", ".join(file.schema_arrow.names)
            raise BadInput(f"{path}: expected the columns img (or image) and label, found {found}")
        images = np.empty((file.metadata.num_rows, *shape), np.uint8)
        labels = np.empty(file.metadata.num_rows, np.int64)
        row = 0
        for group in file.iter_batches(batch_size=1000, columns=[column, "label"]):
            labels[row : row + len(group)] = group.column("label").to_numpy(zero_copy_only=False)
            for encoded in pc.struct_field(group.column(column), "bytes"):
                with Image.open(io.BytesIO(encoded.as_py())) as image:
                    pixels = np.asarray(image.convert("L" if shape[0] == 1 else "RGB"))
                images[row] = pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
                row += 1
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError, UnidentifiedImageError) as why:
        text = " ".join(str(why).split())
        raise BadInput(f"{path}: expected encoded images of {shape} with labels: {text}") from None
    return images, labels


def read_cifar_binary(paths: list[Path]) -> tuple[Pixels, Classes]:
    """Return images (N, 3, 32, 32) and labels (N,) of CIFAR-10's binary files: records of a label and 3,072 pixels.

    Raises:
        BadInput: a file is no whole number of records.
    """
    parts = []
    for path in paths:
        data = np.fromfile(path, np.uint8)
        if not len(data) or len(data) % 3073:
            raise BadInput(f"{path}: {len(data)} bytes are no whole number of 3,073-byte records; fetch it again")
        parts.append(data.reshape(-1, 3073))
    records = np.concatenate(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
