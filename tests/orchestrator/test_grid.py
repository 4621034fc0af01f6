"""Grids: expansion, profiles, settings, and one-line errors for people's mistakes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.registry import Registry
from assay.tasks.errors import BadInput

REGISTRY = Registry()
BASE = {"tasks": ["digits-lenet5"], "methods": ["uchida"], "attacks": ["none"]}


def written(folder: Path, value: object) -> str:
    path = folder / "grid.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), "utf-8")
    return str(path)


def test_a_list_under_a_parameter_is_an_axis(tmp_path: Path) -> None:
    grid = parse(
        written(tmp_path, {**BASE, "methods": [{"uchida": {"bits": [32, 64], "strength": [0.01, 0.1, 1.0]}}, "adi"]}),
        REGISTRY,
    )
    found = {(entry.key, *sorted(entry.params.items())) for entry in grid.methods}
    expected = {("uchida", ("bits", b), ("strength", s)) for b, s in itertools.product((32, 64), (0.01, 0.1, 1.0))} | {
        ("adi",)
    }
    assert found == expected
    assert len(grid.methods) == 7


def test_a_count_of_seeds_and_a_list_of_seeds(tmp_path: Path) -> None:
    assert parse(written(tmp_path, {**BASE, "seeds": 3}), REGISTRY).seeds == [0, 1, 2]
    assert parse(written(tmp_path, {**BASE, "seeds": [7, 2]}), REGISTRY).seeds == [2, 7]


def test_a_profile_merges_train_and_replaces_the_rest(tmp_path: Path) -> None:
    text = written(
        tmp_path,
        {
            **BASE,
            "seeds": 3,
            "train": {"epochs": 9, "samples": 900},
            "profiles": {"laptop": {"train": {"epochs": 2}, "seeds": 1}, "own": {"attacks": ["none", "prune"]}},
        },
    )
    laptop, own = parse(text, REGISTRY), parse(text, REGISTRY, "own")
    assert (laptop.train, laptop.seeds) == ({"epochs": 2, "samples": 900}, [0])
    assert ([entry.key for entry in own.attacks], own.seeds) == (["none", "prune"], [0, 1, 2])


def test_settings_of_the_command_line(tmp_path: Path) -> None:
    grid = parse(
        written(tmp_path, BASE),
        REGISTRY,
        settings=["seeds=2", "train.epochs=3", "methods.uchida.bits=[8, 16]", "name=other"],
    )
    assert (grid.seeds, grid.train, grid.name) == ([0, 1], {"epochs": 3}, "other")
    assert [entry.params for entry in grid.methods] == [{"bits": 8}, {"bits": 16}]


MISTAKES = {
    "unknown method": ({**BASE, "methods": ["uchda"]}, ["line", "unknown method 'uchda'", "did you mean 'uchida'?"]),
    "unknown attack": ({**BASE, "attacks": ["prunes"]}, ["line", "'prunes'", "did you mean 'prune'?"]),
    "unknown top key": ({**BASE, "method": ["adi"]}, ["line", "unknown key 'method'", "did you mean 'methods'?"]),
    "empty axis": ({**BASE, "attacks": []}, ["line", "attacks is empty", "assay list attacks"]),
    "missing axis": ({"tasks": ["digits-lenet5"], "methods": ["adi"]}, ["attacks is empty"]),
    "empty parameter axis": ({**BASE, "methods": [{"uchida": {"bits": []}}]}, ["line", "bits is an empty list"]),
    "not a mapping": ("- a\n- b\n", ["expected a mapping", "found a list"]),
    "wrong type of entry": ({**BASE, "methods": [3]}, ["line", "found a number (3)"]),
    "bad seeds": ({**BASE, "seeds": 0}, ["line", "seeds", "found 0"]),
    "bad seed list": ({**BASE, "seeds": [1, -1]}, ["line", "seeds", "[1, -1]"]),
    "unknown profile": ({**BASE, "profile": "laptob"}, ["'laptob'", "did you mean 'laptop'?"]),
    "written twice": ("tasks: [digits-lenet5]\ntasks: [a]\n", ["line 2", "'tasks' is written twice"]),
    "broken yaml": ("tasks: [a\nmethods: ]", ["line", "not valid YAML"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    value, parts = MISTAKES[name]
    with pytest.raises(BadInput) as caught:
        parse(written(tmp_path, value), REGISTRY)
    text = str(caught.value)
    assert "\n" not in text
    assert "grid.yaml" in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("seeds", "expected K=V"),
        ("sedes=3", "did you mean 'seeds'?"),
        ("methods.adi.n=3", "unknown method 'adi'"),
        ("methods.uchida=3", "expected"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(setting: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--set") as caught:
        parse(written(tmp_path, BASE), REGISTRY, settings=[setting])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read the grid file"):
        parse(str(tmp_path / "none.yaml"), REGISTRY)
    with pytest.raises(BadInput, match="did you mean 'quickstart'"):
        parse("quickstrat", REGISTRY)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.lists(st.integers(1, 40), min_size=1, max_size=4), ratios=st.lists(st.floats(0, 1), min_size=1, max_size=3)
)
def test_the_number_of_points_is_the_product(
    bits: list[int], ratios: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    value = {**BASE, "methods": [{"uchida": {"bits": bits, "strength": [r + 0.5 for r in ratios]}}]}
    grid = parse(written(tmp_path_factory.mktemp("grid"), value), REGISTRY)
    assert len(grid.methods) == len(bits) * len(ratios)
