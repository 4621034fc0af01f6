"""A mapping by key that plugins may extend but never overwrite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from assay.tasks.errors import BadInput

V = TypeVar("V")


class Registry(Mapping[str, V], Generic[V]):
    """Read like a dict; grows by `register` alone, so nothing is replaced behind anybody's back."""

    def __init__(self, what: str, entries: Mapping[str, V]) -> None:
        self.what = what
        self._entries = dict(entries)

    def __getitem__(self, key: str) -> V:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.what}: {', '.join(sorted(self._entries))})"

    def register(self, key: str, value: V) -> None:
        """Add an entry; adding the same one again (a plugin file executed once more) changes nothing.

        Raises:
            BadInput: the key is taken by something else, or is no lower-case word of letters, digits and `-_.`.
        """
        if not key or not all(c.isdigit() or c in "-_." or ("a" <= c <= "z") for c in key):
            raise BadInput(f"{self.what} key {key!r} must be lower-case letters, digits, '-', '_' and '.' only")
        if key in self._entries:
            if _origin(self._entries[key]) != _origin(value):
                raise BadInput(f"{self.what} {key!r} is registered already; choose another key")
            return
        self._entries[key] = value


def _origin(value: Any) -> Any:
    """Return what two executions of one plugin file have in common: a function's code, a class's name and body."""
    if hasattr(value, "__code__"):
        return value.__qualname__, value.__code__
    if isinstance(value, type):
        return value.__qualname__, [getattr(member, "__code__", None) for member in vars(value).values()]
    if isinstance(value, tuple):
        return tuple(_origin(part) for part in value)
    return value
