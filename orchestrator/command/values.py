"""The values behind `--json`: what plans, sweeps and reports say, as plain data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.orchestrator.planning.cost import corrected
from assay.orchestrator.store import Store
from assay.results.parquet import read_rows
from assay.results.schema import ROWS_FILE, STAGES
from assay.results.tables import summary
from assay.tasks.errors import BadInput

if TYPE_CHECKING:
    from assay.orchestrator.planning.plan import Plan


def plan_values(plan: Plan, out: Path | None) -> dict[str, Any]:
    """Return what `assay plan` says: counts, cached stages, impossible cells with reasons, estimated cost."""
    store = Store(out / "store", reading=True) if out else None
    have = plan.done(store) if store else set()
    missing = plan.missing(have)
    measured = 0
    if store and have:
        plan, measured = corrected(plan, store, have)
    kinds = Counter(stage.kind for stage in plan.stages.values())
    names = ("method", "attack", "task")
    impossible = Counter((*(cell.point[name] for name in names), cell.reason) for cell in plan.cells if cell.reason)
    seconds = sum(plan.stages[key].seconds for key in missing)
    return {
        "name": plan.name,
        "profile": plan.profile,
        "cells": len(plan.cells),
        "stages": len(plan.stages),
        "stages_by_kind": {kind: kinds[kind] for kind in STAGES},
        "cached": len(have),
        "to_execute": len(missing),
        "impossible": [
            {"method": method, "attack": attack, "task": task, "reason": reason, "cells": count}
            for (method, attack, task, reason), count in sorted(impossible.items())
        ],
        "estimate": {
            "worker_seconds": round(seconds, 1),
            "longest_path_seconds": round(max((plan.critical[key] for key in missing), default=0.0), 1),
            "measured_stages": measured,
        },
        "keys": sorted(plan.stages),
    }


def status_values(out: Path) -> dict[str, Any]:
    """Return what `assay status` says of an output folder, while its sweep runs or after it; nothing is written.

    Of a folder that holds views alone (rows of a sweep whose store lies elsewhere) it says what the views say: `stages`
    and `committed_stages` are None then.

    Raises:
        BadInput: the folder holds no sweep.
    """
    sweep = sweep_note(out)
    has_rows = (out / ROWS_FILE).exists()
    if sweep is None and not has_rows:
        raise BadInput(f"{out}: no sweep here (no sweep.json, no {ROWS_FILE}); assay run GRID -o {out} makes one")
    rows = read_rows(out) if has_rows else None
    store = Store(out / "store", reading=True) if (out / "store").is_dir() else None
    note = sweep or {"name": out.name, "profile": _profiles(rows), "cells": len(rows) if rows is not None else 0}
    return {
        "out": str(out),
        "name": note["name"],
        "profile": note["profile"],
        "started": note.get("started"),
        "ended": note.get("ended"),
        "cells": note["cells"],
        "stages": note.get("stages") if store else None,
        "committed_stages": _committed(note, store) if store else None,
        "running": sorted(str(marker["key"])[:12] for marker in store.running()) if store and _open(note) else [],
        "rows": summary(rows) if rows is not None else {},
    }


def sweep_note(out: Path) -> dict[str, Any] | None:
    """Return what sweep.json says; None if there is none that can be read."""
    try:
        note = json.loads((out / "sweep.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and {"name", "profile", "cells"} <= note.keys() else None


def _open(note: dict[str, Any]) -> bool:
    return bool(note.get("started")) and not note.get("ended")


def _committed(note: dict[str, Any], store: Store) -> int | None:
    """Return how many stages of the sweep's plan are committed, whatever else the store holds; None: unknown."""
    have = store.committed_keys()
    if "stage_keys" in note:
        return len(have & set(note["stage_keys"]))
    return len(have) if len(have) <= note.get("stages", 0) else None


def _profiles(rows: Any) -> str:
    return ", ".join(sorted(rows["profile"].unique())) if rows is not None else ""
