"""A grid's text as YAML reads it, and where each part of it was written: a line of the file, or `--set`."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from assay.tasks.errors import BadInput

Steps = tuple[str | int, ...]

_MOST_NODES = 100_000  # aliases of aliases can make billions of a few lines
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?[0-9][0-9_]*$|0x[0-9a-fA-F]+$|0o[0-7]+$")
_REPLACED = ("float", "int", "timestamp")


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2: `1e-3` is one; `010` is ten; `1:30` and dates are text."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _REPLACED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """Return the value of an integer as YAML 1.2 writes it."""
        text = str(node.value).replace("_", "")
        try:
            return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
        except ValueError:  # Python refuses to convert more than some thousand digits
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(text)} digits", node.start_mark
            ) from None


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def value_of(text: str) -> Any:
    """Return the value of a piece of YAML.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader with other numbers)


class Places:
    """Where the parts of a grid were written, by their path of keys and positions."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._at: dict[Steps, str] = {}

    def where(self, *path: str | int) -> str:
        """Return the place of the longest known prefix of a path: `file, line n`, or `--set K=V`; else the file."""
        steps = path
        while steps and steps not in self._at:
            steps = steps[:-1]
        return self._at.get(steps, self.file)

    def put(self, path: Steps, where: str) -> None:
        """Say that what is at `path`, with all below it, was written elsewhere."""
        self._drop(path)
        self._at[path] = where

    def move(self, source: Steps, target: Steps) -> None:
        """Say that what was written at `source` stands at `target` from now on."""
        moved = {target + steps[len(source) :]: at for steps, at in self._at.items() if steps[: len(source)] == source}
        self._drop(target)
        self._at |= moved

    def _drop(self, path: Steps) -> None:
        self._at = {steps: at for steps, at in self._at.items() if steps[: len(path)] != path}

    def read(self, node: yaml.Node, path: Steps = (), above: tuple[int, ...] = ()) -> None:
        """Note the lines of a node and of all below it.

        Raises:
            BadInput: a key is written twice, or an alias contains itself or multiplies beyond measure.
        """
        if id(node) in above or len(self._at) > _MOST_NODES:
            raise BadInput(f"{self._line(node)}: an alias that contains itself, or too many of them; write it out")
        self._at.setdefault(path, self._line(node))
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                if name in seen:
                    raise BadInput(f"{self._line(key)}: key {name!r} is written twice; keep one")
                seen.add(name)
                self._at[(*path, name)] = self._line(key)
                self.read(value, (*path, name), above)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.read(value, (*path, index), above)

    def _line(self, node: yaml.Node) -> str:
        return f"{self.file}, line {node.start_mark.line + 1}"


def load(text: str, file: str) -> tuple[Any, Places]:
    """Return the value of a YAML text and the places of its parts.

    Raises:
        BadInput: it is no YAML, a key is written twice, or its aliases have no end; one line.
    """
    places = Places(file)
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            places.read(node)
        return value_of(text), places
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise BadInput(f"{file}{line}: not valid YAML ({problem})") from None
    except RecursionError:
        raise BadInput(f"{file}: nested too deeply for a grid") from None


def kind(value: Any) -> str:
    """Return what a value is and the value itself, short, for messages."""
    names = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number", type(None): "nothing"}
    return f"{names.get(type(value), type(value).__name__)} ({value!r})"[:80]


def mapping(value: Any, what: str, where: str) -> dict[str, Any]:
    """Return `parameter: value` pairs with text keys; nothing is an empty mapping.

    Raises:
        BadInput: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInput(f"{where}: {what} takes `parameter: value` pairs, found {kind(value)}")
    return {str(key): entry for key, entry in value.items()}
