"""The axes of a grid: tasks, methods and attacks, expanded and each checked where it was written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from assay.attacks.base import Attack
from assay.methods.base import Method
from assay.orchestrator.planning.calibration import ELSEWHERE, Calibration
from assay.orchestrator.planning.configs import takes_list
from assay.orchestrator.planning.settings import CHAIN
from assay.orchestrator.planning.written import Places, Steps, kind, mapping
from assay.tasks.errors import BadInput, unknown
from assay.tasks.task import named_tasks, resolve_task, unknown_task
from assay.tasks.training.schedule import Frozen, parse

_ONLY = "only"  # of a method or attack: the tasks that an entry is for

Plugins = Mapping[str, type[Method[Any]] | type[Attack[Any]]]


@dataclass(frozen=True)
class Entry:
    """One resolved point of an axis.

    Attributes:
        key: the task, method or attack; `chain` for attacks one after the other.
        params: its parameters as written, defaults not yet filled in; none of the calibration.
        where: file and line, for messages.
        tasks: keys of the tasks that a method or attack is for; empty: all of the grid.
        links: the attacks of a chain, each on the surrogate of the one before; empty for all other entries.
        calibration: of a task: its own settings of the section `calibration`, before which the grid's stand back.
    """

    key: str
    params: dict[str, Any]
    where: str
    tasks: tuple[str, ...] = ()
    links: tuple[Entry, ...] = ()
    calibration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """One axis of a grid.

    Attributes:
        name: tasks, methods or attacks.
        places: where its parts were written.
        base: the built-in profile whose settings the entries start from.
        plugins: what may be named; None: tasks.
    """

    name: str
    places: Places
    base: str
    plugins: Plugins | None = None

    def entries(self, written: Any) -> Iterator[Entry]:
        """Expand the axis as written: a list under a parameter is an axis of its own.

        Raises:
            BadInput: an entry is malformed, unknown, or its plugin refuses a parameter; the place, what was found.
        """
        where = self.places.where(self.name)
        if written is None or written in ([], {}):
            raise BadInput(f"{where}: {self.name} is empty; name at least one (see: assay list {self.name})")
        for key, params, at in self._pairs(written, (self.name,)):
            if key == CHAIN and self.name == "attacks":
                yield from self._chains(params, at)
            else:
                yield from self._expanded(key, params, at)

    def _pairs(self, written: Any, at: Steps) -> Iterator[tuple[str, Any, Steps]]:
        """Yield key, parameters as written, and path of each entry of a list."""
        if isinstance(written, str | dict):
            written = [written]
            self.places.move(at, (*at, 0))
        if not isinstance(written, list):
            raise BadInput(f"{self.places.where(*at)}: {at[-1]} must be a list, found {kind(written)}")
        for index, item in enumerate(written):
            pairs = {item: {}} if isinstance(item, str) else item
            where = self.places.where(*at, index)
            if not isinstance(pairs, dict) or not pairs:
                raise BadInput(f"{where}: {at[0]} takes a key or `key: {{parameters}}`, found {kind(item)}")
            if at[-1] == CHAIN and len(pairs) > 1:
                raise BadInput(f"{where}: a link of a chain is one attack, found {', '.join(map(str, pairs))}")
            for key, params in pairs.items():
                if not isinstance(key, str):
                    raise BadInput(f"{where}: {at[0]} are named by text, found {kind(key)}; put it in quotes")
                yield key, params, (*at, index, key)

    def _chains(self, links: Any, at: Steps) -> Iterator[Entry]:
        where = self.places.where(*at)
        if not isinstance(links, list) or len(links) < 2:
            raise BadInput(f"{where}: chain takes a list of at least two attacks, found {kind(links)}")
        choices = []
        for key, params, path in self._pairs(links, at):
            if key == CHAIN:
                raise BadInput(f"{self.places.where(*path)}: a chain holds attacks, not chains")
            choices.append(list(self._expanded(key, params, path)))
            if any(link.tasks for link in choices[-1]):
                raise BadInput(f"{self.places.where(*path, _ONLY)}: {_ONLY} stands with an entry, not within a chain")
        for chosen in itertools.product(*choices):
            yield Entry(CHAIN, {}, where, links=chosen)

    def _expanded(self, key: str, written: Any, at: Steps) -> Iterator[Entry]:
        where = self.places.where(*at)
        if self.plugins is not None and key not in self.plugins:
            raise unknown(self.name.removesuffix("s"), key, self.plugins, where)
        params = mapping(written, key, where)
        tasks = self._only(params, at) if self.plugins is not None else ()
        config = self.plugins[key].Config if self.plugins is not None else None
        for point, paths in _points(params, config, at, self.places):
            if self.plugins is None:
                calibration = self._check_task(key, point, paths, at)
                yield Entry(key, point, where, calibration=calibration)
            else:
                self._check_plugin(self.plugins[key], point, paths, at)
                yield Entry(key, point, where, tasks)

    def _only(self, params: dict[str, Any], at: Steps) -> tuple[str, ...]:
        """Take `only`, the tasks that an entry is for, out of its parameters; the grid need not have them all."""
        if _ONLY not in params:
            return ()
        written, where = params.pop(_ONLY), self.places.where(*at, _ONLY)
        named = written if isinstance(written, list) else [written]
        if not named:
            raise BadInput(f"{where}: {_ONLY} is an empty list; name at least one task, or leave it out")
        for key in named:
            if key not in named_tasks():
                raise unknown_task(str(key), f"{where}: {_ONLY}: ")
        return tuple(named)

    def _check_task(self, key: str, point: dict[str, Any], paths: dict[str, Steps], at: Steps) -> dict[str, Any]:
        """Check a task; take the settings of the calibration out of its parameters and return them."""
        resolve_task(key, self.base, {}, self.places.where(*at))
        for name, value in point.items():
            if name not in ELSEWHERE:
                resolve_task(key, self.base, {name: value}, self.places.where(*paths[name]))
        calibration = {ELSEWHERE[name]: point.pop(name) for name in ELSEWHERE if name in point}
        names = {field: name for name, field in ELSEWHERE.items()}

        def locate(steps: Steps) -> str:
            return self.places.where(*paths[names[str(steps[0])]]) if steps else self.places.where(*at)

        parse(Calibration, calibration, key, locate)
        return calibration

    def _check_plugin(
        self, cls: type[Method[Any]] | type[Attack[Any]], point: dict[str, Any], paths: dict[str, Steps], at: Steps
    ) -> None:
        params = {**(cls.laptop if self.base != "paper" else {}), **point}

        def locate(steps: Steps) -> str:
            path = paths.get(str(steps[0]), at) if steps else at
            return f"{self.places.where(*path, *steps[1:])}: {cls.key}"

        parse(cls.Config, params, cls.key, locate)


def _points(
    params: dict[str, Any], config: type[Frozen] | None, at: Steps, places: Places
) -> Iterator[tuple[dict[str, Any], dict[str, Steps]]]:
    """Yield each choice of parameters, and the path at which each of its values was written."""
    axes: list[list[tuple[str, Any, Steps]]] = []
    for name, value in params.items():
        own_list = takes_list(config, name) if config is not None else name == "drops"
        many = isinstance(value, list) and (not own_list or (bool(value) and isinstance(value[0], list)))
        path = (*at, name)
        if many and not value:
            raise BadInput(f"{places.where(*path)}: {name} is an empty list; give at least one value")
        axes.append([(name, v, (*path, i)) for i, v in enumerate(value)] if many else [(name, value, path)])
    for chosen in itertools.product(*axes):
        yield {name: value for name, value, _ in chosen}, {name: path for name, _, path in chosen}
