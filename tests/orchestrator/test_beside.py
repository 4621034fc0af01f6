"""`beside_unmarked`: the owner's reading of what the same attack leaves of an unmarked model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from inline_sweep import executed, planned

from assay.results.parquet import read_rows

GRID: dict[str, Any] = {
    "name": "beside",
    "tasks": ["digits-cnn-mini"],
    "methods": ["clean", {"usp": {"allow_weak": True}}],
    "attacks": [
        {"prune": {"ratio": 0.5}},
        {"prune": {"ratio": [0.0, 0.5], "beside_unmarked": True}},
        {"distill": {"epochs": 1}},
        {"distill": {"epochs": 1, "beside_unmarked": True}},
    ],
    "profile": "smoke",
    "train": {"samples": 500, "epochs": 2, "test_samples": 100, "references": 2, "calibration_keys": 20},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool, bool], dict[Any, Any]]:
    out, _, _ = executed(GRID, tmp_path_factory.mktemp("beside"))
    found = read_rows(out).to_dict("records")
    assert {row["status"] for row in found} == {"ok"}
    configs = [json.loads(row["attack_config"]) for row in found]
    return {
        (row["method"], row["attack"], config["beside_unmarked"], config.get("ratio") == 0): row
        for row, config in zip(found, configs, strict=True)
    }


def test_it_does_to_the_unmarked_model_what_the_attack_does_to_a_marked_one(rows: Any) -> None:
    for attack in ("prune", "distill"):
        own, unmarked = rows["usp", attack, True, False], rows["clean", attack, False, False]
        assert own["metrics"]["beside_main"] == unmarked["main_after"]
        assert 0 <= own["metrics"]["beside_det_rate"] <= 1


def test_an_attack_that_changes_nothing_leaves_the_reading_on_the_unmarked_model(rows: Any) -> None:
    metrics = rows["usp", "prune", True, True]["metrics"]
    for name in ("score", "det_rate"):
        assert metrics[f"beside_{name}"] == metrics[f"clean_{name}"]
    assert metrics["clean_score"] == pytest.approx((metrics["clean_det_rate"] + metrics["before_tnr"]) / 2)


def test_it_moves_nothing_else(rows: Any) -> None:
    for attack in ("prune", "distill"):
        with_it, without = rows["usp", attack, True, False], rows["usp", attack, False, False]
        more = {name for name in with_it["metrics"] if name.startswith("beside_")}
        assert {k: v for k, v in with_it["metrics"].items() if k not in more} == without["metrics"]
        for name in ("main_after", "score_after", "forward_samples", "backward_samples", "queries"):
            assert with_it[name] == without[name]
        assert not any(name.startswith("beside_") for name in rows["clean", attack, True, False]["metrics"])


def test_only_where_it_is_asked_for_the_unmarked_model_is_a_parent(tmp_path: Path) -> None:
    _, plan = planned(GRID, tmp_path)
    attacks = [stage for stage in plan.stages.values() if stage.kind == "attack"]
    for stage in attacks:
        asked = stage.identity["attack"]["config"]["beside_unmarked"] and stage.identity["method"]["key"] != "clean"
        assert ("beside" in stage.identity) == asked
        if asked:
            assert stage.identity["beside"] == plan.stages[stage.identity["embed"]].identity["unmarked"]["clean"]
            assert stage.identity["beside"] in stage.parents
