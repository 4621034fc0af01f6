"""Transfer end to end, in process: whose network the owner reads, and what the surrogate is worth on its own task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from inline_sweep import executed

from assay.orchestrator.store import Store
from assay.results.parquet import read_rows

pytestmark = pytest.mark.slow

LOOK = ["auto", "none", "original_head", "retrain_head"]
GRID: dict[str, Any] = {
    "name": "adapted",
    "tasks": ["digits-cnn-mini"],
    "methods": [
        "clean",
        {"uchida": {"allow_weak": True, "bits": 32}},
        {"adi": {"allow_weak": True}},
    ],
    "attacks": [
        {"transfer": {"epochs": 3, "lr": 0.02, "momentum": 0.9, "recovery": LOOK}},
        {"transfer": {"epochs": 1, "head": "reuse"}},
        {"extract": {"budget": 1.0, "epochs": 2}},
    ],
    "seeds": [1],
    "profile": "smoke",
    "train": {"samples": 500, "epochs": 4, "test_samples": 100, "references": 2, "calibration_keys": 20},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, Any]:
    out, plan, report = executed(GRID, tmp_path_factory.mktemp("adapted"))
    assert (report.failed, report.blocked, report.not_applicable, report.cells) == (0, 0, 0, 18)
    rows = read_rows(out)
    settings = pd.DataFrame([json.loads(config) for config in rows.attack_config])
    return out, rows.assign(recovery=settings.get("recovery"), head=settings.get("head")), plan


def result(finished: Any, row: Any) -> dict[str, Any]:
    found: dict[str, Any] = Store(finished[0] / "store").record(row.attack_key)["result"]
    return found


def transferred(finished: Any, method: str) -> Any:
    rows = finished[1]
    return rows[(rows.attack == "transfer") & (rows.method == method) & (rows["head"] == "replace")]


def test_every_transfer_is_judged_beside_that_of_the_unmarked_twin(finished: Any) -> None:
    twins = transferred(finished, "clean").set_index("recovery")
    for row in transferred(finished, "adi").itertuples():
        found = result(finished, row)
        twin = result(finished, twins.loc[row.recovery])
        assert found["report"]["target_acc_unmarked"] == twin["report"]["target_acc"]
        kept = found["report"]["target_acc_unmarked"] - found["report"]["target_acc"] <= 0.05 + 1e-9
        classes = {
            (True, False): "removed",
            (True, True): "retained",
            (False, False): "useless",
            (False, True): "failed",
        }
        assert row.outcome == classes[kept, bool(row.detected_after)]
        assert "pointless" not in row.metrics
    assert "target_acc_unmarked" not in result(finished, twins.loc["auto"])["report"]


def test_the_twins_are_cells_of_the_same_plan_and_run_once(finished: Any) -> None:
    stages = finished[2].stages.values()
    kinds = [stage for stage in stages if stage.kind == "attack"]
    assert len(kinds) == 18
    assert all(stage.identity["twin"] in stage.parents for stage in kinds if "twin" in stage.identity)


def test_weights_are_read_from_the_surrogate_itself_and_answers_under_the_old_head(finished: Any) -> None:
    same = {method: transferred(finished, method).set_index("recovery") for method in ("uchida", "adi")}
    readings = {
        method: {look: result(finished, rows.loc[look])["readings"]["after"] for look in LOOK}
        for method, rows in same.items()
    }
    assert readings["uchida"]["auto"] == readings["uchida"]["none"]
    assert readings["adi"]["auto"] == readings["adi"]["original_head"]
    assert not readings["adi"]["none"]["applicable"]
    assert "another task's classes" in readings["adi"]["none"]["reason"]


def test_figures_on_the_owners_task_come_from_a_network_with_its_classes(finished: Any) -> None:
    rows = transferred(finished, "adi").set_index("recovery")
    mains = {look: result(finished, rows.loc[look])["main"] for look in LOOK}
    assert mains["none"] == mains["original_head"]
    assert mains["retrain_head"] != mains["original_head"]
    assert mains["original_head"] > 0.2


def test_extraction_beyond_the_attackers_images_takes_what_nobody_holds(finished: Any) -> None:
    rows = finished[1]
    for row in rows[rows.attack == "extract"].itertuples():
        found = result(finished, row)
        assert found["report"]["queries"] == found["report"]["queries_wanted"] == 300
        assert found["compared"]["query_share"] == pytest.approx(1.0)
