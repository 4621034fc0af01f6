"""What a grid can name: shipped methods and attacks, those of installed packages, and plugin files given explicitly."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal, TypeVar, get_args

from assay.attacks import ATTACKS
from assay.attacks.base import Attack, Kind
from assay.methods import METHODS
from assay.methods.base import Family, Method
from assay.methods.suspect import Access
from assay.tasks.errors import BadInput, unknown

Plugin = Method[Any] | Attack[Any]
_P = TypeVar("_P", bound=Plugin)
_KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FACTS: Mapping[type[Any], Mapping[str, tuple[str, ...]]] = {
    Method: {"title": (), "paper": (), "access": get_args(Access), "family": get_args(Family)},
    Attack: {"title": (), "source": (), "access": get_args(Access), "kind": get_args(Kind)},
}


def fingerprint(file: Path) -> str:
    """Return the SHA-256 of a plugin's source, for the records: it tells whether two sweeps ran the same code."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_plugin(file: Path) -> ModuleType:
    """Import a plugin file by its path; the same source is imported once per process, wherever it lies.

    Raises:
        BadInput: no such file, or its code raised; one line with the plugin's own line number.
    """
    path = file.expanduser().resolve()
    if not path.is_file():
        raise BadInput(f"plugin {file}: no such file")
    # The name holds the content, so that two files of one name, or an edited one, are never confused.
    name = f"assay_plugin_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{fingerprint(path)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"plugin {file}: expected a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BadInput(f"plugin {file}:{_line(error, path)}: {type(error).__name__}: {_first_line(error)}") from error
    return module


def _line(error: BaseException, path: Path) -> int:
    """Return the line of `path` at which its import went wrong."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return next((line for line in reversed(frames) if line), 1)


def _first_line(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return next(iter(text.strip().splitlines()), "no message")


def plugin_classes(module: ModuleType, base: type[Any], where: str) -> list[type[Any]]:
    """Return the concrete subclasses of `base` that a module defines itself, in their order, with their facts checked.

    A class that others of the module extend is their common part and is not taken.

    Raises:
        BadInput: a class lacks a method or a fact, or has one of another kind than allowed.
    """
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    found: list[type[Any]] = []
    for cls in dict.fromkeys(own):
        if not issubclass(cls, base):
            continue
        if any(other is not cls and issubclass(other, cls) for other in own) and inspect.isabstract(cls):
            continue
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise BadInput(f"{where}: class {cls.__name__} does not define {missing}")
        _check_facts(cls, base, where)
        found.append(cls)
    return found


def _check_facts(cls: type[Any], base: type[Any], where: str) -> None:
    key = getattr(cls, "key", None)
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        found = "none" if key is None else repr(key)
        raise BadInput(f"{where}: class {cls.__name__}: `key` is {found}; expected lower-case words joined by '-'")
    for fact, allowed in _FACTS[base].items():
        value = getattr(cls, fact, None)
        if not isinstance(value, str) or not value or (allowed and value not in allowed):
            found = "missing" if value is None else repr(value)
            expected = f"one of {', '.join(allowed)}" if allowed else "a text"
            raise BadInput(f"{where}: class {cls.__name__}: `{fact}` is {found}; expected {expected}")


class Registry:
    """All methods and attacks by key; keys are unique, and every class knows where it came from.

    Attributes:
        methods, attacks: key -> class, sorted by key.
        plugins: the plugin files, resolved, in the order given.
    """

    def __init__(self, plugins: Sequence[Path] = ()) -> None:
        """Collect the shipped classes, the entry points `assay.*` of installed packages, and plugin files.

        Raises:
            BadInput: a plugin cannot be imported or used, or a key is taken twice; the text names both places.
        """
        methods: dict[str, type[Method[Any]]] = {}
        attacks: dict[str, type[Attack[Any]]] = {}
        self._places: dict[tuple[str, str], str] = {}
        self._sources: dict[tuple[str, str], str] = {}
        for method in METHODS.values():
            self._add(methods, "method", method, method.__module__)
        for attack in ATTACKS.values():
            self._add(attacks, "attack", attack, attack.__module__)
        for _ in _installed("assay.tasks"):
            pass  # importing them registers their data sets and architectures
        for point, found in _installed("assay.methods"):
            self._add(methods, "method", _entry_class(found, Method, point), _place(point))
        for point, found in _installed("assay.attacks"):
            self._add(attacks, "attack", _entry_class(found, Attack, point), _place(point))
        self.plugins = tuple(dict.fromkeys(file.expanduser().resolve() for file in plugins))
        for file in self.plugins:
            module = load_plugin(file)
            for method in plugin_classes(module, Method, f"plugin {file}"):
                self._add(methods, "method", method, str(file))
                self._sources["method", method.key] = fingerprint(file)[:16]
            for attack in plugin_classes(module, Attack, f"plugin {file}"):
                self._add(attacks, "attack", attack, str(file))
                self._sources["attack", attack.key] = fingerprint(file)[:16]
        self.methods: Mapping[str, type[Method[Any]]] = MappingProxyType(dict(sorted(methods.items())))
        self.attacks: Mapping[str, type[Attack[Any]]] = MappingProxyType(dict(sorted(attacks.items())))

    def _add(self, taken: dict[str, type[_P]], what: Literal["method", "attack"], cls: type[_P], place: str) -> None:
        if cls is taken.get(cls.key):
            return
        if cls.key in taken:
            first = self._places[what, cls.key]
            raise BadInput(f"{place}: {what} key {cls.key!r} is already taken by {first}; choose another `key`")
        taken[cls.key] = cls
        self._places[what, cls.key] = place

    def method(self, key: str, where: str = "") -> type[Method[Any]]:
        """Return a method's class; an unknown key is `BadInput` with the nearest match and `where` it was written."""
        if key not in self.methods:
            raise unknown("method", key, self.methods, where)
        return self.methods[key]

    def attack(self, key: str, where: str = "") -> type[Attack[Any]]:
        """Return an attack's class; an unknown key is `BadInput` with the nearest match and `where` it was written."""
        if key not in self.attacks:
            raise unknown("attack", key, self.attacks, where)
        return self.attacks[key]

    def source(self, what: Literal["method", "attack"], key: str) -> str:
        """Return the first 16 digits of the SHA-256 of the plugin file behind a class; empty for installed code."""
        return self._sources.get((what, key), "")

    def place(self, what: Literal["method", "attack"], key: str) -> str:
        """Return where a registered class came from: a module, a package's entry point, or a plugin file."""
        return self._places[what, key]


def _place(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an unknown package"
    return f"entry point {point.group}:{point.name} of {package}"


def _installed(group: str) -> Iterator[tuple[EntryPoint, object]]:
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        load: Callable[[], object] = point.load
        try:
            yield point, load()
        except (Exception, SystemExit) as error:
            text = f"{type(error).__name__}: {_first_line(error)}"
            raise BadInput(f"{_place(point)} ({point.value}): {text}") from error


def _entry_class(found: object, base: type[Any], point: EntryPoint) -> type[Any]:
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise BadInput(f"{_place(point)}: {point.value} is not a concrete subclass of {base.__name__}")
    _check_facts(found, base, _place(point))
    return found
