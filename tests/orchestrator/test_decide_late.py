"""A finished sweep under another calibration or other rules: what is measured again, and what is only decided anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from inline_sweep import Remembering, executed

import assay
from assay.orchestrator.command.cli import main
from assay.orchestrator.planning.plan import Plan
from assay.results.decisions import DERIVED_METRICS
from assay.results.parquet import read_nulls, read_rows
from assay.results.schema import DERIVED_COLUMNS

GRID: dict[str, Any] = {
    "name": "late",
    "tasks": ["digits-cnn-mini"],
    "methods": ["clean", {"uchida": {"allow_weak": True, "bits": 32}}],
    "attacks": ["none", {"prune": {"ratio": [0.5, 0.99]}}, {"fine-tune": {"epochs": 1}}],
    "profile": "smoke",
    "train": {"samples": 500, "epochs": 3, "test_samples": 100},
    "calibration": {"references": 2, "keys": 20},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("late")
    out, plan, report = executed(GRID, folder)
    assert (report.failed, report.blocked, report.not_applicable) == (0, 0, 0)
    return out, plan


def stored(out: Path) -> dict[str, int]:
    """The files of all committed stages, with the time of their last change."""
    return {str(path): path.stat().st_mtime_ns for path in sorted((out / "store").glob("??/*/*"))}


def test_more_references_train_references_and_read_the_null_anew(finished: tuple[Path, Plan], tmp_path: Path) -> None:
    out, plan = finished
    shutil.copytree(out, tmp_path / "out")
    listener = Remembering()
    more = {**GRID, "calibration": {**GRID["calibration"], "references": 3}}
    out, again, report = executed(more, tmp_path, listener=listener)
    assert listener.labels == ["calibrate uchida", "clean reference-2"]
    assert report.cached == len(again.stages) - 2

    def keys(plan: Plan, kind: str) -> set[str]:
        return {stage.key for stage in plan.stages.values() if stage.kind == kind}

    for kind in ("embed", "attack"):
        assert keys(again, kind) == keys(plan, kind)
    rows = read_rows(out)
    assert len(rows) == 2 * len(GRID["methods"]) * 4, "rows of both calibrations, each under its own key"
    assert set(rows.groupby("calibration_config").attack_key.apply(frozenset)) == {frozenset(keys(plan, "attack"))}
    counts = read_nulls(out).groupby("null_key").model.nunique()
    assert sorted(counts) == [2, 3]


def test_the_same_rules_decide_the_same_bits(finished: tuple[Path, Plan]) -> None:
    rows = read_rows(finished[0])
    again = assay.decide(rows, assay.Rules(), read_nulls(finished[0]))
    pd.testing.assert_frame_equal(again, rows, check_exact=True)


def test_other_rules_move_decisions_and_execute_nothing(
    finished: tuple[Path, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    before, default = stored(out), read_rows(out)
    assert main(["table", str(out)]) == 0
    usual = capsys.readouterr().out
    for alpha, moves in ((0.01, -1), (1e-6, 1)):
        assert main(["table", str(out), "--alpha", f"{alpha}"]) == 0
        table = capsys.readouterr().out
        assert f"false claims at most {alpha:g}" in table
        assert table != usual
        rows = assay.read(out, rules=assay.Rules(alpha=alpha)).rows
        marked = rows.method == "uchida"
        for old, new in zip(default.metrics[marked], rows.metrics[marked], strict=True):
            assert moves * (new["threshold_strict"] - old["threshold_strict"]) > 0
            measured = {name: value for name, value in old.items() if name not in DERIVED_METRICS}
            assert measured.items() <= new.items()
        others = [name for name in rows if name not in (*DERIVED_COLUMNS, "metrics")]
        pd.testing.assert_frame_equal(rows[others], default[others], check_exact=True)
    lenient = assay.read(out, rules=assay.Rules(largest_loss=1.0)).rows
    assert not set(lenient.outcome.dropna()) & {"useless", "failed"}, "any loss is small enough"
    assert set(default.outcome.dropna()) & {"useless", "failed"}
    assert stored(out) == before


def test_an_outcome_moves_with_the_rate(finished: tuple[Path, Plan]) -> None:
    whole: Any = read_rows(finished[0]).query("method == 'uchida'").set_index("cell_key")
    rare: Any = assay.read(finished[0], rules=assay.Rules(alpha=1e-12)).rows.set_index("cell_key")
    assert whole.detected_after.any()
    assert not rare.detected_after[whole.index].any(), "32 bits are no evidence at one false claim in 10^12"
    for key, row in whole.iterrows():
        assert rare.p_after[key] == row.p_after
        lost = {"retained": "removed", "failed": "useless"}
        assert rare.outcome[key] == lost.get(row.outcome, row.outcome)
