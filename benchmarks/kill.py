"""What a sweep loses when its driver, its workers or a node are killed: nothing.

    python benchmarks/kill.py [--drivers 20] [--workers 20] [--nodes 1] [--seed 0] [--json]

One sweep runs undisturbed in one process, without Ray. Then the driver of a second one is killed (-9) at random moments
and started again each time; the workers of a third one are killed at random moments while it runs; a fourth one loses
nodes of a cluster of three. Every one must end with the rows of the first, bit for bit but for timings; no stage that
was committed before a kill may be computed again. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import yaml

GRID = {
    "name": "killed",
    "tasks": ["digits-cnn-mini"],
    "methods": ["clean", "uchida", "null-embedding"],
    "attacks": ["none", "prune", "fine-tune", "permute"],
    "profile": "smoke",
    "train": {"epochs": 8},
}
CHECKPOINT_S = 0.2  # stages take about a second here; rolling checkpoints must be met by the kills too
MOST_S = 6.0  # a kill comes at most this long after the first stage of a driver has begun


def run_here(grid: Path, out: Path, address: str | None = None, executor: Literal["tune", "inline"] = "tune") -> None:
    """Run the sweep from this process, as `assay run` does but for the checkpoints' interval."""
    from assay.orchestrator.command.progress import Progress
    from assay.orchestrator.execution.driver import Options
    from assay.orchestrator.execution.sweep import run_sweep
    from assay.orchestrator.planning.grid import parse
    from assay.orchestrator.planning.planner import build_plan
    from assay.orchestrator.planning.registry import Registry
    from assay.orchestrator.work.bench import Context

    registry = Registry([])
    parsed = parse(str(grid), registry)
    plan = build_plan(parsed, registry, None, "cpu", 1)
    out.mkdir(parents=True, exist_ok=True)
    workers = 2 if address is None else None
    options = Options(workers=workers, pack_s=2.0, address=address, executor=executor)
    with Progress(plan, out, quiet=True) as progress:
        run_sweep(plan, parsed, Context(str(out), checkpoint_s=CHECKPOINT_S), options, progress)


def drive(grid: Path, out: Path, arguments: argparse.Namespace) -> None:
    """Be one of the drivers."""
    if "--nodes" in sys.argv:
        on_cluster(grid, out, arguments.nodes)
    else:
        run_here(grid, out, executor="inline" if arguments.inline else "tune")


def start(grid: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start a driver."""
    command = [sys.executable, __file__, "--sweep", str(grid), str(out), *more]
    return subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(driver: subprocess.Popen[str]) -> None:
    """Wait for a driver that must succeed."""
    _, errors = driver.communicate()
    if driver.returncode:
        sys.exit(f"a driver ended with status {driver.returncode}:\n{errors}")


def committed(out: Path) -> dict[str, str]:
    """When the work on each committed stage began: another time means that it was computed again."""
    records = [json.loads(path.read_text("utf-8")) for path in (out / "store").glob("??/*/record.json")]
    return {record["key"]: record["started"] for record in records}


def at_work(out: Path) -> dict[str, int]:
    """Stages at work and the processes that work on them."""
    found = {}
    for path in (out / "store" / "running").glob("*.json"):
        try:
            marker = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        found[marker["key"]] = int(marker["worker"].rpartition(":")[2])
    return found


def kill_drivers(grid: Path, out: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Kill the driver again and again, starting the next one at once; then let one finish."""
    counts: Counter[str] = Counter()
    for _ in range(kills):
        seen = committed(out)
        driver = start(grid, out)
        while driver.poll() is None and not at_work(out):
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, MOST_S))
        counts["drivers_killed" if driver.poll() is None else "too_late"] += 1
        driver.kill()
        driver.communicate()
        counts["computed_again"] += _again(seen, committed(out))
    seen = committed(out)
    finish(start(grid, out))
    counts["computed_again"] += _again(seen, committed(out))
    return counts


def kill_workers(grid: Path, out: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Kill workers while sweeps run into one folder, a stage at most twice (five deaths are its own fault)."""
    counts: Counter[str] = Counter()
    deaths: Counter[str] = Counter()
    driver = start(grid, out)
    while counts["workers_killed"] < kills and driver.poll() is None:
        time.sleep(chance.uniform(0.0, MOST_S / 2))
        candidates = [(key, pid) for key, pid in at_work(out).items() if deaths[key] < 2 and _alive(pid)]
        if candidates:
            key, pid = chance.choice(candidates)
            os.kill(pid, signal.SIGKILL)
            deaths[key] += 1
            counts["workers_killed"] += 1
    finish(driver)
    return counts


def kill_nodes(grid: Path, out: Path, kills: int) -> Counter[str]:
    """Take nodes away from a cluster of three, without warning, while the sweep runs on it."""
    driver = start(grid, out, "--nodes", str(kills))
    finish(driver)
    return Counter(nodes_killed=kills)


def on_cluster(grid: Path, out: Path, kills: int) -> None:
    """Start three nodes of one processor each, and take some away once their workers are at work."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]  # on the main thread: it installs a signal handler

    def remove() -> None:
        for node in nodes[:kills]:
            while len(at_work(out)) < 2:
                time.sleep(0.05)
            time.sleep(0.5)
            cluster.remove_node(node, allow_graceful=False)

    remover = threading.Thread(target=remove, daemon=True)
    remover.start()
    try:
        run_here(grid, out, cluster.address)
        if remover.is_alive():
            sys.exit("the sweep ended before every node was taken away")
    finally:
        cluster.shutdown()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _again(before: dict[str, str], after: dict[str, str]) -> int:
    return sum(after.get(key) != started for key, started in before.items())


def compare(undisturbed: Path, out: Path) -> dict[str, int]:
    """Return how the rows of two sweeps differ."""
    import pyarrow.parquet as pq

    from assay.results.parquet import rows_equal

    keys = [
        pq.read_table(folder / "rows.parquet", columns=["cell_key"])[0].to_pylist() for folder in (undisturbed, out)
    ]
    return {
        "cells": len(keys[0]),
        "lost": len(set(keys[0]) - set(keys[1])),
        "doubled": len(keys[1]) - len(set(keys[1])),
        "different": len(rows_equal(undisturbed, out)),
    }


def main() -> int:
    """Disturb, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", type=int, default=20)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sweep", nargs=2, metavar=("GRID", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--inline", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sweep:
        grid, out = map(Path, arguments.sweep)
        drive(grid, out, arguments)
        return 0
    chance = random.Random(arguments.seed)  # noqa: S311 -- moments of kills, no secret
    results: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="assay-kill-") as name:
        folder = Path(name)
        grid = folder / "killed.yaml"
        grid.write_text(yaml.safe_dump(GRID), "utf-8")
        finish(start(grid, folder / "undisturbed", "--inline"))
        if arguments.drivers:
            results["drivers"] = dict(kill_drivers(grid, folder / "drivers", arguments.drivers, chance))
        if arguments.workers:
            results["workers"] = dict(kill_workers(grid, folder / "workers", arguments.workers, chance))
        if arguments.nodes:
            results["nodes"] = dict(kill_nodes(grid, folder / "nodes", arguments.nodes))
        for what, counts in results.items():
            counts.update(compare(folder / "undisturbed", folder / what))
    for what, counts in results.items():
        if not arguments.json:
            print(f"{what:8}", ", ".join(f"{key} {value}" for key, value in counts.items()))
    if arguments.json:
        print(json.dumps(results))
    bad = ("lost", "doubled", "different", "computed_again")
    return int(any(counts.get(key) for counts in results.values() for key in bad))


if __name__ == "__main__":
    sys.exit(main())
