"""Parquet files of a part: one complete generation, where the hub's client leaves it; else one line says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.tasks.data.shards import complete, find_parts
from assay.tasks.errors import MissingData

SHARDS = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(root: Path) -> tuple[list[str], list[str]] | None:
    parts = find_parts(root / "mnist")
    if parts is None:
        return None
    train, test = ([path.relative_to(root).as_posix() for path in part] for part in parts)
    return train, test


@pytest.mark.parametrize("folder", ["mnist", "mnist/mnist", "mnist/data", "mnist/plain_text"])
@pytest.mark.parametrize("test", ["test", "validation", "valid", "val"])
def test_the_layouts_that_the_hubs_client_leaves(folder: str, test: str, tmp_path: Path) -> None:
    put(tmp_path / folder, *SHARDS, f"{test}-00000-of-00001.parquet", "unsupervised-00000-of-00009.parquet")
    put(tmp_path / "mnist", ".cache/huggingface/train.parquet", "README.md", "notes/about.txt")
    assert found(tmp_path) == ([f"{folder}/{name}" for name in SHARDS], [f"{folder}/{test}-00000-of-00001.parquet"])


@pytest.mark.parametrize(
    "train",
    [
        ("train.parquet",),
        ("train-0.parquet", "train-1.parquet", "train-2.parquet"),
        ("train-1.parquet", "train-2.parquet"),
        ("train/0000.parquet", "train/0001.parquet"),
        ("train-00000-of-00002-2ab3.parquet", "train-00001-of-00002-c0ffee.parquet"),
        ("train-00001-of-00002.parquet", "train-00002-of-00002.parquet"),
    ],
)
def test_complete_generations(train: tuple[str, ...], tmp_path: Path) -> None:
    put(tmp_path / "mnist", *train, "test.parquet")
    assert found(tmp_path) == ([f"mnist/{name}" for name in train], ["mnist/test.parquet"])


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    put(tmp_path, *(f"train-{number}.parquet" for number in range(12)))
    assert [path.name for path in complete(tmp_path, "train")] == [f"train-{number}.parquet" for number in range(12)]


def test_test_goes_before_validation_and_the_folder_itself_before_one_below(tmp_path: Path) -> None:
    put(tmp_path / "mnist", "train.parquet", "validation-00000-of-00002.parquet", "test.parquet")
    put(tmp_path / "mnist/old", "train.parquet", "test.parquet")
    assert found(tmp_path) == (["mnist/train.parquet"], ["mnist/test.parquet"])


def test_nothing_there_is_no_fault(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    put(tmp_path / "mnist", "train/0/a.png", "test/0/a.png", "raw/notes.txt")
    assert found(tmp_path) is None
    assert complete(tmp_path / "mnist", "train") == ()


@pytest.mark.parametrize("part", ["train", "test", "validation"])
@pytest.mark.parametrize("folder", ["mnist", "mnist/mnist"])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["-00000-of-00002"], ": {}-00001-of-00002.parquet is missing (1 of 2 shards are there)"),
        (["-00001-of-00002"], ": {}-00000-of-00002.parquet is missing (1 of 2 shards are there)"),
        (["-00001-of-00003", "-00002-of-00003"], ": {}-00000-of-00003.parquet is missing (2 of 3"),
        (
            ["-00002-of-00006"],
            "-00000-of-00006.parquet, {0}-00001-of-00006.parquet, {0}-00003-of-00006.parquet and 2 more are missing",
        ),
        (["-00000-of-00002", "-00000-of-00001"], " holds {0}-*-of-00001.parquet and {0}-*-of-00002.parquet: keep one"),
        (["-00000-of-00001", ""], " holds {0}-*-of-00001.parquet and {0}.parquet: keep one"),
        (["-00000", "/0000"], " holds {0}-*.parquet and {0}/*.parquet: keep one"),
        (["-00000-of-00002-ab", "-00000-of-00002-cd"], " holds shard 0 of {0}-*-of-00002.parquet 2 times"),
        (["-00000-of-00002", "-00001-of-00002", "-00002-of-00002"], " holds shard 2 of {0}-*-of-00002.parquet, of"),
        (["-0", "-2"], ": {0}-00001.parquet is missing (2 of 3 shards are there)"),
        (["/0001", "/0003"], ": {0}/0002.parquet is missing (2 of 3 shards are there)"),
        (["", "-old"], "{0}-old.parquet is no shard's name (allowed: {0}-00000-of-00001.parquet, "),
        (["-00000-of-00001 (1)"], "{0}-00000-of-00001 (1).parquet is no shard's name"),
    ],
)
def test_incomplete_and_mixed_generations_are_one_line(
    part: str, folder: str, names: list[str], words: str, tmp_path: Path
) -> None:
    other = "test" if part == "train" else "train"
    put(tmp_path / folder, *(f"{part}{name}.parquet" for name in names), f"{other}.parquet")
    with pytest.raises(MissingData) as error:
        found(tmp_path)
    text = str(error.value)
    assert words.format(part) in text
    assert str(tmp_path / folder) in text
    assert "\n" not in text


@given(
    st.integers(1, 8).flatmap(lambda total: st.tuples(st.just(total), st.sets(st.integers(0, total - 1), min_size=1)))
)
def test_any_missing_shard_is_noticed(tmp_path_factory: pytest.TempPathFactory, drawn: tuple[int, set[int]]) -> None:
    total, numbers = drawn
    folder = put(tmp_path_factory.mktemp("part"), *(f"train-{number:05}-of-{total:05}.parquet" for number in numbers))
    if len(numbers) == total:
        assert len(complete(folder, "train")) == total
        return
    with pytest.raises(MissingData) as error:
        complete(folder, "train")
    assert f"-{min({*range(total)} - numbers):05}-of-" in str(error.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train.parquet"], "has Parquet files and no test part (test or validation or valid or val)"),
        (["test.parquet"], "has Parquet files and no training part (train)"),
        (["a/train.parquet", "b/test.parquet"], "/mnist/a and "),
    ],
)
def test_both_parts_must_be_in_one_folder(names: list[str], words: str, tmp_path: Path) -> None:
    put(tmp_path / "mnist", *names)
    with pytest.raises(MissingData) as error:
        found(tmp_path)
    assert words in str(error.value)


def test_a_link_to_nothing_is_a_missing_shard(tmp_path: Path) -> None:
    put(tmp_path, SHARDS[0])
    (tmp_path / SHARDS[1]).symlink_to(tmp_path / "gone")
    with pytest.raises(MissingData, match=f"{SHARDS[1]} is missing"):
        complete(tmp_path, "train")
