"""Small sweeps in this process, MLflow out of reach: what tests of whole rows and records run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from assay.orchestrator.execution.driver import Options
from assay.orchestrator.execution.sweep import Report, run_sweep
from assay.orchestrator.planning.grid import Grid, parse
from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.work.bench import Context


class Silent:
    """A listener that tells nobody."""

    def on_start(self, *_: Any) -> None:
        pass

    def on_done(self, *_: Any) -> None:
        pass

    def on_note(self, *_: Any) -> None:
        pass


def planned(values: dict[str, Any], folder: Path) -> tuple[Grid, Plan]:
    """Write a grid into a folder and plan it."""
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    registry = Registry()
    grid = parse(str(path), registry)
    return grid, build_plan(grid, registry, None)


def executed(values: dict[str, Any], folder: Path) -> tuple[Path, Plan, Report]:
    """Run a grid into `folder / "out"`; return that folder, the plan and the report."""
    grid, plan = planned(values, folder)
    out = folder / "out"
    report = run_sweep(plan, grid, Context(str(out)), Options(executor="inline"), Silent(), "http://127.0.0.1:9")
    return out, plan, report
