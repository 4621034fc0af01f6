"""Plugins: what is taken from a file, and what a mistake in one reads like."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from assay.attacks import ATTACKS
from assay.methods import METHODS
from assay.methods.clean import Clean
from assay.orchestrator.planning import registry as registry_module
from assay.orchestrator.planning.catalogue import (
    list_attacks,
    list_grids,
    list_methods,
    list_tasks,
    settings,
    shipped_grids,
)
from assay.orchestrator.planning.registry import Registry, fingerprint, load_plugin
from assay.tasks.errors import BadInput

Write = Callable[..., Path]
EXAMPLE = Path(__file__).parents[2] / "examples" / "sign_mark.py"
MINIMAL = """
from assay.methods.base import Method
class Mine(Method):
    key, title, paper, access, family = "mine", "Mine", "none", "labels", "bits"
    def draw(self, lab): return {}
    def read(self, suspect, secret): ...
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "mine.py") -> Path:
        (tmp_path / name).write_text(text, "utf-8")
        return tmp_path / name

    return write


def test_registry_holds_what_is_shipped() -> None:
    registry = Registry()
    assert dict(registry.methods) == dict(METHODS)
    assert dict(registry.attacks) == dict(ATTACKS)
    assert registry.place("method", "clean") == "assay.methods.clean"


def test_plugin_joins_the_shipped_ones_and_only_in_its_own_registry() -> None:
    registry = Registry([EXAMPLE])
    assert set(registry.methods) == {*METHODS, "sign-mark"}
    assert registry.place("method", "sign-mark") == str(EXAMPLE)
    assert "sign-mark" not in Registry().methods


def test_loading_twice_gives_the_same_class(write: Write) -> None:
    first, second = Registry([EXAMPLE]), Registry([EXAMPLE, EXAMPLE])
    assert first.method("sign-mark") is second.method("sign-mark")
    copy = write(EXAMPLE.read_text("utf-8"), "sign_mark.py")
    assert Registry([copy]).method("sign-mark") is first.method("sign-mark")


def test_edited_plugin_is_loaded_anew(write: Write) -> None:
    before = Registry([write(MINIMAL)]).method("mine")
    after = Registry([write(MINIMAL.replace('"Mine"', '"New"'))]).method("mine")
    assert (before.title, after.title) == ("Mine", "New")


def test_taken_key_names_both_places(write: Write) -> None:
    file = write(MINIMAL.replace('"mine"', '"clean"'))
    with pytest.raises(BadInput) as caught:
        Registry([file])
    assert str(file) in str(caught.value)
    assert "assay.methods.clean" in str(caught.value)
    twice = write(MINIMAL.replace('"Mine"', '"Other"'), "other.py")
    with pytest.raises(BadInput, match=r"other\.py: method key 'mine' is already taken by .*mine\.py"):
        Registry([write(MINIMAL), twice])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n\nimport no_such_module\n", r"mine\.py:3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = (\n", r"mine\.py:1: SyntaxError"),
        ("def f():\n    raise ValueError('two\\nlines')\nf()\n", r"mine\.py:2: ValueError: two$"),
        ("import sys\nsys.exit('no')\n", r"mine\.py:2: SystemExit: no"),
        (MINIMAL.replace("def read", "def reed"), "class Mine does not define read"),
        (MINIMAL.replace('"labels"', '"label"'), "`access` is 'label'; expected one of weights, logits, labels"),
        (MINIMAL.replace('"mine"', '"My Key"'), "`key` is 'My Key'; expected lower-case words"),
        (MINIMAL.replace("title, ", "name, "), "`title` is missing"),
    ],
)
def test_faulty_plugin_is_one_line(write: Write, text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told) as caught:
        Registry([write(text)])
    assert "\n" not in str(caught.value)


def test_failed_plugin_leaves_no_module_behind(write: Write) -> None:
    with pytest.raises(BadInput):
        load_plugin(write("raise ValueError('later')\n"))
    with pytest.raises(BadInput):
        load_plugin(write("raise ValueError('later')\n"))


def test_missing_plugin_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        Registry([tmp_path / "absent.py"])
    (tmp_path / "text.txt").write_text("", "utf-8")
    with pytest.raises(BadInput, match=r"ends in \.py"):
        Registry([tmp_path / "text.txt"])


def test_common_part_of_a_plugin_is_not_a_method(write: Write) -> None:
    text = MINIMAL.replace("class Mine(Method)", "class Base(Method):\n    pass\nclass Mine(Base)")
    assert set(Registry([write(text)]).methods) - set(METHODS) == {"mine"}


def test_unknown_key_has_the_nearest_match() -> None:
    with pytest.raises(BadInput, match=r"^grid\.yaml: unknown method 'claen'; did you mean 'clean'\?"):
        Registry().method("claen", "grid.yaml")
    with pytest.raises(BadInput, match="unknown attack 'nune'"):
        Registry().attack("nune")


def test_fingerprint_is_the_sources_hash() -> None:
    assert fingerprint(EXAMPLE) == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()


def _entry_points(*points: tuple[str, str, str]) -> Callable[[str], list[importlib.metadata.EntryPoint]]:
    found = [importlib.metadata.EntryPoint(name, value, group) for group, name, value in points]
    return lambda group: [point for point in found if point.group == group]


def test_entry_points_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry_module, "entry_points", _entry_points(("assay.methods", "clean", "assay.methods.clean:Clean"))
    )
    assert Registry().method("clean") is Clean


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no_such_package:Mark", "ModuleNotFoundError"),
        ("assay.methods.base:Method", "not a concrete subclass of Method"),
    ],
)
def test_faulty_entry_point_names_its_package(monkeypatch: pytest.MonkeyPatch, value: str, told: str) -> None:
    monkeypatch.setattr(registry_module, "entry_points", _entry_points(("assay.methods", "x", value)))
    with pytest.raises(BadInput, match=rf"entry point assay\.methods:x of .*{told}"):
        Registry()


def test_catalogue_lists_everything_with_plain_values() -> None:
    registry = Registry([EXAMPLE])
    methods = {row["key"]: row for row in list_methods(registry)}
    assert list(methods) == list(registry.methods)
    assert {row["key"] for row in list_attacks(registry)} == set(ATTACKS)
    assert "digits-lenet5" in {row["key"] for row in list_tasks()}
    assert {row["key"] for row in list_grids()} == set(shipped_grids())
    assert methods["sign-mark"]["from"] == str(EXAMPLE)


def test_catalogue_states_defaults_and_bounds() -> None:
    rows = {row["name"]: row for row in settings(Registry([EXAMPLE]).method("sign-mark"))}
    assert rows["bits"]["default"] == 64
    assert rows["bits"]["bounds"] == [">= 16", "<= 4096"]
    assert rows["margin"]["bounds"] == ["> 0"]
    assert rows["allow_weak"]["type"] == "boolean"
