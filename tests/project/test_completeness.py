"""Nothing is half added: modules, registries, documents and build settings name the same methods and attacks."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from assay import attacks, methods
from assay.attacks.base import Attack
from assay.methods.base import Method

ROOT = Path(__file__).parents[2]
PUBLIC = (
    "assay.attacks.base", "assay.methods.base", "assay.methods.reading", "assay.results.schema",
    "assay.tasks.calibration", "assay.tasks.training.recipe",
)  # fmt: skip
SEAMS = {
    "assay.methods": {"base", "embedding", "families", "null", "parts", "reading", "rival", "suspect"},
    "assay.attacks": {"base", "parts"},
}
PACKAGES = [(methods, Method, methods.METHODS), (attacks, Attack, attacks.ATTACKS)]


@pytest.mark.parametrize(("package", "base", "registered"), PACKAGES, ids=["methods", "attacks"])
def test_every_module_is_registered_under_its_name(
    package: ModuleType, base: type[Any], registered: Mapping[str, type[Any]]
) -> None:
    names = {info.name for info in pkgutil.iter_modules(package.__path__)} - SEAMS[package.__name__]
    assert {cls.__module__ for cls in registered.values()} == {f"{package.__name__}.{name}" for name in names}
    for name in names:
        module = importlib.import_module(f"{package.__name__}.{name}")
        own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
        plugins: list[Any] = [c for c in own if issubclass(c, base) and not inspect.isabstract(c)]
        assert [c.key.replace("-", "_") for c in plugins] == [name]


@pytest.mark.parametrize(("package", "base", "registered"), PACKAGES, ids=["methods", "attacks"])
def test_readme_lists_what_is_registered(
    package: ModuleType, base: type[Any], registered: Mapping[str, type[Any]]
) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    name = package.__name__.rpartition(".")[2]
    table = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE) == sorted(registered)


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_link_to_files_and_headings_that_exist(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", document.read_text("utf-8"))
    assert links or document.name == "CHANGELOG.md"
    for target, heading in links:
        place = document.parent / target if target else document
        assert place.exists(), f"{document.name}: {target}"
        assert not heading or heading in _anchors(place), f"{document.name}: {target}#{heading}"


def _anchors(document: Path) -> set[str]:
    """Return the anchors that forges make of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_code_refers_to_sections_of_the_protocol_that_exist() -> None:
    sections = set(re.findall(r"^## (\d+) ", (ROOT / "docs" / "protocol.md").read_text("utf-8"), re.MULTILINE))
    named: set[str] = set()
    for folder in ("attacks", "methods", "orchestrator", "results", "tasks"):
        for file in (ROOT / folder).rglob("*.py"):
            for group in re.findall(r"docs/protocol\.md((?:[ ,]|and|§\d+)*)", file.read_text("utf-8")):
                named |= set(re.findall(r"§(\d+)", group))
    assert named
    assert named <= sections


def test_every_folder_of_code_is_a_package() -> None:
    """A folder without `__init__.py` would be left out of the wheel."""
    tops = [link.resolve() for link in (ROOT / "src" / "assay").iterdir() if link.is_symlink()]
    assert {top.parent for top in tops} == {ROOT}
    folders = {file.parent for top in tops for file in top.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_readme_shows_the_example_as_it_is() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for name in ("sign_mark.py", "sign_mark.yaml", "flat_colours.py", "flat_colours.yaml"):
        assert (ROOT / "examples" / name).read_text("utf-8").strip() in text, f"README.md shows an older {name}"


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed


def test_a_method_stays_small() -> None:
    """At most ten public parts in the base class, a page for each method, and an example that fits on one."""
    public = [name for name, part in vars(Method).items() if inspect.isfunction(part) and not name.startswith("_")]
    assert len(public) <= 10
    lengths = {file.name: len(file.read_text("utf-8").splitlines()) for file in (ROOT / "methods").glob("*.py")}
    assert max(lengths.values()) <= 260
    assert len((ROOT / "examples" / "sign_mark.py").read_text("utf-8").splitlines()) <= 60
