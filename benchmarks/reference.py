"""Takes what shipped grids measured from a sweep's store into results/reference/, one folder a grid.

    python benchmarks/reference.py OUT GRID [GRID ...] [--data-root DIR] [--to results/reference]

OUT's store may hold other grids and older versions of a method as well: only the cells that a grid plans today are
taken, with the curves of their stages and the environments that they ran in. A grid's folder is replaced as a whole,
and only by a whole sweep: where a cell failed or was not run nothing is written, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from assay.orchestrator.execution.rows import Rows
from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.store import Store, write_json
from assay.results.errors import ResultsError
from assay.results.parquet import write_curves, write_rows
from assay.tasks.errors import AssayError

HERE = Path(__file__).resolve().parents[1] / "results" / "reference"


def take(out: Path, grid: str, data_root: Path | None, to: Path) -> tuple[int, int]:
    """Take one grid; return how many of its cells were not run, and how many failed."""
    registry = Registry([])
    plan = build_plan(parse(grid, registry), registry, data_root)
    source = Rows(plan, Store(out / "store"))
    rows = list(source.all())
    missing, failed = len(plan.cells) - len(rows), sum(row["status"] in ("failed", "blocked") for row in rows)
    if not missing and not failed:
        write_rows(to / plan.name, rows)
        write_curves(to / plan.name, source.curves())
        write_json(to / plan.name / "environments.json", source.environments)
    return missing, failed


def main() -> int:
    """Take the grids."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the sweep's folder")
    parser.add_argument("grids", nargs="+", metavar="GRID", help="names of shipped grids")
    parser.add_argument("--data-root", type=Path, help="folder with the data sets (default: $ASSAY_DATA)")
    parser.add_argument("--to", type=Path, default=HERE, help="where the folders go (default: results/reference)")
    arguments = parser.parse_args()
    if not (arguments.out / "store").is_dir():
        print(f"error: {arguments.out} is no sweep's folder: it has no store", file=sys.stderr)
        return 2
    complete = True
    for grid in arguments.grids:
        try:
            missing, failed = take(arguments.out, grid, arguments.data_root, arguments.to)
        except (AssayError, ResultsError) as why:
            print(f"error: {grid}: {why}", file=sys.stderr)
            return 2
        complete = complete and not missing and not failed
        print(f"{grid}: {missing} cells not run, {failed} failed" if missing or failed else f"{grid}: taken")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
