"""Methods and attacks that stand in no plugin file, such as a notebook's: how they reach workers, and what they are."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import linecache
import pickle
import sys
import sysconfig
from collections import ChainMap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import cloudpickle
import torch


def _by_name(module: ModuleType) -> tuple[Any, ...]:
    return importlib.import_module, (module.__name__,)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not typed
    """Takes torch's lazy modules: to cloudpickle, code with `torch` and `x.classes` seems to use `torch.classes`."""

    dispatch_table: ClassVar = ChainMap(
        {type(torch.classes): _by_name, type(torch.ops): _by_name}, cloudpickle.Pickler.dispatch_table
    )


def _pickled(value: Any) -> bytes:
    packed = io.BytesIO()
    _Pickler(packed).dump(value)
    return packed.getvalue()


def pack_classes(classes: Sequence[type[Any]]) -> bytes:
    """Return classes in a form that travels to workers, which need not be able to import them: a notebook's own.

    Classes of the notebook or script itself, and of modules that are not installed, travel with their code.
    """
    loose = {sys.modules[cls.__module__] for cls in classes if _is_loose(cls.__module__)}
    for module in loose:
        cloudpickle.register_pickle_by_value(module)
    try:
        return _pickled(tuple(classes))
    finally:
        for module in loose:
            cloudpickle.unregister_pickle_by_value(module)


def unpack_classes(packed: bytes) -> tuple[type[Any], ...]:
    """Return what `pack_classes` packed; only ever our own driver's bytes."""
    classes: tuple[type[Any], ...] = pickle.loads(packed) if packed else ()  # noqa: S301
    return classes


def _is_loose(name: str) -> bool:
    """Whether a module lies in no installed package, so that workers may not find it; `__main__` travels anyway."""
    module = sys.modules.get(name)
    if name == "__main__" or module is None or name.partition(".")[0] == "assay":
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__spec__ is None  # made by hand; an interpreter's own has a specification
    installed = {sysconfig.get_path(place) for place in ("stdlib", "platlib", "purelib")}
    return not any(Path(file).is_relative_to(folder) for folder in installed)


def class_source(cls: type[Any]) -> bytes:
    """Return what tells whether two classes are the same code: their texts, or their pickled code if there is none.

    The texts are those of the class and of the bases beside it in its module, not of functions that they call. Code
    that was never in a file or a notebook's cell has no text; its bytes differ between processes, so that its stages
    run again.
    """
    beside = [base for base in cls.__mro__ if base.__module__ == cls.__module__]
    files = {file for base in beside for file in _files(base)}
    texts = [_text(base, files) for base in beside]
    return pack_classes((cls,)) if None in texts else "\n".join(filter(None, texts)).encode()


def _text(cls: type[Any], files: set[str]) -> str | None:
    with suppress(OSError, TypeError):
        return inspect.getsource(cls)
    # A notebook's cell: `inspect` knows the texts of its functions, but of no class.
    for file in sorted(files):
        with suppress(SyntaxError):
            text = "".join(linecache.getlines(file))
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                    return ast.get_source_segment(text, node)
    return _spelled_out(cls)


def _files(cls: type[Any]) -> set[str]:
    """Names of the files or cells in which a class's own functions stand."""
    members = [getattr(member, "__func__", getattr(member, "fget", member)) for member in vars(cls).values()]
    codes = [getattr(member, "__code__", None) for member in members]
    return {code.co_filename for code in codes if code is not None}


def _spelled_out(cls: type[Any]) -> str | None:
    """Return the name, bases and values of a class without functions; None if a value cannot be spelled."""
    values = {name: _spelled(value) for name, value in vars(cls).items() if not name.startswith(("__", "_abc_"))}
    if None in values.values():
        return None
    lines = [f"    {name} = {value}" for name, value in sorted(values.items())]
    bases = ", ".join(base.__qualname__ for base in cls.__bases__)
    return "\n".join([f"class {cls.__qualname__}({bases}):", *lines])


def _spelled(value: Any) -> str | None:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, dict):
        value = list(value.items())
    if not isinstance(value, list | tuple):
        return None
    parts = [_spelled(part) for part in value]
    return None if None in parts else f"[{', '.join(filter(None, parts))}]"
