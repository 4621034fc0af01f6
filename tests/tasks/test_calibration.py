"""Calibration: sizes by profile, roles of the unmarked models, and refusal of what is out of range."""

from __future__ import annotations

import pytest

from assay.tasks.calibration import Calibration, resolve_calibration
from assay.tasks.errors import BadInput


@pytest.mark.parametrize(
    ("profile", "sizes"),
    [("paper", (10, 100, 1)), ("laptop", (5, 100, 1)), ("smoke", (3, 20, 0)), ("a grid's own", (5, 100, 1))],
)
def test_sizes_follow_the_profile_and_a_grid_overrides_them(profile: str, sizes: tuple[int, int, int]) -> None:
    found = resolve_calibration(profile, {})
    assert (found.references, found.keys, found.processed) == sizes
    assert resolve_calibration(profile, {"keys": 30}).keys == 30
    assert resolve_calibration(profile, {"keys": 30}).references == sizes[0]


def test_processed_models_are_the_first_references() -> None:
    assert Calibration(references=2, processed=0).roles == ("reference-0", "reference-1")
    of_two = Calibration(references=3, processed=2).roles
    assert of_two[:3] == ("reference-0", "reference-1", "reference-2")
    assert of_two[3:] == tuple(
        f"reference-{i}|{process}" for i in (0, 1) for process in ("fine-tune", "distill", "prune")
    )


def test_more_processed_models_than_references_are_all_references() -> None:
    assert len(Calibration(references=1, processed=5).roles) == 4


@pytest.mark.parametrize(
    ("given", "told"), [({"references": 0}, "references"), ({"keys": 9}, "keys"), ({"key": 9}, "did you mean 'keys'")]
)
def test_what_is_out_of_range_or_unknown_is_told_in_one_line(given: dict[str, int], told: str) -> None:
    with pytest.raises(BadInput, match=told) as why:
        resolve_calibration("laptop", given, "g.yaml, line 3")
    assert str(why.value).startswith("g.yaml, line 3: ")
    assert "\n" not in str(why.value)
