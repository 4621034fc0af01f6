"""Columns of Parquet files: what is not as it should be is told with its file and row, and nothing is guessed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from assay.tasks.data import parquet
from assay.tasks.data.parquet import read_parquet_images, read_parquet_text
from assay.tasks.errors import BadInput

SHAPE = (1, 4, 4)
ROW = r", row {} \(the first is 0\): "


def png(level: int, size: tuple[int, int] = (4, 4), mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, level).save(file, "png")
    return file.getvalue()


def pictures(count: int = 6) -> list[Any]:
    return [{"bytes": png(level), "path": f"{level}.png"} for level in range(count)]


def write(path: Path, images: Any, labels: Any, column: str = "image") -> Path:
    pq.write_table(pa.table({column: images, "label": labels}), path)
    return path


def refused(path: Path, images: Any, labels: Any) -> str:
    with pytest.raises(BadInput) as error:
        read_parquet_images([write(path, images, labels)], SHAPE)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert "again" not in text  # fetching cures none of these
    return text


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(range(6), pa.uint8()),
        pa.array(range(6), pa.int32()),
        pa.array(range(6), pa.uint64()),
        pa.array(range(6), pa.int16()).dictionary_encode(),
    ],
    ids=str,
)
def test_labels_of_every_integer_type(labels: Any, tmp_path: Path) -> None:
    part = read_parquet_images([write(tmp_path / "a.parquet", pictures(), labels)], SHAPE)
    assert part.labels.dtype == np.int64
    assert part.labels.tolist() == part.inputs[:, 0, 0, 0].tolist() == list(range(6))
    assert list(part.names) == [f"{row}.png" for row in range(6)]


@pytest.mark.parametrize(
    ("labels", "row", "words"),
    [
        (["cat"] * 6, 0, "the label 'cat' is a string"),
        (pa.array(["cat"] * 6).dictionary_encode(), 0, "the label 'cat' is a string"),
        ([0.0, 1.0, 1.5, 2.0, 2.5, 3.0], 2, "the label 1.5 is a double"),
        ([0.0, 1.0, 1.0, float("nan"), 2.0, 3.0], 3, "the label nan is a double"),
        ([0.0] * 6, 0, "the label 0.0 is a double"),
        ([0, 1, 2, None, None, 5], 3, "the label is missing"),
        ([[0]] * 6, 0, r"the label \[0\] is a list"),
    ],
)
def test_labels_of_other_kinds_are_refused(labels: Any, row: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a.parquet" + ROW.format(row) + words):
        read_parquet_images([write(tmp_path / "a.parquet", pictures(), labels)], SHAPE)
    assert "again" not in refused(tmp_path / "a.parquet", pictures(), labels)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (None, "the image is missing (null)"),
        ({"bytes": None, "path": None}, "the image is missing (null)"),
        ({"bytes": None, "path": "x.png"}, "no bytes are stored, only the path 'x.png'"),
        ({"bytes": b"", "path": ""}, "no picture of a known kind"),
        ({"bytes": png(3)[:-30], "path": ""}, "damaged or cut short"),
        ({"bytes": png(3, (8, 5)), "path": ""}, "found 8x5 pixels"),
        ({"bytes": png(3, (4, 4), "RGBA"), "path": ""}, "found transparent pixels"),
    ],
)
@pytest.mark.parametrize("row", [0, 4])
def test_images_that_cannot_be_read_are_told_by_row(picture: Any, row: int, words: str, tmp_path: Path) -> None:
    images = pictures()
    images[row] = picture
    text = refused(tmp_path / "a.parquet", images, list(range(6)))
    assert f"a.parquet, row {row} (the first is 0): expected an image that fits (1, 4, 4): " in text
    assert words in text


def test_rows_are_counted_through_batches_and_within_their_own_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BATCH", 4)
    first = write(tmp_path / "a.parquet", pictures(), list(range(6)))
    whole = read_parquet_images([first, first], SHAPE)
    assert whole.labels.tolist() == whole.inputs[:, 0, 0, 0].tolist() == [*range(6), *range(6)]
    assert whole.place(5) == f"{first}, row 5 (the first is 0)"
    assert whole.place(6) == f"{first}, row 0 (the first is 0)"
    with pytest.raises(IndexError):
        whole.place(12)
    images = pictures()
    images[5] = None
    second = write(tmp_path / "b.parquet", images, list(range(6)))
    with pytest.raises(BadInput, match="b.parquet" + ROW.format(5)):
        read_parquet_images([first, second], SHAPE)
    with pytest.raises(BadInput, match="b.parquet" + ROW.format(5)):
        read_parquet_images([write(second, pictures(), [0, 1, 2, 3, 4, None])], SHAPE)
    pq.write_table(pa.table({"text": ["a"] * 5 + [None], "label": [0] * 6}), second)
    with pytest.raises(BadInput, match="b.parquet" + ROW.format(5) + r"the text is missing \(null\)"):
        read_parquet_text([second])


@pytest.mark.parametrize("images", [[b"x"] * 6, ["x.png"] * 6, [[1, 2]] * 6, [{"path": "x.png"}] * 6])
def test_a_column_without_bytes_is_refused(images: Any, tmp_path: Path) -> None:
    assert "expected images as a struct of bytes and path, found " in refused(
        tmp_path / "a.parquet", images, list(range(6))
    )


def test_names_are_not_needed(tmp_path: Path) -> None:
    images = [{"bytes": png(7)}, {"bytes": png(8)}]
    part = read_parquet_images([write(tmp_path / "a.parquet", images, [1, 0], "img")], SHAPE)
    assert part.inputs[:, 0, 0, 0].tolist() == [7, 8]
    assert list(part.names) == ["", ""]


def test_texts(tmp_path: Path) -> None:
    for number, texts in enumerate((["a", "b"], ["c"])):
        column = pa.array(texts, pa.large_string() if number else pa.string()).dictionary_encode()
        pq.write_table(
            pa.table({"text": column, "coarse_label": [number] * len(texts)}), tmp_path / f"{number}.parquet"
        )
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    texts, labels, files = read_parquet_text(paths, "coarse_label")
    assert (texts, labels.tolist(), files) == (["a", "b", "c"], [0, 0, 1], [(paths[0], 2), (paths[1], 1)])
    pq.write_table(pa.table({"text": [1, 2], "label": [0, 1]}), paths[0])
    with pytest.raises(BadInput, match=r"0.parquet: expected texts, found int64"):
        read_parquet_text(paths[:1])


def test_a_damaged_file_is_to_be_fetched_again_and_one_that_the_system_refuses_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pictures(), list(range(6)))
    data = path.read_bytes()
    for damaged in (data[:-20], data[: len(data) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(
            BadInput, match=r"a.parquet: expected a Parquet file, whole: .*; copy or fetch the file again"
        ):
            read_parquet_images([path], SHAPE)
    path.unlink()
    with pytest.raises(BadInput, match=r"a.parquet: cannot be read: No such file or directory$"):
        read_parquet_images([path], SHAPE)


def test_damaged_pages_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pictures(), "label": list(range(6))}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    start = data.index(b"\x28\xb5\x2f\xfd")  # where a compressed page begins
    data[start : start + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"a.parquet: expected a Parquet file, whole: ") as error:
        read_parquet_images([path], SHAPE)
    assert "\n" not in str(error.value)
