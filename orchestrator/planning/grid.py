"""The grid: one YAML file that names tasks, methods, attacks and seeds.

Order, nesting and splitting of a grid never change keys or results: entries are expanded, resolved with all defaults,
and only then keyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.orchestrator.planning import settings as overrides
from assay.orchestrator.planning.calibration import Calibration, sections
from assay.orchestrator.planning.catalogue import shipped_grids
from assay.orchestrator.planning.entries import Axis, Entry
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.planning.written import Places, kind, load, mapping
from assay.tasks.errors import BadInput, nearest, unknown
from assay.tasks.task import profiles as task_profiles
from assay.tasks.task import resolve_task
from assay.tasks.training.schedule import parse as parse_config

__all__ = ["MOST_SEEDS", "OF_A_FILE", "TOP", "Entry", "Grid", "parse", "read"]

TOP = (
    "name", "about", "tasks", "methods", "attacks", "seeds", "attack_seeds", "train", "calibration", "profile",
    "profiles",
)  # fmt: skip
OF_A_FILE = ("name", "profile", "profiles")  # keys that no profile can change
MOST_SEEDS = 1000  # as a count: beyond it, somebody means one seed
LARGEST_SEED = 2**63 - 1  # what a column of the results can hold
_LONGEST_NAME = 100


@dataclass
class Grid:
    """A parsed grid under one profile.

    Attributes:
        name: for people, and for the folder of results; never a path.
        profile: the profile in force.
        tasks, methods, attacks: expanded entries.
        seeds: victim seeds.
        attack_seeds: attack seeds per victim.
        train: overrides of every task's schedule and sizes; none of the calibration.
        calibration: `references`, `keys` and `processed`, as far as the grid says; the rest follows from the profile.
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
    calibration: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def read(name: str) -> tuple[str, str]:
    """Return (place, text) of a grid given as a file or as the name of a shipped one.

    A folder is never a grid, so one that has the name of a shipped grid does not hide it.

    Raises:
        BadInput: there is neither; the file cannot be read, or is not in UTF-8.
    """
    grids = shipped_grids()
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # a tilde before the name of nobody
        raise BadInput(f"{name}: cannot read the grid file ({error})") from None
    if name in grids and not path.is_file():
        return f"{name}.yaml", grids[name].read_text("utf-8")
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        allowed = ", ".join(sorted(grids))
        raise BadInput(f"unknown grid {name!r}{nearest(name, grids)} (allowed: a .yaml file, or one of {allowed})")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{name}: cannot read the grid file ({error.strerror})") from None
    try:
        return name, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise BadInput(f"{name}, line {line}: not in UTF-8 (byte 0x{byte:02x}); save the file in UTF-8") from None


def parse(name: str, registry: Registry, profile: str | None = None, settings: Sequence[str] = ()) -> Grid:
    """Read, check and expand a grid.

    Args:
        name: a file or the name of a shipped grid.
        registry: the methods and attacks that may be named.
        profile: replaces the grid's own `profile`.
        settings: `K=V` overrides: `seeds=1`, `train.epochs=3`, `calibration.references=10`, `methods.adi.n=50`,
            `attacks.prune.ratio=[0.5,0.9]`.

    Raises:
        BadInput: one line that names the file, the line or key, what was found and what is allowed.
    """
    place, text = read(name)
    data, places = load(text, place)
    if not isinstance(data, dict):
        raise BadInput(f"{place}: expected a mapping with the keys {', '.join(overrides.AXES)}, found {kind(data)}")
    for key in data:
        if key not in TOP:
            raise unknown("key", str(key), TOP, places.where(str(key)))
    chosen = profile or data.get("profile") or "laptop"
    data = _with_profile(data, chosen, places)
    for setting in settings:
        overrides.apply(data, setting, places)
    base = chosen if chosen in task_profiles() else "laptop"
    tasks = list(Axis("tasks", places, base).entries(data.get("tasks")))
    _check_sections(data, tasks, base, places)
    return Grid(
        name=_name(data.get("name"), Path(place).stem, places),
        profile=chosen,
        tasks=tasks,
        methods=list(Axis("methods", places, base, registry.methods).entries(data.get("methods"))),
        attacks=list(Axis("attacks", places, base, registry.attacks).entries(data.get("attacks"))),
        seeds=_seeds(data.get("seeds", 1), "seeds", places),
        attack_seeds=_seeds(data.get("attack_seeds", 1), "attack_seeds", places),
        train=data["train"],
        calibration=data["calibration"],
        source=text,
    )


def _with_profile(data: dict[str, Any], chosen: Any, places: Places) -> dict[str, Any]:
    """Return the grid under a profile, every setting of `train` and `calibration` in its section."""
    own = mapping(data.get("profiles"), "profiles", places.where("profiles"))
    allowed = {*own, *task_profiles()}
    if not isinstance(chosen, str) or chosen not in allowed:
        raise unknown("profile", str(chosen), allowed, places.where("profile") if "profile" in data else places.file)
    at = ("profiles", chosen)
    layer = mapping(own.get(chosen), f"profiles.{chosen}", places.where(*at))
    merged = {**data, **sections(data, (), places)}
    for name, fields in sections(layer, at, places).items():
        for key in fields:
            places.move((*at, name, key), (name, key))
        merged[name] = {**merged[name], **fields}
    for key, value in layer.items():
        if key not in TOP or key in OF_A_FILE:
            raise unknown("key", key, set(TOP) - set(OF_A_FILE), places.where(*at, key))
        if key not in ("train", "calibration"):
            places.move((*at, key), (key,))
            merged[key] = value
    return merged


def _check_sections(data: dict[str, Any], tasks: Sequence[Entry], base: str, places: Places) -> None:
    """Check `train` and `calibration`, each setting where it was written."""
    for name, value in data["train"].items():
        # Whose schedule is taken depends on the task; all else means the same to every task.
        concerned = [task for task in tasks if name not in task.params] if name == "paper" else tasks[:1]
        for task in concerned:
            resolve_task(task.key, base, {name: value}, f"{places.where('train', name)}: train")
    parse_config(
        Calibration, data["calibration"], "", lambda steps: f"{places.where('calibration', *steps)}: calibration"
    )


def _name(value: Any, otherwise: str, places: Places) -> str:
    """Return the grid's name, which becomes the name of a folder: plain words."""
    name = otherwise if value is None or value == "" else value
    where = places.where("name")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise BadInput(f"{where}: name must be text, found {kind(value)}")
    name = str(name).strip()
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\"):
        raise BadInput(
            f"{where}: name {name!r} must be plain words, because it names a folder: no '/' or '\\', no '.' in front, "
            "nothing that cannot be printed"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise BadInput(f"{where}: name has {len(name.encode())} bytes, at most {_LONGEST_NAME}; `about` may be longer")
    return name


def _seeds(value: Any, key: str, places: Places) -> list[int]:
    """Return seeds: `3` means 0, 1, 2; a list names them."""
    where = places.where(key)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        if value > MOST_SEEDS:
            raise BadInput(
                f"{where}: {key}: {value} asks for {value} seeds, a count may be at most {MOST_SEEDS}; "
                f"for the one seed {value} put it in brackets: {key}: [{value}]"
            )
        return list(range(value))
    if not isinstance(value, list) or not value or not all(_is_seed(entry) for entry in value):
        raise BadInput(
            f"{where}: {key} must be a count of at least 1 or a list of seeds from 0 to {LARGEST_SEED}, found {value!r}"
        )
    return sorted(set(value))


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SEED
