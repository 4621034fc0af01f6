"""`import assay`: a class of the script's own, a grid as a dict, rows and tables; with Ray, and inline."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import assay

ROOT = Path(__file__).parents[2]
GRID: dict[str, Any] = {
    "tasks": ["digits-cnn-mini"],
    "methods": ["clean", {"uchida": {"allow_weak": True, "bits": 16}}],
    "attacks": ["none", "overwrite"],
    "profile": "smoke",
    "train": {"samples": 200, "epochs": 1, "test_samples": 50},
    "calibration": {"references": 1, "keys": 10},
}
NOWHERE = "http://127.0.0.1:9"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_runs_on_ray_as_a_script(tmp_path: Path) -> None:
    given = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "examples" / "notebook.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=given, capture_output=True, text=True, check=False, timeout=500
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["method", "attack", "status", "outcome", "score_after"] in lines
    marked = [line for line in lines if line[:2] in (["flat", "none"], ["flat", "prune"])]
    assert [line[2] for line in marked] == ["ok", "ok"]
    assert "Methods x attacks on digits-cnn-mini" in done.stdout
    (out,) = tmp_path.glob("assay-*/rows.parquet")
    rows = assay.read(out.parent).rows
    assert set(rows.status) == {"ok"}
    assert set(rows.method_source.str.len()) == {0, 16}, "the class's own code is part of what it is"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> assay.Sweep:
    out = tmp_path_factory.mktemp("notebook")
    return assay.run(GRID, out, settings={"seeds": [3]}, executor="inline", mlflow_uri=NOWHERE)


def test_a_sweep_gives_rows_curves_nulls_tables_and_claims(sweep: assay.Sweep) -> None:
    assert sweep.report is not None
    assert (sweep.report.cells, sweep.report.failed, sweep.report.not_applicable) == (4, 0, 1)
    assert set(sweep.rows.victim_seed) == {3}, "settings override the grid"
    assert set(sweep.curves.stage) >= {"clean", "embed"}
    assert sweep.nulls.null_key.nunique() == 1
    assert "uchida" in sweep.table()
    assert sweep.table("embedding", fmt="csv").startswith("task,")
    assert {"claim", "verdict"} & set(sweep.claims())


def test_running_again_in_another_thread_executes_nothing(sweep: assay.Sweep) -> None:
    """A server's handler or a notebook's widget is no main thread; Ray would need one."""
    found: list[assay.Sweep] = []

    def again() -> None:
        found.append(assay.run(GRID, sweep.outs[0], settings={"seeds": [3]}, mlflow_uri=NOWHERE))

    thread = threading.Thread(target=again)
    thread.start()
    thread.join()
    (second,) = found
    assert second.report is not None
    assert (second.report.executed, second.report.cached) == (0, second.report.stages)


def test_what_is_read_is_decided_by_the_rules_asked_for(sweep: assay.Sweep) -> None:
    rare = assay.read(*sweep.outs, rules=assay.Rules(alpha=1e-9))
    assert rare.report is None
    marked = rare.rows.method == "uchida"
    assert not rare.rows.detected_after[marked].fillna(False).any(), "16 bits are no evidence at 1e-9"
    again = assay.decide(sweep.rows, assay.Rules(alpha=1e-9), sweep.nulls)
    assert again.metrics.tolist() == rare.rows.metrics.tolist()


def test_a_mistake_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(assay.BadInput, match="unknown method 'uchido'"):
        assay.run({**GRID, "methods": ["uchido"]}, tmp_path / "out")
    with pytest.raises(assay.BadInput, match="did you mean 'epochs'"):
        assay.run(GRID, tmp_path / "out", settings={"train.epoch": 1})
    assert not (tmp_path / "out").exists()
