"""Nothing moves a figure of any method or attack unnoticed: measured anew on digits, against figures.json."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.attacks import ATTACKS
from assay.methods import METHODS

_HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("golden", _HERE / "golden.py")
assert _SPEC is not None
assert _SPEC.loader is not None
golden: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

ELSEWHERE = 1e-4  # another kind of processor, or release of torch, rounds otherwise


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(golden.FILE.read_text("utf-8"))
    return found


def test_every_method_and_attack_has_figures(kept: dict[str, Any]) -> None:
    cells = [name.split(" x ") for name in kept["figures"]]
    assert {method for method, _ in cells} == set(METHODS)
    assert {link for _, attack in cells for link in attack.split(" > ")} == set(ATTACKS)


@pytest.mark.slow
def test_figures_are_those_that_are_kept(kept: dict[str, Any], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = golden.measure(tmp_path)
    tolerance = 0.0 if kept["machine"] == golden.machine() else ELSEWHERE
    moved = golden.differences(kept["figures"], found, tolerance)
    assert not moved, "make golden shows and keeps what moved:\n" + "\n".join(moved[:20])


def test_a_difference_is_told_by_cell_and_figure() -> None:
    before = {"a x none": {"main_after": 0.5, "outcome": "retained", "metrics": {"agreement": 1.0}}}
    after = {"a x none": {"main_after": 0.50001, "outcome": "removed", "metrics": {}}}
    assert golden.differences(before, before, 0.0) == []
    assert golden.differences(before, after, 1e-4) == [
        "a x none: agreement: 1.0 -> None",
        "a x none: outcome: 'retained' -> 'removed'",
    ]
    assert len(golden.differences(before, after, 0.0)) == 3
