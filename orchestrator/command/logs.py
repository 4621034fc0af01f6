"""`assay log OUT KEY`: what is known of one stage, or of the stages behind one cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from assay.orchestrator.command.values import sweep_note
from assay.orchestrator.store import Store
from assay.results.parquet import read_records
from assay.results.schema import ROWS_FILE
from assay.tasks.errors import BadInput, nearest

_KEY = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]+")
_NO_PARENTS = ("data", "other")  # of an identity: fingerprints of data sets, which look like keys
_STEPS = 6  # of a curve that are shown
_LEAST = 4  # digits of a key that name it

Row = dict[str, Any]


class _Folder:
    """The keys that a sweep's folder knows."""

    def __init__(self, out: Path) -> None:
        if not out.is_dir():
            raise BadInput(f"{out}: no such folder; assay run GRID -o {out} makes one")
        self.out = out
        self.store = Store(out / "store", reading=True)
        self.rows: dict[str, Row] = {}
        if (out / ROWS_FILE).exists():
            self.rows = {row["cell_key"]: row for row in read_records(out)}

    @cached_property
    def stages(self) -> set[str]:
        """Keys of stages: committed, failed, at work, planned, or named by a row."""
        found = self.store.committed_keys() | {failure["key"] for failure in self.store.failures()}
        found |= {str(marker["key"]) for marker in self.store.running()}
        found |= set((sweep_note(self.out) or {}).get("stage_keys", ()))
        return found | {key for row in self.rows.values() for key in _stages_of(row).values()}

    def find(self, prefix: str) -> str:
        """Return the one key that a prefix names.

        Raises:
            BadInput: there is none, or several.
        """
        wanted = prefix.lower()
        keys = sorted(self.stages | self.rows.keys())
        if not keys:
            raise BadInput(f"{self.out}: no stage and no cell here")
        found = [key for key in keys if key.startswith(wanted)] if len(wanted) >= _LEAST else []
        if len(found) == 1:
            return found[0]
        if found:
            raise BadInput(f"{prefix}: names {len(found)} keys ({_short(found)}); give more digits")
        if not _HEX.fullmatch(wanted) or len(wanted) < _LEAST:
            raise BadInput(f"{prefix}: expected at least {_LEAST} digits (0-9, a-f) of the key of a stage or a cell")
        hint = nearest(wanted[:12], [key[: min(len(wanted), 12)] for key in keys])
        raise BadInput(f"{prefix}: no stage and no cell of {self.out} has this key{hint} (it has {len(keys)} keys)")

    def label(self, key: str) -> str:
        """Return what a stage is, from the rows, where its record does not say."""
        for row in self.rows.values():
            for kind, stage in _stages_of(row).items():
                if stage == key:
                    which = {"attack": f" {row['attack']} | {row['method']}", "embed": f" {row['method']}"}.get(
                        kind, ""
                    )
                    return f"{kind}{which} | {row['task']}" + (
                        "" if kind == "calibrate" else f" | seed {row['victim_seed']}"
                    )
        return "stage"


def log_values(out: Path, prefix: str) -> dict[str, Any]:
    """Return what is known of a stage or a cell.

    Args:
        out: a sweep's folder; nothing is written there.
        prefix: the first digits of a key, enough to be the only one.

    Returns:
        `cell` (None for a stage): its key, place, status and reason; `stages`: the stage, or those that tell a cell's
        fate: its attack, or the failures that blocked it.

    Raises:
        BadInput: no such key, or several.
    """
    folder = _Folder(out)
    key = folder.find(prefix)
    if key not in folder.rows:
        return {"cell": None, "stages": [_stage(folder, key)]}
    row = folder.rows[key]
    names = ("cell_key", "task", "method", "method_config", "attack", "attack_config", "victim_seed", "attack_seed")
    cell = {name: row[name] for name in (*names, "status", "reason")}
    return {"cell": cell, "stages": [_stage(folder, stage) for stage in _telling(folder, row)]}


def _telling(folder: _Folder, row: Row) -> list[str]:
    """Return the stages that explain a cell."""
    own = _stages_of(row)
    if row["status"] == "blocked":
        failed = [failure["key"] for failure in folder.store.failures() if failure["reason"] in row["reason"]]
        return [key for key in failed if key in own.values()] or failed
    return [own["attack"]] if "attack" in own else []


def _stages_of(row: Row) -> dict[str, str]:
    columns = {"clean": "clean_key", "embed": "embed_key", "attack": "attack_key", "calibrate": "null_key"}
    return {kind: row[column] for kind, column in columns.items() if row.get(column)}


def _stage(folder: _Folder, key: str) -> dict[str, Any]:
    """Return the record of a committed stage, or the failure of another, with the same names."""
    try:
        record = folder.store.record(key)
    except KeyError:
        record = {}
    failure = None if record else folder.store.failure(key)
    running = any(marker["key"] == key for marker in folder.store.running())
    state = "committed" if record else "failed" if failure else "running" if running else "not computed"
    return {
        "key": key,
        "label": record.get("label") or (failure or {}).get("label") or folder.label(key),
        "status": state,
        "started": record.get("started"),
        "ended": record.get("ended"),
        "reason": (failure or {}).get("reason"),
        "trace": (failure or {}).get("trace"),
        "environment": record.get("environment", {}),
        "notes": record.get("notes", []),
        "costs": record.get("costs", {}),
        "result": {name: value for name, value in record.get("result", {}).items() if _is_figure(value)},
        "parents": [
            {"role": role, "key": parent, "label": _label(folder, parent)}
            for role, parent in _parents(record.get("identity", {}), "")
        ],
        "curves": _curves(record.get("curves", [])),
    }


def _label(folder: _Folder, key: str) -> str:
    try:
        return str(folder.store.record(key)["label"])
    except KeyError:
        return f"{folder.label(key)} (not in this store)"


def _parents(identity: Any, role: str) -> Iterator[tuple[str, str]]:
    """Yield role and key of the stages that an identity names."""
    if isinstance(identity, str) and _KEY.fullmatch(identity):
        yield role, identity
    elif isinstance(identity, dict):
        for name, value in identity.items():
            if role or name not in _NO_PARENTS:
                yield from _parents(value, f"{role}.{name}" if role else name)
    elif isinstance(identity, list):
        for value in identity:
            yield from _parents(value, role)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float | str | bool)


def _curves(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each curve, shortened to some of its steps, first and last among them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        found.setdefault(str(point["curve"]), []).append({k: v for k, v in point.items() if k != "curve"})
    return {name: {"steps": len(rows), "shown": _some(rows)} for name, rows in sorted(found.items())}


def _some(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = sorted(rows, key=lambda row: float(row["step"]))
    if len(rows) <= _STEPS:
        return rows
    return [rows[round(index * (len(rows) - 1) / (_STEPS - 1))] for index in range(_STEPS)]


def _short(keys: list[str]) -> str:
    shown = ", ".join(f"{key[:16]}…" for key in keys[:3])
    return shown + (", …" if len(keys) > 3 else "")
