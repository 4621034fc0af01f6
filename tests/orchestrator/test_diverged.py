"""An attack whose training diverges is a result; an unmarked model or a mark that diverges is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inline_sweep import executed

from assay.orchestrator.store import Store
from assay.results.parquet import read_curves, read_nulls, read_rows
from assay.results.schema import COLUMNS
from assay.results.tables import matrix

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


BASELINE: dict[str, Any] = {
    "name": "baseline",
    "tasks": ["digits-cnn-mini"],
    "methods": ["clean", "uchida", {"adi": {"allow_weak": True}}],
    "attacks": ["none", "fine-tune"],
    "profile": "smoke",
    "train": {"epochs": 3, "optimizer": "sgd", "lr": 1e30},
}


def test_a_diverged_baseline_fails_and_nothing_is_derived_from_it(tmp_path: Path) -> None:
    out, plan, report = executed(BASELINE, tmp_path)
    assert (report.executed, report.failed + report.blocked, report.cells) == (0, 6, 6)
    store = Store(out / "store")
    reasons = {stage.label: store.failure(stage.key) for stage in plan.stages.values() if stage.kind == "clean"}
    told = "digits-cnn-mini: a loss is not finite after 1 epoch; lower the rate"
    assert {failure["reason"] for failure in reasons.values() if failure} == {told}
    assert {failure["kind"] for failure in reasons.values() if failure} == {"Diverged"}
    rows = read_rows(out)
    assert set(rows.status) == {"blocked"}
    assert all(reason.endswith(told) for reason in rows.reason)
    figures = [column.name for column in COLUMNS if column.part in ("measured", "derived", "cost")]
    assert rows[figures].isna().all(axis=None), "no figure stands where nothing was measured"
    assert [dict(metrics) for metrics in rows.metrics] == [{}] * len(rows)
    assert read_nulls(out).empty
    table = matrix(rows)
    assert {text for line in table.rows for text in line[1:]} == {"blocked: see [1]"}
    assert told in table.notes[0]
