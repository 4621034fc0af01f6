"""The commands that plan, execute and check. Imports are inside, because torch, Ray and MLflow take seconds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from assay.orchestrator.command.console import complain, emit, others_on_stderr, say_json
from assay.tasks.errors import BadInput

if TYPE_CHECKING:
    from assay.orchestrator.planning.grid import Grid
    from assay.orchestrator.planning.plan import Plan
    from assay.orchestrator.planning.registry import Registry


def _registry(arguments: argparse.Namespace) -> Registry:
    from assay.orchestrator.planning.registry import Registry

    return Registry(arguments.plugin)


def listing(arguments: argparse.Namespace) -> int:
    """List methods, attacks, tasks or grids."""
    with others_on_stderr():
        from assay.orchestrator.planning import catalogue

        registry = _registry(arguments)  # plugins may add data sets and architectures, too
        what = arguments.what
        if what in ("methods", "attacks"):
            rows = getattr(catalogue, f"list_{what}")(registry)
        else:
            rows = catalogue.list_tasks() if what == "tasks" else catalogue.list_grids()
    if arguments.json:
        say_json(rows)
    else:
        from assay.orchestrator.command.display import listing

        listing(what, rows)
    return 0


def _planned(arguments: argparse.Namespace) -> tuple[Grid, Plan]:
    from assay.orchestrator.planning.grid import parse
    from assay.orchestrator.planning.planner import build_plan
    from assay.orchestrator.planning.united import unite

    registry = _registry(arguments)
    device = _device(arguments.device)
    grids = [parse(grid, registry, arguments.profile, arguments.set) for grid in arguments.grid]
    plans = [build_plan(grid, registry, arguments.data_root, device, arguments.threads) for grid in grids]
    return unite(grids, plans)


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def plan(arguments: argparse.Namespace) -> int:
    """Say what a sweep would do."""
    from assay.orchestrator.command.display import plan_text
    from assay.orchestrator.command.values import plan_values

    with others_on_stderr():
        _, planned = _planned(arguments)
        values = plan_values(planned, arguments.out)
    if arguments.json:
        say_json(values)
    else:
        plan_text(values)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Execute a sweep; its status is 1 if cells failed, whatever becomes of the output."""
    from assay.orchestrator.command.progress import Progress
    from assay.orchestrator.execution.driver import Options
    from assay.orchestrator.execution.sweep import run_sweep
    from assay.orchestrator.work.bench import Context

    with others_on_stderr():
        grid, planned = _planned(arguments)
        out = arguments.out or (Path("runs") / grid.folder).resolve()
        if out.exists() and not out.is_dir():
            raise BadInput(f"-o {out}: expected a folder, found a file")
        plugins = tuple(str(plugin) for plugin in arguments.plugin)
        root = str(arguments.data_root) if arguments.data_root else None
        context = Context(str(out), root, plugins, _device(arguments.device), arguments.threads)
        options = Options(
            executor=arguments.executor,
            workers=arguments.workers,
            pack=not arguments.no_pack,
            address=arguments.address,
        )
        with Progress(planned, out, quiet=arguments.json) as progress:
            report = run_sweep(planned, grid, context, options, progress, arguments.mlflow_uri, arguments.set)
    for problem in report.problems:
        complain(f"assay: {problem}")
    if arguments.json:
        say_json(report.as_dict())
    else:
        from assay.orchestrator.command.display import report_text

        report_text(report, out)
    return 1 if report.failed_cells else 0


def submit(arguments: argparse.Namespace) -> int:
    """Execute a sweep on a cluster."""
    from assay.orchestrator.execution.submit import submit
    from assay.orchestrator.planning.grid import parse
    from assay.orchestrator.planning.planner import check_grid

    # Bad input is told here, not in a job's log; the data lie on the cluster.
    with others_on_stderr():
        registry = _registry(arguments)
        check_grid(parse(arguments.grid, registry, arguments.profile, arguments.set), registry)
    extra = [f"--{name}={getattr(arguments, name)}" for name in ("profile", "device") if getattr(arguments, name)]
    extra += [f"--set={setting}" for setting in arguments.set]
    extra += [f"--workers={arguments.workers}"] if arguments.workers else []
    extra += [f"--threads={arguments.threads}"] if arguments.threads > 1 else []
    extra += ["--no-pack"] if arguments.no_pack else []
    return submit(
        arguments.address,
        [_grid_file(arguments.grid), *extra],
        data_root=arguments.data_root,
        out=arguments.out,
        plugins=tuple(str(plugin) for plugin in arguments.plugin),
        follow=not arguments.detach,
    )


def _grid_file(grid: str) -> str:
    """Return the file that a grid's name stands for, or the name of a shipped grid."""
    file = Path(grid).expanduser()
    return str(file) if file.is_file() else grid


def check(arguments: argparse.Namespace) -> int:
    """Run the contract checks on a plugin."""
    from assay.orchestrator.checks.contracts import check_file
    from assay.orchestrator.command.display import check_line, check_summary

    results = check_file(arguments.file, check_line, _device(arguments.device))
    check_summary(results)
    return 0 if all(result.ok for result in results) else 1


def data(arguments: argparse.Namespace) -> int:
    """Say which data sets are here, verify or fetch some."""
    from assay.orchestrator.command.display import data_text, verified_text
    from assay.tasks.data.fetch import fetch
    from assay.tasks.data.inventory import data_status, verify_data
    from assay.tasks.data.sources import data_root

    with others_on_stderr():
        root = arguments.data_root
        if arguments.action == "fetch":
            for name in arguments.names:
                fetch(name, data_root(root))
        if arguments.action == "list":
            from assay.orchestrator.planning.catalogue import data_uses

            rows = [{**row, "tables": data_uses(row["key"])} for row in data_status(root)]
        else:
            rows = verify_data(root, arguments.names)
    if arguments.json:
        say_json(rows)
    else:
        (data_text if arguments.action == "list" else verified_text)(rows)
    return 0 if all(row.get("ok", True) for row in rows) else 1


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of grids."""
    import json

    with others_on_stderr():
        from assay.orchestrator.planning.grid_schema import grid_schema

        found = grid_schema(_registry(arguments))
    emit(json.dumps(found, indent=2, ensure_ascii=False))
    return 0
