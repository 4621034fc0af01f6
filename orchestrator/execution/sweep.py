"""One sweep: execute a plan into an output folder, keep Parquet and the MLflow mirror up to date on the way."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.orchestrator.execution.driver import Listener, Options, Summary, driver_lock
from assay.orchestrator.execution.driver import run as drive
from assay.orchestrator.execution.rows import Rows
from assay.orchestrator.planning.grid import Grid
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.planning.registry import fingerprint
from assay.orchestrator.store import Store, write_json
from assay.orchestrator.work.bench import Context
from assay.results.mlflow_mirror import Mirror
from assay.results.parquet import plain_curves, plain_nulls, read_records, write_curves, write_nulls, write_rows

COMPACT_S = 30.0  # between two rewrites of the Parquet files while the sweep runs


@dataclass
class Report:
    """What `assay run` ends with."""

    executed: int
    cached: int
    failed: int
    blocked: int
    not_applicable: int
    cells: int
    stages: int
    wall_s: float
    problems: list[str] = field(default_factory=list)

    @property
    def failed_cells(self) -> bool:
        """Whether any cell has no result that should have one."""
        return self.failed + self.blocked > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the object of `assay run --json`."""
        names = ("executed", "cached", "failed", "blocked", "not_applicable", "cells", "stages", "wall_s")
        return {name: getattr(self, name) for name in names}


class Views:
    """Parquet and MLflow, rebuilt from the store; also the listener that the driver calls."""

    def __init__(self, plan: Plan, grid: Grid, out: Path, mlflow_uri: str | None, inner: Listener) -> None:
        self.plan = plan
        self.out = out
        self.rows = Rows(plan, Store(out / "store"))
        self.inner = inner
        self.kept_rows, self.kept_curves, self.kept_nulls = _earlier(out, plan)
        self.cells_of = _cells_by_stage(plan)
        self.mirror = Mirror(out, mlflow_uri)
        self.compacted_at = time.monotonic()

    def on_start(self, stage: Stage) -> None:
        """Pass on."""
        self.inner.on_start(stage)

    def on_done(self, stage: Stage, status: str) -> None:
        """Mirror the cells that this stage completes; compact now and then."""
        self.inner.on_done(stage, status)
        for cell in self.cells_of.get(stage.key, ()):
            row = self.rows.row(cell)
            if row["status"] == "ok":
                self.mirror.put(row)
        if time.monotonic() - self.compacted_at >= COMPACT_S:
            self.compact()

    def on_note(self, text: str) -> None:
        """Pass on."""
        self.inner.on_note(text)

    def compact(self) -> list[dict[str, Any]]:
        """Rewrite rows.parquet and curves.parquet whole; return the rows of this plan."""
        rows = list(self.rows.all())
        write_rows(self.out, [*self.kept_rows, *rows])
        write_curves(self.out, [*self.kept_curves, *self.rows.curves()])
        write_nulls(self.out, [*self.kept_nulls, *self.rows.nulls()])
        self.compacted_at = time.monotonic()
        return rows


def run_sweep(  # everything that a sweep depends on, given once
    plan: Plan,
    grid: Grid,
    context: Context,
    options: Options,
    listener: Listener,
    mlflow_uri: str | None = None,
    settings: Sequence[str] = (),
) -> Report:
    """Execute what is missing of a plan, then rebuild the views.

    Running the same plan again executes nothing; a failed stage is tried again. Rows of other grids that were run into
    the same folder stay.
    """
    out = Path(context.out)
    out.mkdir(parents=True, exist_ok=True)
    with driver_lock(out):  # the views have one writer
        return _locked_sweep(plan, grid, context, options, listener, mlflow_uri, settings)


def _locked_sweep(
    plan: Plan,
    grid: Grid,
    context: Context,
    options: Options,
    listener: Listener,
    mlflow_uri: str | None,
    settings: Sequence[str],
) -> Report:
    out = Path(context.out)
    begun, started = time.monotonic(), _utc()
    store = Store(out / "store")
    have = plan.done(store)
    views = Views(plan, grid, out, mlflow_uri, listener)
    _write_sweep(out, plan, grid, context, settings, {"started": started})
    try:
        summary = drive(plan, context, options, views)
    finally:
        rows = views.compact()
        views.mirror.close()
    report = _report(plan, summary, rows, len(have), time.monotonic() - begun)
    if views.mirror.problem:
        report.problems.append(views.mirror.problem)
    ended = {"started": started, "ended": _utc(), "environments": views.rows.environments, "report": report.as_dict()}
    _write_sweep(out, plan, grid, context, settings, ended)
    return report


def _report(plan: Plan, summary: Summary, rows: list[dict[str, Any]], cached: int, wall_s: float) -> Report:
    states = Counter(row["status"] for row in rows)
    return Report(
        executed=summary.executed,
        cached=cached,
        failed=states["failed"],
        blocked=states["blocked"],
        not_applicable=states["not_applicable"],
        cells=len(plan.cells),
        stages=len(plan.stages),
        wall_s=round(wall_s, 3),
    )


def _earlier(out: Path, plan: Plan) -> tuple[list[dict[str, Any]], ...]:
    """Rows, curves and nulls that other grids left in this folder; a failure is no result and is not kept."""
    cells = {cell.key for cell in plan.cells}
    rows = read_records(out) if (out / "rows.parquet").exists() else []
    curves = plain_curves(out) if (out / "curves.parquet").exists() else []
    nulls = plain_nulls(out) if (out / "nulls.parquet").exists() else []
    return (
        [row for row in rows if row["cell_key"] not in cells and row["status"] in ("ok", "not_applicable")],
        [point for point in curves if point["stage_key"] not in plan.stages],
        [point for point in nulls if point["null_key"] not in plan.stages],
    )


def _cells_by_stage(plan: Plan) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for cell in plan.cells:
        for key in cell.stages:
            found.setdefault(key, []).append(cell)
    return found


def _write_sweep(
    out: Path, plan: Plan, grid: Grid, context: Context, settings: Sequence[str], more: Mapping[str, Any]
) -> None:
    """Write sweep.json: what was asked for, by which code, on what; a note for people, not a truth."""
    value = {
        "name": plan.name,
        "profile": plan.profile,
        "grid": grid.source,
        "settings": list(settings),
        "cells": len(plan.cells),
        "stages": len(plan.stages),
        "device": context.device,
        "plugins": {Path(plugin).name: fingerprint(Path(plugin)) for plugin in context.plugins},
        **more,
    }
    write_json(out / "sweep.json", value)


def _utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
