"""Classes that stand in no plugin file: what they are, and how they reach a process that cannot import them."""

from __future__ import annotations

import hashlib
import linecache
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from assay.methods.clean import Clean
from assay.orchestrator.planning.classes import class_source, pack_classes, unpack_classes
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.work.bench import _registry
from assay.tasks.errors import BadInput

TEXT = """
from assay.methods.clean import Clean


class Common(Clean):
    constant = 1


class Mine(Common):
    key, title = "mine", "Mine"

    def weight(self):
        return HELP + 1


HELP = 41
"""


@pytest.fixture
def loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a module of a text: of a file beside a notebook, or of a notebook's cell."""

    def make(text: str = TEXT, name: str = "loose", cell: bool = False) -> Any:
        module = ModuleType(name)
        path = tmp_path / f"{name}.py"
        if cell:
            lines = text.splitlines(keepends=True)
            monkeypatch.setitem(linecache.cache, str(path), (len(text), None, lines, str(path)))
        else:
            path.write_text(text, "utf-8")
            module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(text, str(path), "exec"), vars(module))  # noqa: S102
        return module

    return make


def source(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_class_joins_the_shipped_ones_with_its_source_and_place(loose: Any) -> None:
    registry = Registry(classes=(loose().Mine,))
    assert registry.method("mine").title == "Mine"
    assert registry.place("method", "mine") == "class loose.Mine"
    assert len(registry.source("method", "mine")) == 16
    assert registry.source("method", "clean") == ""
    assert registry.source("attack", "prune") == ""


@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        ("HELP + 1", "HELP + 2", True),
        ("constant = 1", "constant = 2", True),
        ("\n\nHELP = 41", "\n\n\nHELP = 41", False),
    ],
)
def test_the_source_follows_the_class_and_its_bases_alone(
    loose: Any, before: str, after: str, differs: bool, cell: bool
) -> None:
    first = class_source(loose(name="first", cell=cell).Mine)
    assert b"class Mine" in first
    assert b"HELP = 41" not in first
    second = class_source(loose(TEXT.replace(before, after), name="second", cell=cell).Mine)
    assert (first != second) is differs


def test_code_without_a_text_is_told_apart_by_its_bytes() -> None:
    made = [type("Made", (Clean,), {"key": "made", "constant": value}) for value in (1, 2)]
    assert class_source(made[0]) != class_source(made[1])


UNPACK = """
import sys
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.work.bench import _registry
with open(sys.argv[1], "rb") as file:
    mine = _registry((), file.read()).method("mine")
assert "loose" not in sys.modules
print(mine.title, mine.weight(None))
"""


def test_a_class_works_in_a_process_that_cannot_import_it(loose: Any, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(pack_classes((loose().Mine,)))
    command = [sys.executable, "-c", UNPACK, str(packed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Mine 42\n", "")


def test_an_installed_class_travels_by_name_and_none_is_nothing() -> None:
    packed = pack_classes((Clean,))
    assert unpack_classes(packed) == (Clean,)
    assert len(packed) < 200
    assert unpack_classes(b"") == ()
    assert _registry((), b"").source("method", "clean") == ""


def test_what_is_no_plugin_or_not_complete_is_one_line(loose: Any) -> None:
    with pytest.raises(BadInput, match="expected classes that extend Method or Attack, found <class 'int'>"):
        Registry(classes=(int,))  # type: ignore[arg-type]
    nameless = loose(TEXT.replace('"mine"', '"Mine!"')).Mine
    with pytest.raises(BadInput, match=r"class loose\.Mine: class Mine: `key` is 'Mine!'"):
        Registry(classes=(nameless,))
    taken = loose(TEXT.replace('"mine"', '"uchida"')).Mine
    with pytest.raises(BadInput, match=r"class loose\.Mine: method key 'uchida' is already taken by assay\.methods"):
        Registry(classes=(taken,))


def test_the_source_of_a_plugin_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "examples" / "sign_mark.py"
    assert Registry([file]).source("method", "sign-mark") == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    edited = tmp_path / "sign_mark.py"
    edited.write_text(file.read_text("utf-8") + "\n# a remark\n", "utf-8")
    assert Registry([edited]).source("method", "sign-mark") == source(edited.read_text("utf-8"))
