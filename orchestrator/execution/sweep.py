"""One sweep: execute a plan into an output folder, keep Parquet and the MLflow mirror up to date on the way."""

from __future__ import annotations

import datetime
import errno
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from assay.orchestrator.execution.driver import Listener, Options, Summary, driver_lock
from assay.orchestrator.execution.driver import run as drive
from assay.orchestrator.execution.rows import Rows
from assay.orchestrator.execution.views import earlier, sound_database
from assay.orchestrator.planning.grid import Grid
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store, out_of_room, write_json
from assay.orchestrator.work.bench import Context
from assay.results.mlflow_mirror import Mirror
from assay.results.parquet import write_curves, write_nulls, write_rows
from assay.tasks.errors import AssayError, BadInput

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
        self.kept_rows, self.kept_curves, self.kept_nulls = earlier(out, plan, inner.on_note)
        self.cells_of = _cells_by_stage(plan)
        for cell in plan.cells:
            self.rows.row(cell)  # a damaged record is set aside now, before it passes for a committed stage
        if mlflow_uri is None:
            sound_database(out / "mlflow.db", inner.on_note)
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

    Running the same plan again executes nothing; a failed stage is tried again. Results of other grids that were run
    into the same folder stay, their failures do not. A view that is damaged is set aside.

    Raises:
        BadInput: the folder cannot be used, or as `driver.run`.
        AssayError: the disk is full, or as `driver.run`; what is committed is kept.
    """
    out = Path(context.out).absolute()
    context = replace(context, out=str(out))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"-o {out}: cannot be made a folder ({error.strerror})") from None
    with _explained(out), driver_lock(out):  # the views have one writer
        return _locked_sweep(plan, grid, context, options, listener, mlflow_uri, settings)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turn a disk that takes nothing more into one line."""
    try:
        yield
    except OSError as error:
        if out_of_room(error):
            raise AssayError(
                f"{out}: no room left on the device; what is committed is kept, "
                "make room and run the same command again"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise BadInput(f"{error.filename or out}: cannot be written ({error.strerror})") from None
        raise


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
    try:
        _write_sweep(out, plan, grid, context, settings, {"started": started})
        try:
            summary = drive(plan, context, options, views)
        finally:
            rows = views.compact()
    finally:
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


def _cells_by_stage(plan: Plan) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for cell in plan.cells:
        for key in cell.stages:
            found.setdefault(key, []).append(cell)
    return found


def _write_sweep(
    out: Path, plan: Plan, grid: Grid, context: Context, settings: Sequence[str], more: Mapping[str, Any]
) -> None:
    """Write sweep.json: what was asked for and on what; which code a result came from stands in its record."""
    value = {
        "name": plan.name,
        "profile": plan.profile,
        "grid": grid.source,
        "settings": list(settings),
        "cells": len(plan.cells),
        "stages": len(plan.stages),
        "stage_keys": sorted(plan.stages),
        "device": context.device,
        **more,
    }
    write_json(out / "sweep.json", value)


def _utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
