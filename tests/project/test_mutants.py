"""The planter of mutants: what it plants, what it leaves alone, and that a run tells caught from survived."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "mutants.py"
SOURCE = '''"""One: 1 < 2."""
from dataclasses import dataclass

@dataclass(frozen=True)
class A:
    x: "int | None" = 3

def f(a: "list[1]", b=True):
    """Text 5."""
    if not a and b:
        raise ValueError(f"{a + 1}")
    a.append("é")
    return len(a) + 1 <= 4
'''


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assay_mutants", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_each_kind_is_planted_and_texts_annotations_and_decorators_are_left_alone(driver: ModuleType) -> None:
    source = SOURCE.encode()
    changes = {(m.line, m.kind, m.change(source)[1]) for m in driver.mutants("m.py", source)}
    assert changes == {
        (6, "constant", 'x: "int | None" = 4'),
        (6, "constant", 'x: "int | None" = 2'),
        (8, "flag", 'def f(a: "list[1]", b=False):'),
        (10, "not", "if a and b:"),
        (10, "and/or", "if not a or b:"),
        (11, "statement", "pass"),
        (12, "statement", "pass"),
        (13, "return", "return None"),
        (13, "arithmetic", "return len(a) - 1 <= 4"),
        (13, "comparison", "return len(a) + 1 < 4"),
        (13, "comparison", "return len(a) + 1 > 4"),
        (13, "constant", "return len(a) + 2 <= 4"),
        (13, "constant", "return len(a) + 0 <= 4"),
        (13, "constant", "return len(a) + 1 <= 5"),
        (13, "constant", "return len(a) + 1 <= 3"),
    }


def test_mutants_of_every_named_module_are_python_and_differ(driver: ModuleType) -> None:
    for file, tests in driver.MODULES.values():
        path = driver.ROOT / file
        assert tests
        if not path.is_file():
            continue
        source = path.read_bytes()
        sound = ast.dump(ast.parse(source))
        for mutant in driver.sample(driver.mutants(file, source), 10, 0):
            assert ast.dump(ast.parse(mutant.apply(source))) != sound, mutant


def test_a_seed_plants_the_same_mutants(driver: ModuleType) -> None:
    found = driver.mutants("m.py", SOURCE.encode())
    assert driver.sample(found, 5, 1) == driver.sample(found, 5, 1)
    assert driver.sample(found, 5, 1) != driver.sample(found, 5, 2)
    assert driver.sample(found, 99, 1) == found == driver.sample(found, None, 1)


def test_the_list_of_equivalent_mutants_is_current(driver: ModuleType) -> None:
    present = [name for name, (file, _) in driver.MODULES.items() if (driver.ROOT / file).is_file()]
    driver.plan(present, None, 0)  # raises on an entry that matches no mutant
    assert all(entry.why for entry in driver.read_equivalent())


@pytest.fixture
def small(driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a tree with one module, one test that sees half of it, and no equivalent mutants."""
    (tmp_path / "src").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "m.py").write_text("def f(a):\n    return a < 2\n")
    (tmp_path / "src" / "pack").symlink_to("../real")
    (tmp_path / "test_m.py").write_text(
        "from pack.m import f\n\ndef test_f():\n    assert f(1) is True\n    assert f(3) is False\n"
    )
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # noqa: S607
    (tmp_path / "none.yaml").write_text("[]")
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    monkeypatch.setattr(driver, "EQUIVALENT", tmp_path / "none.yaml")
    monkeypatch.setattr(driver, "MODULES", {"m": ("real/m.py", ["test_m.py"])})
    monkeypatch.setattr(driver.os, "nice", lambda _: 0)
    return tmp_path


def run(driver: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--processes", "1", *arguments])
    return int(driver.main())


@pytest.mark.slow
def test_a_run_tells_caught_from_survived_and_leaves_the_tree_alone(
    driver: ModuleType, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (small / "real" / "m.py").read_text()
    assert run(driver, monkeypatch) == 1
    said = capsys.readouterr().out
    assert "survived real/m.py:2 comparison\n    - return a < 2\n    + return a <= 2\n" in said
    assert "caught   real/m.py:2 return" in said
    assert "4 of 5 caught" not in said
    assert "m            3 of 5 caught" in said, "a < 3 survives as well"
    assert (small / "real" / "m.py").read_text() == before


@pytest.mark.slow
def test_tests_that_fail_without_a_mutant_are_one_line(
    driver: ModuleType, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "test_m.py").write_text("def test_f():\n    assert False\n")
    assert run(driver, monkeypatch) == 2
    assert capsys.readouterr().err == "mutants: m: test_m.py fail without a mutant; mend them first\n"


def test_a_stale_entry_and_a_missing_module_are_one_line(
    driver: ModuleType, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = '- {file: real/m.py, before: "return a < 9", after: "return a <= 9", why: "it is"}\n'
    (small / "none.yaml").write_text(entry)
    assert run(driver, monkeypatch) == 2
    assert "no mutant of real/m.py turns 'return a < 9' into 'return a <= 9'" in capsys.readouterr().err
    (small / "none.yaml").write_text(entry.replace("9", "2"))
    assert len(driver.plan(["m"], None, 0)["m"]) == 4
    (small / "real" / "m.py").unlink()
    assert run(driver, monkeypatch) == 2
    assert capsys.readouterr().err.count("\n") == 1
