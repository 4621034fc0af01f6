"""The negative control of the whole protocol: an owner that always accepts proves nothing about any attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from inline_sweep import Silent

from assay.orchestrator.execution.driver import Options
from assay.orchestrator.execution.sweep import run_sweep
from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.work.bench import Context
from assay.results.parquet import read_rows

GULLIBLE = """
from assay.methods.base import Method
from assay.methods.null import Null
from assay.methods.reading import Reading


class Gullible(Method):
    key, title, paper, access, family = "gullible", "Always accepts", "these tests", "labels", "bits"

    def draw(self, lab):
        return {"number": int(lab.stream("secret").initial_seed() % 1000)}

    def read(self, suspect, secret):
        return Reading(1.0, 0.5, 0.9, 1e-9, True, "T3", 64, 64)

    def null(self, lab, secret):
        return Null([[0.5] * 10], [[32] * 10], 64, ["reference-0"])
"""
GRID: dict[str, Any] = {
    "name": "gullible",
    "tasks": ["digits-cnn-mini"],
    "methods": ["gullible"],
    "attacks": [
        "none",
        {"prune": {"ratio": [0.2, 0.99]}},
        {"round": {"digits": 4}},
        {"distill": {"epochs": 1}},
        {"forge": {"draws": 1}},
        {"false-claim": {"mode": "adaptive", "forgeries": 2, "own_models": 1, "accused": 1, "surrogate_epochs": 0}},
    ],
    "seeds": 1,
    "profile": "smoke",
    "train": {"samples": 300, "epochs": 2, "test_samples": 100, "references": 1, "calibration_keys": 10},
}


def test_who_always_accepts_keeps_every_mark_and_believes_every_claim(tmp_path: Path) -> None:
    plugin, path = tmp_path / "gullible.py", tmp_path / "grid.yaml"
    plugin.write_text(GULLIBLE, "utf-8")
    path.write_text(yaml.safe_dump(GRID), "utf-8")
    registry = Registry([plugin])
    grid = parse(str(path), registry)
    plan = build_plan(grid, registry, None)
    context = Context(str(tmp_path / "out"), plugins=(str(plugin),))
    report = run_sweep(plan, grid, context, Options(executor="inline"), Silent(), "http://127.0.0.1:9")
    assert (report.failed, report.blocked, report.cells) == (0, 0, 7)
    rows = read_rows(tmp_path / "out")
    for _, row in rows.iterrows():
        assert row.outcome == ("retained" if row.main_before - row.main_after <= 0.05 else "failed")
    assert set(rows.outcome) == {"retained", "failed"}, "a network that is useless must not count as retained"
    removals = rows[rows.attack.isin(["prune", "round", "distill"])]
    assert [metrics["success"] for metrics in removals.metrics] == [0.0] * len(removals)
    (claimed,) = rows.metrics[rows.attack == "false-claim"]
    for group in ("marked", "unmarked"):
        assert claimed[f"false_strict_{group}_rate"] == pytest.approx(1.0)
    assert rows.rival_verified[rows.attack == "forge"].all(), "whatever is forged verifies"
