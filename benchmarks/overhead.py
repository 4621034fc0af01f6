"""What the driver costs: cells that do nothing, through the command line, Parquet and MLflow included.

    python benchmarks/overhead.py [--cells 2000] [--workers 2] [--planned 10000] [--json]

Goals: at most 60 ms per trial with one stage each, 15 ms per cell when stages are packed, planning 10,000 cells in 2 s,
1 GB of memory for the driver. Exit status 1 if one is missed.

A cell's time is the wall time between the driver's start and end of all attack stages, over their number; the seconds
that Ray takes to start and the one training are not in it, the stages' own loading and evaluation are.
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
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
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
    ended = max(datetime.fromisoformat(record["ended"]) for record in attacks)
    work_s = sum(_seconds(record) for record in attacks)
    return {
        "ms": 1e3 * (ended - begun).total_seconds() / len(attacks),
        "stage_ms": 1e3 * work_s / len(attacks),
        "wall_s": wall_s,
        "driver_mib": int(memory[1]) / 1024,
    }


def _seconds(record: dict[str, Any]) -> float:
    return (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()


def main() -> int:
    """Measure, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--planned", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="assay-overhead-") as name:
        folder = Path(name)
        planning_s = planning(grid(folder, arguments.planned))
        path = grid(folder, arguments.cells)
        packed = sweep(path, folder / "packed", arguments.workers)
        single = sweep(path, folder / "single", arguments.workers, "--no-pack")
    figures = {
        "trial_ms": single["ms"],
        "cell_ms": packed["ms"],
        "stage_ms": packed["stage_ms"],
        "planning_s": planning_s,
        "driver_mib": max(single["driver_mib"], packed["driver_mib"]),
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
