"""Parts of data sets: where their rows come from, and which of their images belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from assay.tasks.data.formats import Part, tracks


def part(labels: list[int], names: list[str]) -> Part:
    return Part(np.zeros((len(labels), 1, 1, 1), np.uint8), np.array(labels), [(Path("a"), len(labels))], names)


def same(numbers: list[int]) -> list[list[int]]:
    """Return the rows of each track, in the order of their first rows."""
    return [[row for row, other in enumerate(numbers) if other == one] for one in dict.fromkeys(numbers)]


def test_a_track_is_what_stands_before_the_last_underscore_within_its_class() -> None:
    names = ["x/00001_00002.png", "00001_00007.ppm", "00001_00002.png", "a_b_3.png", "a_b_4.png", "a_c_3.png"]
    found = tracks(part([4, 4, 5, 1, 1, 1], names))
    assert found.dtype == np.int64
    assert same(found.tolist()) == [[0, 1], [2], [3, 4], [5]]


def test_images_without_such_a_name_stand_alone() -> None:
    assert same(tracks(part([0, 0, 0, 0], ["", "a.png", "a.png", ""])).tolist()) == [[0], [1], [2], [3]]
    assert same(tracks(part([0, 0, 1], [])).tolist()) == [[0], [1], [2]]


def test_a_row_is_told_by_its_file_and_its_number_there() -> None:
    whole = Part(np.zeros((5, 1)), np.zeros(5, np.int64), [(Path("a"), 2), (Path("none"), 0), (Path("b"), 3)])
    assert [whole.place(row) for row in range(5)] == [
        f"{name}, row {row} (the first is 0)" for name, row in (("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2))
    ]
