"""What `assay list` shows: methods, attacks, tasks and shipped grids as plain values."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from methods.base import Method
from orchestrator.registry import Plugin, Registry
from tasks.architectures import ARCHITECTURES
from tasks.errors import AssayError
from tasks.sources import DATASETS
from tasks.task import named_tasks, resolve_task

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def list_methods(registry: Registry) -> list[dict[str, Any]]:
    """Return one object per method: key, title, paper, access, family, version, settings, where it does not apply."""
    return [
        {
            "key": key,
            "title": cls.title,
            "paper": cls.paper,
            "access": cls.access,
            "family": cls.family,
            "version": cls.version,
            "from": registry.place("method", key),
            "settings": settings(cls),
            "not_for": _refused(cls),
        }
        for key, cls in registry.methods.items()
    ]


def list_attacks(registry: Registry) -> list[dict[str, Any]]:
    """Return one object per attack: key, title, paper, kind, access, version, settings."""
    return [
        {
            "key": key,
            "title": cls.title,
            "paper": cls.source,
            "access": cls.needs,
            "kind": cls.kind,
            "needs_data": cls.needs_data,
            "version": cls.version,
            "from": registry.place("attack", key),
            "settings": settings(cls),
        }
        for key, cls in registry.attacks.items()
    ]


def list_tasks() -> list[dict[str, Any]]:
    """Return one object per task: key, data set, architecture, input shape, classes, licence of the data."""
    rows: list[dict[str, Any]] = []
    for key in named_tasks():
        dataset = next(d for d in sorted(DATASETS, key=len, reverse=True) if key.startswith(f"{d}-"))
        info = DATASETS[dataset]
        rows.append(
            {
                "key": key,
                "title": f"{key[len(dataset) + 1 :]} on {dataset}",
                "dataset": dataset,
                "model": key[len(dataset) + 1 :],
                "shape": list(info.shape),
                "classes": info.classes,
                "licence": info.licence,
            }
        )
    return rows


def list_grids() -> list[dict[str, Any]]:
    """Return one object per shipped grid: key (the name to run it by), title (its first comment) and file."""
    return [{"key": key, "title": _title(path), "file": str(path)} for key, path in shipped_grids().items()]


def shipped_grids() -> dict[str, Path]:
    """Return the grids that come with the package, name -> file."""
    folder = Path(str(files("grids")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _title(path: Path) -> str:
    first = next(iter(path.read_text("utf-8").splitlines()), "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def settings(cls: type[Plugin]) -> list[dict[str, Any]]:
    """Return a plugin's settings: name, type, default (the paper's), laptop override, bounds, description."""
    schema = cls.Config.model_json_schema()
    rows = []
    for name, field in schema["properties"].items():
        options = [field, *field.get("anyOf", ())]
        row = {
            "name": name,
            "type": " or ".join(_kind(option) for option in field.get("anyOf", [field])),
            "default": field.get("default"),
            "bounds": [f"{sign} {o[word]:g}" for o in options for word, sign in _BOUNDS.items() if word in o],
            "description": field.get("description", ""),
        }
        if name in cls.laptop:
            row["laptop"] = cls.laptop[name]
        rows.append(row)
    return rows


def _kind(option: dict[str, Any]) -> str:
    if "enum" in option:
        return " | ".join(map(str, option["enum"]))
    if "const" in option:
        return str(option["const"])
    return str(option.get("type", "object")).replace("null", "none")


def _refused(cls: type[Method]) -> dict[str, str]:
    """Return the architectures that a method refuses, each with its reason, judged on one data set of each kind."""
    reasons: dict[str, str] = {}
    method = cls(cls.Config.model_validate(cls.laptop))
    shown = {info.kind: info.key for info in DATASETS.values()}
    for dataset in shown.values():
        for model in ARCHITECTURES:
            if f"{dataset}-{model}" not in named_tasks():
                continue
            try:
                reason = method.supports(resolve_task(f"{dataset}-{model}", "laptop", {}))
            except AssayError as error:
                reason = str(error)
            if reason:
                reasons[model] = reason
    return reasons
