"""The grid: one YAML file that names tasks, methods, attacks and seeds; and its expansion into a plan.

Order, nesting and splitting of a grid never change keys or results: entries are expanded, resolved with all defaults,
and only then keyed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from assay.orchestrator.planning.catalogue import shipped_grids
from assay.orchestrator.planning.configs import takes_list
from assay.orchestrator.planning.registry import Registry
from assay.tasks.errors import BadInput, nearest, unknown
from assay.tasks.task import named_tasks, unknown_task
from assay.tasks.task import profiles as task_profiles

_TOP = ("name", "tasks", "methods", "attacks", "seeds", "attack_seeds", "train", "profile", "profiles", "about")
_AXES = ("tasks", "methods", "attacks")
_ONLY = "only"  # of a method or attack: the tasks that an entry is for


@dataclass(frozen=True)
class Entry:
    """One resolved point of an axis.

    Attributes:
        key: the task, method or attack.
        params: its parameters as written, defaults not yet filled in.
        where: file and line, for messages.
        tasks: keys of the tasks that a method or attack is for; empty: all of the grid.
    """

    key: str
    params: dict[str, Any]
    where: str
    tasks: tuple[str, ...] = ()


@dataclass
class Grid:
    """A parsed grid under one profile.

    Attributes:
        name: for people, and for the MLflow experiment.
        profile: the profile in force.
        tasks, methods, attacks: expanded entries.
        seeds: victim seeds.
        attack_seeds: attack seeds per victim.
        train: overrides of every task's schedule and sizes.
        source: the text that was read, for the sweep's record.
    """

    name: str
    profile: str
    tasks: list[Entry]
    methods: list[Entry]
    attacks: list[Entry]
    seeds: list[int]
    attack_seeds: list[int]
    train: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def read(name: str) -> tuple[str, str]:
    """Return (place, text) of a grid given as a file or as the name of a shipped one."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        try:
            return str(path), path.read_text("utf-8")
        except OSError as error:
            raise BadInput(f"{name}: cannot read the grid file ({error.strerror})") from None
    grids = shipped_grids()
    if name not in grids:
        allowed = ", ".join(sorted(grids))
        raise BadInput(f"unknown grid {name!r}{nearest(name, grids)} (allowed: a .yaml file, or one of {allowed})")
    return f"{name}.yaml", grids[name].read_text("utf-8")


class _Lines:
    """Line numbers of a YAML text by path of keys and positions."""

    def __init__(self, text: str, place: str) -> None:
        self.place = place
        self.at: dict[tuple[str | int, ...], int] = {}
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            self._walk(node, ())

    def _walk(self, node: yaml.Node, path: tuple[str | int, ...]) -> None:
        self.at.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in seen:
                    raise BadInput(f"{self.place}, line {line}: key {name!r} is written twice; keep one")
                seen.add(name)
                self.at[(*path, name)] = line
                self._walk(value, (*path, name))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, (*path, index))

    def where(self, *path: str | int) -> str:
        """Return `file, line n` of the longest known prefix of a path."""
        steps = tuple(path)
        while steps and steps not in self.at:
            steps = steps[:-1]
        line = self.at.get(steps)
        return f"{self.place}, line {line}" if line else self.place


def parse(name: str, registry: Registry, profile: str | None = None, settings: Sequence[str] = ()) -> Grid:
    """Read, check and expand a grid.

    Args:
        name: a file or the name of a shipped grid.
        registry: the methods and attacks that may be named.
        profile: replaces the grid's own `profile`.
        settings: `K=V` overrides: `seeds=1`, `train.epochs=3`, `methods.adi.n=50`, `attacks.prune.ratio=[0.5,0.9]`.

    Raises:
        BadInput: one line that names the file, the line or key, what was found and what is allowed.
    """
    place, text = read(name)
    try:
        lines = _Lines(text, place)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInput(f"{place}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(data, dict):
        raise BadInput(f"{place}: expected a mapping with the keys {', '.join(_AXES)}, found {_kind(data)}")
    for key in data:
        if key not in _TOP:
            raise unknown("key", str(key), _TOP, lines.where(key))
    chosen = profile or data.get("profile") or "laptop"
    data = _with_profile(data, chosen, lines)
    for setting in settings:
        _apply(data, setting)
    return Grid(
        name=str(data.get("name") or Path(place).stem),
        profile=chosen,
        tasks=list(_entries(data, "tasks", None, lines)),
        methods=[_for_tasks(entry) for entry in _entries(data, "methods", registry.methods, lines)],
        attacks=[_for_tasks(entry) for entry in _entries(data, "attacks", registry.attacks, lines)],
        seeds=_seeds(data.get("seeds", 1), "seeds", lines),
        attack_seeds=_seeds(data.get("attack_seeds", 1), "attack_seeds", lines),
        train=_mapping(data.get("train"), "train", lines.where("train")),
        source=text,
    )


def _with_profile(data: dict[str, Any], chosen: str, lines: _Lines) -> dict[str, Any]:
    own = _mapping(data.get("profiles"), "profiles", lines.where("profiles"))
    allowed = {*own, *task_profiles()}
    if chosen not in allowed:
        raise unknown("profile", str(chosen), allowed, lines.place)
    merged = {**data}
    for key, value in _mapping(own.get(chosen), f"profiles.{chosen}", lines.where("profiles", chosen)).items():
        if key not in _TOP or key in ("name", "profile", "profiles"):
            raise unknown(
                "key", str(key), set(_TOP) - {"name", "profile", "profiles"}, lines.where("profiles", chosen, key)
            )
        merged[key] = {**(merged.get(key) or {}), **value} if key == "train" else value
    return merged


def _entries(data: dict[str, Any], axis: str, registry: Mapping[str, Any] | None, lines: _Lines) -> Iterator[Entry]:
    """Expand one axis: a list under a parameter is an axis of its own."""
    written = data.get(axis)
    if written is None or written == [] or written == {}:
        raise BadInput(f"{lines.where(axis)}: {axis} is empty; name at least one (see: assay list {axis})")
    if isinstance(written, str | dict):
        written = [written]
    if not isinstance(written, list):
        raise BadInput(f"{lines.where(axis)}: {axis} must be a list, found {_kind(written)}")
    for index, item in enumerate(written):
        if not isinstance(item, str | dict):
            raise BadInput(
                f"{lines.where(axis, index)}: {axis} takes a key or `key: {{parameters}}`, found {_kind(item)}"
            )
        pairs: dict[str, Any] = {item: {}} if isinstance(item, str) else item
        for key, params in pairs.items():
            where = lines.where(axis, index, key)
            if registry is not None and key not in registry:
                raise unknown(axis.removesuffix("s"), str(key), registry, where)
            config = registry[key].Config if registry is not None else None
            for point in _product(_mapping(params, key, where), config, where):
                yield Entry(key, point, where)


def _for_tasks(entry: Entry) -> Entry:
    """Take `only`, the tasks that an entry is for, out of its parameters; the grid need not have them all."""
    if _ONLY not in entry.params:
        return entry
    params = dict(entry.params)
    written = params.pop(_ONLY)
    named = written if isinstance(written, list) else [written]
    if not named:
        raise BadInput(f"{entry.where}: {_ONLY} is an empty list; name at least one task, or leave it out")
    for key in named:
        if key not in named_tasks():
            raise unknown_task(str(key), f"{entry.where}: {_ONLY}: ")
    return replace(entry, params=params, tasks=tuple(named))


def _product(params: dict[str, Any], config: Any, where: str) -> Iterator[dict[str, Any]]:
    axes: list[list[tuple[str, Any]]] = []
    for name, value in params.items():
        own_list = name == _ONLY or (takes_list(config, name) if config is not None else name == "drops")
        many = isinstance(value, list) and (not own_list or (bool(value) and isinstance(value[0], list)))
        values = value if many else [value]
        if not values:
            raise BadInput(f"{where}: {name} is an empty list; give at least one value")
        axes.append([(name, entry) for entry in values])
    for point in itertools.product(*axes):
        yield dict(point)


def _seeds(value: Any, key: str, lines: _Lines) -> list[int]:
    """`3` means seeds 0, 1, 2; a list names them."""
    where = lines.where(key)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return list(range(value))
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
    ):
        return sorted(set(value))
    raise BadInput(f"{where}: {key} must be a count of at least 1 or a list of seeds >= 0, found {value!r}")


def _mapping(value: Any, what: str, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInput(f"{where}: {what} takes `parameter: value` pairs, found {_kind(value)}")
    return {str(key): entry for key, entry in value.items()}


def _apply(data: dict[str, Any], setting: str) -> None:
    """Apply one `K=V` of the command line to the parsed grid."""
    path, sign, text = setting.partition("=")
    where = f"--set {setting}"
    if not sign:
        raise BadInput(f"{where}: expected K=V, e.g. --set train.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"{where}: {text!r} is no YAML value") from None
    steps = path.split(".")
    allowed = [key for key in _TOP if key not in ("profile", "profiles", "about")]
    if steps[0] not in allowed:
        raise unknown("setting", steps[0], [*allowed, "train.<field>", "methods.<key>.<parameter>"], where)
    if len(steps) == 1:
        data[steps[0]] = value
    elif steps[0] == "train" and len(steps) == 2:
        data["train"] = {**(data.get("train") or {}), steps[1]: value}
    elif steps[0] in _AXES and len(steps) == 3:
        _override(data, steps[0], steps[1], steps[2], value, where)
    else:
        raise BadInput(f"{where}: expected seeds=, train.<field>=, or methods|attacks|tasks.<key>.<parameter>=")


def _override(data: dict[str, Any], axis: str, key: str, name: str, value: Any, where: str) -> None:
    written = data.get(axis) or []
    items = written if isinstance(written, list) else [written]
    changed, found = [], False
    for item in items:
        pairs = {item: {}} if isinstance(item, str) else item
        if isinstance(pairs, dict) and key in pairs:
            found = True
            pairs = {**pairs, key: {**(pairs[key] or {}), name: value}}
        changed.append(pairs)
    if not found:
        keys = [k for item in items for k in ([item] if isinstance(item, str) else item)]
        raise unknown(axis.removesuffix("s"), key, keys, where)
    data[axis] = changed


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", int: "a number", float: "a number", type(None): "nothing"}
    return f"{names.get(type(value), type(value).__name__)} ({value!r})"[:80]
