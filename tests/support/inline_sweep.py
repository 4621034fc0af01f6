"""Small sweeps in this process, MLflow out of reach: what tests of whole rows and records run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from assay.orchestrator.execution.driver import Listener, Options
from assay.orchestrator.execution.sweep import Report, run_sweep
from assay.orchestrator.planning.grid import Grid, parse
from assay.orchestrator.planning.plan import Plan, Stage
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


class Remembering(Silent):
    """A listener that remembers what became of each stage."""

    def __init__(self) -> None:
        self.done: list[tuple[Stage, str]] = []

    def on_done(self, stage: Stage, status: str) -> None:
        self.done.append((stage, status))

    @property
    def labels(self) -> list[str]:
        """What was executed, without task and seed: `attack prune | adi`."""
        return sorted(_short(stage.label) for stage, status in self.done if status == "executed")


def _short(label: str) -> str:
    return " | ".join(part for part in label.split(" | ") if not part.startswith(("digits-", "seed ")))


def planned(
    values: dict[str, Any], folder: Path, plugins: Sequence[Path] = (), settings: Sequence[str] = ()
) -> tuple[Grid, Plan]:
    """Write a grid into a folder and plan it."""
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    registry = Registry(plugins)
    grid = parse(str(path), registry, settings=settings)
    return grid, build_plan(grid, registry, None)


def executed(
    values: dict[str, Any],
    folder: Path,
    plugins: Sequence[Path] = (),
    settings: Sequence[str] = (),
    listener: Listener | None = None,
) -> tuple[Path, Plan, Report]:
    """Run a grid into `folder / "out"`; return that folder, the plan and the report."""
    grid, plan = planned(values, folder, plugins, settings)
    out = folder / "out"
    context = Context(str(out), plugins=tuple(map(str, plugins)))
    report = run_sweep(plan, grid, context, Options(executor="inline"), listener or Silent(), "http://127.0.0.1:9")
    return out, plan, report
