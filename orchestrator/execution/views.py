"""What an earlier run left in a sweep's folder: results of other grids to keep, and damaged views to set aside."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from assay.orchestrator.planning.plan import Plan
from assay.results.errors import Damaged
from assay.results.parquet import plain_curves, plain_nulls, read_records
from assay.results.schema import CURVES_FILE, NULLS_FILE, ROWS_FILE

_RESULTS = ("ok", "not_applicable")  # a failure is none

_Records = list[dict[str, Any]]


def earlier(out: Path, plan: Plan, note: Callable[[str], None]) -> tuple[_Records, _Records, _Records]:
    """Return the rows, curves and nulls that other grids left in a folder; their failed and blocked cells are dropped.

    Args:
        out: the sweep's folder.
        plan: what is asked for now; its cells and stages are left out.
        note: takes one line about each file that is damaged.
    """
    cells = {cell.key for cell in plan.cells}
    rows = _readable(out, ROWS_FILE, read_records, note)
    curves = _readable(out, CURVES_FILE, plain_curves, note)
    nulls = _readable(out, NULLS_FILE, plain_nulls, note)
    kept = [row for row in rows if row["cell_key"] not in cells and row["status"] in _RESULTS]
    return (
        kept,
        [point for point in curves if point["stage_key"] not in plan.stages],
        [point for point in nulls if point["null_key"] not in plan.stages],
    )


def _readable(out: Path, name: str, read: Callable[[Path], _Records], note: Callable[[str], None]) -> _Records:
    if not (out / name).exists():
        return []
    try:
        return read(out)
    except Damaged:
        aside = set_aside(out / name)
        note(f"{out / name}: damaged, now {aside.name}; rebuilt from the store (other grids' part when they run again)")
        return []


def sound_database(path: Path, note: Callable[[str], None]) -> None:
    """Set MLflow's sqlite database aside if it is damaged or was never finished; one that is merely locked stays."""
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            sound = _is_sound(database)
    except sqlite3.OperationalError:  # somebody writes, or we may not read
        return
    except sqlite3.DatabaseError:
        sound = False
    if not sound:
        aside = set_aside(path)
        for part in ("-journal", "-wal", "-shm"):
            if (beside := path.with_name(path.name + part)).exists():
                beside.replace(path.with_name(aside.name + part))
        note(f"{path}: damaged, now {aside.name}; rebuilt from the results")


def _is_sound(database: sqlite3.Connection) -> bool:
    """Whether all pages are well, and no kill or full disk stopped MLflow while it made its tables."""
    if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        return False
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return True  # MLflow makes them
    if "alembic_version" not in tables or any(name.startswith("_alembic_tmp") for name in tables):
        return False
    return database.execute("SELECT count(*) FROM alembic_version").fetchone()[0] > 0


def set_aside(path: Path) -> Path:
    """Rename a file to `<name>.damaged-<n>`, the first that is free; return the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.replace(aside)
    return aside
