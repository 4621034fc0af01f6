"""An attack whose training diverges is a result: its row and the finite part of its curve are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inline_sweep import executed

from assay.results.parquet import read_curves, read_rows

GRID: dict[str, Any] = {
    "name": "diverged",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"uchida": {"allow_weak": True, "bits": 32}}],
    "attacks": [{"fine-tune": {"epochs": 3, "lr": 1e12}}],
    "seeds": [0],
    "profile": "smoke",
    "train": {"samples": 400, "epochs": 1, "test_samples": 100, "references": 1, "calibration_keys": 10},
}


def test_a_diverged_attack_leaves_a_row_and_what_is_finite_of_its_curve(tmp_path: Path) -> None:
    out, _, report = executed(GRID, tmp_path)
    assert (report.failed, report.cells) == (0, 1)
    (row,) = read_rows(out).to_dict("records")
    curves = read_curves(out)
    own = curves[(curves["stage_key"] == row["attack_key"]) & (curves["curve"] == "train")]
    assert row["status"] == "ok"
    assert set(own["metric"]) >= {"lr", "val_accuracy"}
    assert own["value"].notna().all()
    assert len(own[own["metric"] == "task"]) < len(own[own["metric"] == "lr"]), "a loss that is not finite is no point"
