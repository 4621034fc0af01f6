"""Which Parquet files make a part of a data set: one file, or one complete generation of shards.

Parts are looked for in a data set's folder and one folder below it, as the hub's client leaves them:
`mnist/train.parquet`, `mnist/mnist/train-00000-of-00001.parquet`, `mnist/data/…`, `imdb/plain_text/train/0000.parquet`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from assay.tasks.errors import MissingData

Paths = tuple[Path, ...]
Found = tuple[Paths, Paths]
"""Files, or folders of files, of the training and of the test part."""

TRAIN = ("train",)
TEST = ("test", "validation", "valid", "val")  # names of the test part; the first that is there counts


def find_parts(folder: Path) -> Found | None:
    """Return the Parquet files of both parts in a data set's folder, or else in the one folder below it that has some.

    Raises:
        MissingData: there are some, and they are not both parts, complete, once; one line says what is missing.
    """
    for places in ([folder], _below(folder)):
        held = {place: parts for place in places if any(parts := (_part(place, TRAIN), _part(place, TEST)))}
        if len(held) > 1:
            raise MissingData(f"{' and '.join(map(str, held))} both hold Parquet files: keep one of them there")
        for place, (train, test) in held.items():
            if not train or not test:
                lacking, names = ("test", TEST) if train else ("training", TRAIN)
                raise MissingData(f"{place} has Parquet files and no {lacking} part ({' or '.join(names)})")
            return train, test
    return None


def _below(folder: Path) -> list[Path]:
    """Return the folders in which a configuration of the data set may lie."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in (*TRAIN, *TEST)
    )


def _part(folder: Path, names: Iterable[str]) -> Paths:
    return next((files for name in names if (files := complete(folder, name))), ())


def complete(folder: Path, part: str) -> Paths:
    """Return the files of one part in `folder`, in order; none if there are none.

    A part is `<part>.parquet`, or all of `<part>-<i>-of-<N>.parquet` (each with a hash behind, in older ones), or
    `<part>-<i>.parquet` or `<part>/<i>.parquet` without a gap. Counting starts at 0 or 1.

    Raises:
        MissingData: several of these are there, shards are missing or doubled, or a file's name is none of a shard.
    """
    found = [
        path
        for pattern in (f"{part}.parquet", f"{part}-*.parquet", f"{part}/*.parquet")
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    ]
    if not found:
        return ()
    shards = [(path, *_number(folder, path, part)) for path in found]
    generations = {generation for _, _, generation in shards}
    if len(generations) > 1:
        raise MissingData(f"{folder} holds {' and '.join(sorted(generations))}: keep one of them there")
    (generation,) = generations
    if generation == f"{part}.parquet":
        return (found[0],)
    by_number = {number: path for path, number, _ in shards}
    if len(by_number) < len(shards):
        ((number, times),) = Counter(number for _, number, _ in shards).most_common(1)
        raise MissingData(f"{folder} holds shard {number} of {generation} {times} times: keep one of them there")
    _none_missing(folder, generation, set(by_number))
    return tuple(by_number[number] for number in sorted(by_number))


def _number(folder: Path, path: Path, part: str) -> tuple[int, str]:
    """Return a shard's number and the generation that it is of: the names of all its shards, in words."""
    name = path.relative_to(folder).as_posix()
    if name == f"{part}.parquet":
        return 0, name
    shard = re.fullmatch(rf"{part}(?:-(\d+)-of-(\d+)(?:-[0-9a-f]+)?|([-/])(\d+))\.parquet", name)
    if shard is None:
        raise MissingData(
            f"{path} is no shard's name (allowed: {part}-00000-of-00001.parquet, {part}-00000.parquet, "
            f"{part}/0000.parquet): rename it, or move it elsewhere"
        )
    number, total, sign, alone = shard.groups()
    return (int(number), f"{part}-*-of-{total}.parquet") if total else (int(alone), f"{part}{sign}*.parquet")


def _none_missing(folder: Path, generation: str, numbers: set[int]) -> None:
    """Check the shards' numbers against those that a generation has.

    Raises:
        MissingData: they are others.
    """
    if stated := re.search(r"-of-(\d+)", generation):
        total = int(stated[1])
        wanted = set(range(1, total + 1)) if numbers == set(range(1, total + 1)) else set(range(total))
    else:
        wanted = set(range(0 if 0 in numbers else 1, max(numbers) + 1))
    if missing := sorted(wanted - numbers):
        width = 4 if "/" in generation else 5
        names = [generation.replace("*", f"{number:0{width}}") for number in missing[:3]]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        verb = "is" if len(missing) == 1 else "are"
        raise MissingData(
            f"{folder}: {', '.join(names)}{more} {verb} missing ({len(numbers & wanted)} of {len(wanted)} shards are "
            "there)"
        )
    if surplus := sorted(numbers - wanted):
        raise MissingData(f"{folder} holds shard {surplus[0]} of {generation}, of which there are {len(wanted)}")
