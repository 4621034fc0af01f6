"""Golden figures: what every method and attack measures on digits, kept in figures.json.

`make golden` measures anew, shows what moved and rewrites the file. Who moves a figure on purpose commits the new file,
and the changelog says why.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import assay

HERE = Path(__file__).parent
FILE = HERE / "figures.json"
GRIDS = ("grid.yaml", "attacks.yaml")
_COLUMNS = (
    "main_clean", "main_before", "main_after", "score_before", "score_after", "chance", "p_before", "p_after",
    "outcome", "rival_score", "rival_p", "rival_verified", "detected_after", "status", "reason",
)  # fmt: skip
_LEFT_OUT = ("_s", "_share", "_mb")  # times, and what is relative to them

Figures = dict[str, dict[str, Any]]


def machine() -> str:
    """Return the class of machines on which the same cell has the same bits."""
    release = torch.__version__.partition("+")[0]
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {release}"


def measure(out: Path) -> Figures:
    """Run the golden grids into a folder; return the figures of each cell by a readable name."""
    found: Figures = {}
    for grid in GRIDS:
        sweep = assay.run(HERE / grid, out / grid, executor="inline", device="cpu", mlflow_uri="http://127.0.0.1:9")
        for row in sweep.rows.to_dict("records"):
            figures = {name: plain(row[name]) for name in _COLUMNS}
            metrics = {name: value for name, value in row["metrics"].items() if not name.endswith(_LEFT_OUT)}
            found[f"{row['method']} x {row['attack']}"] = {**figures, "metrics": metrics}
    return dict(sorted(found.items()))


def plain(value: Any) -> Any:
    """Return a value of a frame as JSON has it: null for what is missing."""
    return None if value is None or value != value or str(value) == "<NA>" else getattr(value, "item", lambda: value)()


def differences(kept: Figures, found: Figures, tolerance: float) -> list[str]:
    """Return one line for each figure that differs, missing and new ones included.

    Args:
        kept, found: figures of cells by name.
        tolerance: the largest difference of two numbers, absolute and relative; 0: the same bits.
    """
    lines = []
    for cell in sorted(kept.keys() | found.keys()):
        before, after = (_flat(figures.get(cell, {})) for figures in (kept, found))
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if not _same(old, new, tolerance):
                lines.append(f"{cell}: {name}: {old!r} -> {new!r}")
    return lines


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in figures.items() if name != "metrics"}, **figures.get("metrics", {})}


def _same(old: Any, new: Any, tolerance: float) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
    if numbers and tolerance:
        return bool(abs(old - new) <= tolerance * max(1.0, abs(old), abs(new)))
    return bool(old == new)


def main() -> None:
    """Measure, show the differences, rewrite the file."""
    torch.set_num_threads(1)
    kept = json.loads(FILE.read_text("utf-8"))["figures"] if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    for line in (moved := differences(kept, found, 0.0)):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"{len(moved)} figures moved\n")
    FILE.write_text(json.dumps({"machine": machine(), "figures": found}, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
