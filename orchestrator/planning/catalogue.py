"""What `assay list` shows: methods, attacks, tasks and shipped grids as plain values."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from assay.methods.base import Method
from assay.orchestrator.planning.registry import Plugin, Registry
from assay.results.configs import natural
from assay.tasks.data.sources import DATASETS
from assay.tasks.errors import AssayError, UnsupportedModel
from assay.tasks.networks.architectures import ARCHITECTURES
from assay.tasks.task import Task, named_tasks, resolve_task

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
            "access": cls.access,
            "kind": cls.kind,
            "uses_data": cls.uses_data,
            "version": cls.version,
            "from": registry.place("attack", key),
            "settings": settings(cls),
        }
        for key, cls in registry.attacks.items()
    ]


def list_tasks() -> list[dict[str, Any]]:
    """Return one object per task, those of the papers first.

    `tables` names the papers' tables that print numbers for it, and `roles` as what: `victim`, `student` of a distilled
    or extracted victim on the same data, `target` of a victim's transfer to these data. `published` says whether there
    are any. Besides: key, title, data set, architecture, kind and shape of an input, classes, licence of the data.
    """
    published = published_tasks()
    alike = {info.shape: key for key, info in DATASETS.items()}  # whether a network fits depends on the shape alone
    rows: list[dict[str, Any]] = []
    for key in named_tasks():
        dataset = next(d for d in sorted(DATASETS, key=len, reverse=True) if key.startswith(f"{d}-"))
        info, model, roles = DATASETS[dataset], key[len(dataset) + 1 :], published.get(key, {})
        if not _fits(alike[info.shape], model):
            continue
        rows.append(
            {
                "key": key,
                "title": f"{model} on {dataset}",
                "dataset": dataset,
                "model": model,
                "kind": info.kind,
                "shape": list(info.shape),
                "classes": info.classes,
                "published": bool(roles),
                "tables": sorted({table for tables in roles.values() for table in tables}, key=natural),
                "roles": roles,
                "licence": info.licence,
            }
        )
    return sorted(rows, key=lambda row: not row["published"])


@cache
def _fits(dataset: str, model: str) -> bool:
    """Return whether an architecture can be built for a data set's inputs."""
    try:
        with torch.device("meta"):  # shapes alone: no weights are drawn
            Task(dataset=dataset, model=model).architecture(model)
    except UnsupportedModel:
        return False
    return True


@cache
def published_tasks() -> dict[str, dict[str, list[str]]]:
    """Return the tasks that the papers print numbers for: key -> role -> tables, `<paper>/<number>`."""
    from assay.results.papers import PAPERS, load  # pandas takes a second, and every command reads this module

    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for paper in PAPERS:
        for row in load(paper).itertuples():
            table = f"{paper}/{row.table}"
            found[f"{row.dataset}-{row.model}"]["victim"].add(table)
            attack: dict[str, Any] = row.attack_params  # type: ignore[assignment]
            if "student" in attack:
                found[f"{row.dataset}-{attack['student']}"]["student"].add(table)
            if "target" in attack:
                found[f"{attack['target']}-{row.model}"]["target"].add(table)
    return {key: {role: sorted(tables, key=natural) for role, tables in roles.items()} for key, roles in found.items()}


def data_uses(dataset: str) -> list[str]:
    """Return the papers' tables with numbers for tasks on a data set, `<paper>/<number>`."""
    roles = (entry for key, entry in published_tasks().items() if key.startswith(f"{dataset}-"))
    return sorted({table for entry in roles for tables in entry.values() for table in tables}, key=natural)


def list_grids() -> list[dict[str, Any]]:
    """Return one object per shipped grid: key (the name to run it by), title (its first comment) and file."""
    return [{"key": key, "title": _title(path), "file": str(path)} for key, path in shipped_grids().items()]


def shipped_grids() -> dict[str, Path]:
    """Return the grids that come with the package, name -> file."""
    folder = Path(str(files("assay.grids")))
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


def _refused(cls: type[Method[Any]]) -> dict[str, str]:
    """Return the architectures that a method refuses, each with its reason, judged on one data set of each kind."""
    reasons: dict[str, str] = {}
    method = cls(cls.Config.model_validate(cls.laptop))
    # Every image network takes CIFAR-10's 32x32 pixels.
    shown = {**{info.kind: info.key for info in DATASETS.values()}, "image": "cifar10"}
    for dataset in shown.values():
        for model in ARCHITECTURES:
            if f"{dataset}-{model}" not in named_tasks():
                continue
            try:
                with torch.device("meta"):  # shapes tell; drawing the weights of all networks would take seconds
                    reason = method.supports(resolve_task(f"{dataset}-{model}", "laptop", {}))
            except AssayError as error:
                reason = str(error)
            if reason:
                reasons[model] = reason
    return reasons
