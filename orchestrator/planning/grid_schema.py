"""JSON Schema of grids: editors complete and check a grid while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from assay.orchestrator.planning.calibration import ELSEWHERE, Calibration
from assay.orchestrator.planning.configs import takes_list
from assay.orchestrator.planning.grid import LARGEST_SEED, MOST_SEEDS, OF_A_FILE, TOP
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.planning.settings import CHAIN
from assay.tasks.task import Task, named_tasks, profiles
from assay.tasks.training.schedule import Frozen, Schedule
from assay.tasks.training.schedules import PAPERS

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NOT_SET = ("dataset", "model", "schedule")  # of a task: what its key or its schedule's own fields say


def grid_schema(registry: Registry) -> Schema:
    """Return the JSON Schema (draft 2020-12) of grids that name these methods and attacks.

    A list under a parameter is an axis: each parameter takes a value or a list of values.
    """
    shared: dict[str, Schema] = {}
    settings = _task_settings(shared)
    shared["task-key"] = {"enum": list(named_tasks())}
    shared["only"] = {**_one_or_many({"$ref": "#/$defs/task-key"}), "description": "the tasks that the entry is for"}
    only = {"only": {"$ref": "#/$defs/only"}}
    pairs = {"additionalProperties": {"$ref": "#/$defs/task-settings"}, "propertyNames": {"$ref": "#/$defs/task-key"}}
    shared["task"] = {"anyOf": [{"$ref": "#/$defs/task-key"}, {"type": "object", **pairs, "minProperties": 1}]}
    shared["task-settings"] = {
        **_object({name: _axis(schema, name == "drops") for name, schema in settings.items()}),
        "type": ["object", "null"],
    }
    methods = {
        key: _parameters(cls.Config, cls.title, f"method-{key}", shared) for key, cls in registry.methods.items()
    }
    attacks = {
        key: _parameters(cls.Config, cls.title, f"attack-{key}", shared) for key, cls in registry.attacks.items()
    }
    shared["method"] = _entry({key: _with(schema, only) for key, schema in methods.items()})
    shared["link"] = _entry(attacks, most=1)
    chain = {"type": "array", "items": {"$ref": "#/$defs/link"}, "minItems": 2}
    chain["description"] = "attacks one after the other, each on the surrogate of the one before"
    shared["attack"] = _entry({CHAIN: chain, **{key: _with(schema, only) for key, schema in attacks.items()}})
    top = _top(settings, shared)
    layer = {key: schema for key, schema in top.items() if key not in OF_A_FILE}
    top["profiles"] = {"type": "object", "additionalProperties": {"anyOf": [_object(layer), {"type": "null"}]}}
    return {
        "$schema": _DIALECT,
        "title": "assay grid",
        **_object({key: top[key] for key in TOP}),
        "$defs": shared,
    }


def _top(settings: Mapping[str, Schema], shared: dict[str, Schema]) -> dict[str, Schema]:
    seeds = {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": MOST_SEEDS, "description": "how many: 3 means 0, 1, 2"},
            {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED}, "minItems": 1},
        ]
    }
    calibration = _fields(Calibration, "calibration", shared)
    return {
        "name": {"type": ["string", "number"], "description": "plain words; it names the folder of results"},
        "about": {"description": "for people; nothing reads it"},
        **{f"{name}s": _entries(name) for name in ("task", "method", "attack")},
        "seeds": seeds,
        "attack_seeds": seeds,
        "train": {"anyOf": [_object(dict(settings)), {"type": "null"}]},
        "calibration": {"anyOf": [_object(calibration), {"type": "null"}]},
        "profile": {"type": "string", "description": f"{', '.join(profiles())}, or one of the grid's own"},
    }


def _task_settings(shared: dict[str, Schema]) -> dict[str, Schema]:
    """Return what may stand under `train`, or under a task."""
    sizes = {name: schema for name, schema in _fields(Task, "task-fields", shared).items() if name not in _NOT_SET}
    calibration = _fields(Calibration, "calibration", shared)
    for name, field in ELSEWHERE.items():
        sizes[name] = {**calibration[field], "description": f"the same as calibration.{field}"}
    return {**_fields(Schedule, "schedule", shared), **sizes, "paper": {"enum": list(PAPERS)}}


def _fields(config: type[BaseModel], name: str, shared: dict[str, Schema]) -> dict[str, Schema]:
    """Return the schema of each field; what they refer to goes to `shared` under names of their own."""
    schema = config.model_json_schema(ref_template=f"#/$defs/{name}-{{model}}")
    for part, definition in schema.get("$defs", {}).items():
        shared[f"{name}-{part}"] = definition
    fields: dict[str, Schema] = schema.get("properties", {})
    return fields


def _parameters(config: type[Frozen], title: str, name: str, shared: dict[str, Schema]) -> Schema:
    """Return the schema of a plugin's parameters."""
    fields = {
        field: _axis(schema, takes_list(config, field)) for field, schema in _fields(config, name, shared).items()
    }
    return {**_object(fields), "description": title}


def _axis(schema: Schema, own_list: bool) -> Schema:
    """Return the schema of a value or a list of values; of a parameter that is a list itself, a list of lists."""
    about: Schema = {key: schema[key] for key in ("default", "description", "title") if key in schema}
    plain = {key: value for key, value in schema.items() if key not in about}
    several = plain
    if own_list:  # the list alone, not `null` beside it: a list of nothing is a value
        several = next((option for option in plain.get("anyOf", ()) if option.get("type") == "array"), plain)
    return {**about, "anyOf": [plain, {"type": "array", "items": several, "minItems": 1}]}


def _one_or_many(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def _object(fields: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(fields), "additionalProperties": False}


def _with(schema: Schema, more: Mapping[str, Schema]) -> Schema:
    return {**schema, "properties": {**schema["properties"], **more}}


def _entry(options: Mapping[str, Schema], most: int | None = None) -> Schema:
    """Return the schema of a key, or of keys with their parameters."""
    pairs: Schema = {**_object(_nullable(options)), "minProperties": 1}
    if most is not None:
        pairs["maxProperties"] = most
    return {"anyOf": [{"enum": [key for key in options if key != CHAIN]}, pairs]}


def _nullable(options: Mapping[str, Schema]) -> dict[str, Schema]:
    return {key: schema if key == CHAIN else {"anyOf": [schema, {"type": "null"}]} for key, schema in options.items()}


def _entries(axis: str) -> Schema:
    """Return the schema of an axis: a list of entries, or one of them."""
    entry = {"$ref": f"#/$defs/{axis}"}
    return {"anyOf": [{"type": "array", "items": entry, "minItems": 1}, entry]}
