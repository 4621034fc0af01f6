"""What the driver costs: cells that do nothing, through the command line.

    python benchmarks/overhead.py [--cells 2000] [--workers 2] [--planned 10000] [--mirrored 200] [--json]

trial_ms    per trial of one stage each
cell_ms     per cell when stages are packed, Parquet included
beside_ms   the same with the MLflow mirror at work beside the sweep
mirror_ms   what the mirror takes for one run, off the sweep's path
planning_s  parsing and planning 10,000 cells

Goals: 60 ms per trial, 15 ms per packed cell, planning in 2 s, 1 GB of memory for the driver. Exit status 1 if one is
missed.

A cell's time is the wall time from the start of the first attack stage until Parquet is complete, over the number of
attack stages; the seconds that Ray takes to start and the one training are not in it, the stages' own loading and
evaluation are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
NO_MIRROR = ("--mlflow-uri", "http://127.0.0.1:9")  # nobody listens: the mirror gives up at once
METHODS = 20  # configurations of the method; the attack's configurations make up the rest
GOALS = {"trial_ms": 60.0, "cell_ms": 15.0, "planning_s": 2.0, "driver_mib": 1024.0}


def grid(folder: Path, cells: int) -> Path:
    """Write a grid of that many cells."""
    value = {
        "name": f"noop-{cells}",
        "tasks": ["digits-cnn-mini"],
        "methods": [{"noop": {"index": list(range(METHODS))}}],
        "attacks": [{"noop-attack": {"index": list(range(cells // METHODS))}}],
        "profile": "smoke",
        "train": {"epochs": 1, "samples": 200, "test_samples": 10},
    }
    path = folder / f"noop-{cells}.yaml"
    path.write_text(yaml.safe_dump(value), "utf-8")
    return path


def planning(path: Path) -> float:
    """Return the seconds that parsing and planning take, imports not counted."""
    from assay.orchestrator.planning.grid import parse
    from assay.orchestrator.planning.planner import build_plan
    from assay.orchestrator.planning.registry import Registry

    registry = Registry([HERE / "noop_plugin.py"])
    started = time.perf_counter()
    build_plan(parse(str(path), registry), registry, None, "cpu", 1)
    return time.perf_counter() - started


def sweep(path: Path, out: Path, workers: int, *more: str) -> dict[str, float]:
    """Run the grid in a process of its own; return milliseconds per attack stage and the driver's memory."""
    command = [sys.executable, "-m", "assay.orchestrator.command.cli", "run", str(path), "-o", str(out), "--json"]
    command += ["--plugin", str(HERE / "noop_plugin.py"), "--workers", str(workers), "--device", "cpu", *more]
    code = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module('assay.orchestrator.command.cli', run_name='__main__')\n"
        "finally: print('MEMORY', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command[2:]], capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    memory = re.search(r"MEMORY (\d+)", done.stderr)
    assert memory is not None
    records = [json.loads(file.read_text("utf-8")) for file in (out / "store").glob("??/*/record.json")]
    attacks = [record for record in records if record["stage"] == "attack"]
    begun = min(datetime.fromisoformat(record["started"]) for record in attacks)
    ended = datetime.fromtimestamp((out / "curves.parquet").stat().st_mtime, UTC)  # the last view to be written
    work_s = sum(_seconds(record) for record in attacks)
    return {
        "ms": 1e3 * (ended - begun).total_seconds() / len(attacks),
        "stage_ms": 1e3 * work_s / len(attacks),
        "wall_s": wall_s,
        "driver_mib": int(memory[1]) / 1024,
    }


def mirror(out: Path, folder: Path, count: int) -> float:
    """Return milliseconds per run for mirroring so many rows of a sweep into a new local database."""
    from assay.results.mlflow_mirror import sync
    from assay.results.parquet import read_records, write_rows

    folder.mkdir()
    write_rows(folder, [])
    sync([folder])  # makes the database; that takes seconds
    rows = read_records(out)[:count]
    write_rows(folder, rows)
    started = time.perf_counter()
    sync([folder])
    return 1e3 * (time.perf_counter() - started) / len(rows)


def _seconds(record: dict[str, Any]) -> float:
    return (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()


def main() -> int:
    """Measure, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--planned", type=int, default=10_000)
    parser.add_argument("--mirrored", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="assay-overhead-") as name:
        folder = Path(name)
        planning_s = planning(grid(folder, arguments.planned))
        path = grid(folder, arguments.cells)
        packed = sweep(path, folder / "packed", arguments.workers, *NO_MIRROR)
        beside = sweep(path, folder / "beside", arguments.workers)
        single = sweep(path, folder / "single", arguments.workers, "--no-pack", *NO_MIRROR)
        mirror_ms = mirror(folder / "packed", folder / "mirrored", arguments.mirrored)
    figures = {
        "trial_ms": single["ms"],
        "cell_ms": packed["ms"],
        "beside_ms": beside["ms"],
        "mirror_ms": mirror_ms,
        "stage_ms": packed["stage_ms"],
        "planning_s": planning_s,
        "driver_mib": max(found["driver_mib"] for found in (single, packed, beside)),
        "wall_single_s": single["wall_s"],
        "wall_packed_s": packed["wall_s"],
    }
    if arguments.json:
        print(json.dumps({**figures, "cells": arguments.cells, "workers": arguments.workers}))
    else:
        for key, value in figures.items():
            print(f"{key:15} {value:10.2f}" + (f"   goal: at most {GOALS[key]:g}" if key in GOALS else ""))
    return 0 if all(figures[key] <= goal for key, goal in GOALS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
