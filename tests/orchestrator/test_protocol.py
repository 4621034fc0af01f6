"""The protocol end to end, in process: what rows log of calibration, checkpoints, scratch models, verifier errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from inline_sweep import executed

from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.store import Store
from assay.results.decisions import sok_norm
from assay.results.parquet import read_curves, read_nulls, read_rows
from assay.tasks.calibration import PROCESSES

GRID: dict[str, Any] = {
    "name": "protocol",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"uchida": {"allow_weak": True, "bits": 32}}],
    "attacks": [
        "none",
        {"fine-tune": {"epochs": 3}},
        "overwrite",
        {"cross-verify": {"owners": 2}},
        {"false-claim": {"claims": 60, "accused": 1, "surrogate_epochs": 1}},
    ],
    "seeds": [1],
    "profile": "smoke",
    "train": {
        "samples": 500,
        "epochs": 4,
        "test_samples": 100,
        "references": 2,
        "processed": 1,
        "calibration_keys": 20,
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    out, plan, report = executed(GRID, tmp_path_factory.mktemp("protocol"))
    assert (report.failed, report.blocked, report.cells) == (0, 0, 5)
    return out, plan


@pytest.fixture(scope="module")
def rows(finished: tuple[Path, Plan]) -> Any:
    return read_rows(finished[0]).set_index("attack")


def records(finished: tuple[Path, Plan], kind: str) -> list[dict[str, Any]]:
    out, plan = finished
    store = Store(out / "store")
    return [store.record(stage.key) for stage in plan.stages.values() if stage.kind == kind]


def test_thresholds_are_those_of_the_shared_calibration(finished: tuple[Path, Plan], rows: Any) -> None:
    (calibration,) = records(finished, "calibrate")
    null = calibration["result"]
    assert (len(null["scores"]), {len(model) for model in null["scores"]}, null["trials"]) == (2 + 3, {20}, 32)
    most = max(score for model in null["scores"] for score in model)
    for metrics in rows.metrics:
        assert {"null_mean", "null_key_sd", "null_model_sd"} <= metrics.keys()
        assert most < metrics["threshold_strict"] <= metrics["threshold_rare"]
        assert metrics["threshold_strict"] == rows.loc["none"].metrics["threshold_strict"]


def test_a_null_is_a_view_of_its_record(finished: tuple[Path, Plan], rows: Any) -> None:
    (calibration,) = records(finished, "calibrate")
    points = read_nulls(finished[0])
    assert set(points.null_key) == set(rows.null_key)
    for place, model in enumerate(calibration["result"]["models"]):
        own = points[points.place == place].sort_values("key")
        assert set(own.model) == {model}
        assert list(own.score) == calibration["result"]["scores"][place]
        assert list(own.hits) == calibration["result"]["hits"][place]


def test_thresholds_are_calibrated_on_processed_models_too(finished: tuple[Path, Plan]) -> None:
    out, plan = finished
    store = Store(out / "store")
    (calibration,) = (stage for stage in plan.stages.values() if stage.kind == "calibrate")
    roles = calibration.identity["unmarked"]
    assert [role for role in roles if "|" in role] == [f"reference-0|{how}" for how in PROCESSES]
    plain = store.model(roles["reference-0"])
    changed = {how: store.model(roles[f"reference-0|{how}"]) for how in PROCESSES}
    for model in changed.values():
        assert model.keys() == plain.keys()
        assert any(not torch.equal(model[name], plain[name]) for name in plain)
    zeros = sum(int((value == 0).sum()) for value in changed["prune"].values())
    assert zeros > 0.5 * sum(value.numel() for value in plain.values())
    # Whose model was attacked, and how, is in the key; the attacker held no sample of the owner's.
    identity = plan.stages[roles["reference-0|distill"]].identity
    assert identity["processed"] == roles["reference-0"]
    assert identity["attack"]["config"]["split"] == "disjoint20"


def test_decisions_before_the_attack_follow_from_score_threshold_and_p_value(rows: Any) -> None:
    row = rows.loc["none"]
    expected = row.score_before >= row.metrics["threshold_strict"] and row.p_before <= 1e-3
    assert bool(row.detected_before) == expected
    assert bool(row.metrics["clean_strict"]) is False


def test_scores_are_logged_raw_and_rescaled(rows: Any) -> None:
    for _, row in rows.iterrows():
        assert row.metrics["score_chance"] == pytest.approx(max((row.score_after - row.chance) / (1 - row.chance), 0))
        assert row.metrics["score_sok"] == sok_norm(row.score_after, row.metrics["threshold_sok"])


def test_every_row_has_its_costs(rows: Any) -> None:
    counted = ["wall_s", "device_s", "forward_samples", "backward_samples", "queries", "unique_samples", "cost_share"]
    assert (rows[counted] >= 0).all(axis=None)
    assert (rows.peak_mem_mb > 1).all()
    trained = rows.index.isin(["fine-tune", "overwrite", "false-claim"])
    assert (rows.unique_samples[trained] > 50).all()
    assert (rows.unique_samples[~trained] == 0).all()


def test_an_attack_that_trains_is_compared_with_its_data_alone(rows: Any) -> None:
    for attack in ("fine-tune", "overwrite"):
        metrics, after = rows.loc[attack].metrics, rows.loc[attack].main_after
        assert metrics["pointless"] == float(after <= metrics["main_scratch"])
        assert 0 < metrics["main_held_out"] <= 1
        assert metrics["data_share"] < 0.5
    for attack in ("none", "cross-verify", "false-claim"):
        assert "pointless" not in rows.loc[attack].metrics


def test_other_checkpoints_come_from_the_curve(finished: tuple[Path, Plan], rows: Any) -> None:
    row = rows.loc["fine-tune"]
    curve = read_curves(finished[0]).query("stage_key == @row.attack_key and curve == 'attack'")
    points: Any = curve.pivot_table(index="step", columns="metric", values="value")
    assert list(points.index) == [1, 2, 3]
    assert row.metrics["last_main"] == points.main.iloc[-1]
    assert row.metrics["test_best_main"] == points.main.max()
    assert row.metrics["test_best_score"] == points.score.loc[points.main.idxmax()]


def test_a_rival_claim_is_logged_with_what_it_leads_to(rows: Any) -> None:
    row = rows.loc["overwrite"]
    named = [name for name in row.metrics if name.startswith("ambiguity_")]
    expected = {
        (True, True): "piracy", (False, True): "takeover", (False, False): "corruption", (True, False): "none",
    }[bool(row.detected_after), bool(row.rival_verified)]  # fmt: skip
    assert named == [f"ambiguity_{expected}"]
    assert row.metrics["success"] == float(row.rival_verified and row.main_before - row.main_after <= 0.05)


def test_the_diagonal_of_the_matrix_is_the_score_alone(finished: tuple[Path, Plan], rows: Any) -> None:
    # The only peer of seed 1 is seed 0, which has no cell of its own.
    out, plan = finished
    stage = plan.stages[rows.loc["cross-verify"].attack_key]
    alone = [Store(out / "store").record(key)["result"]["reading"]["score"] for key in stage.identity["peers"]]
    curve = read_curves(out).query("stage_key == @stage.key and curve == 'cross-verify'")
    matrix = curve.pivot_table(index="metric", columns="step", values="value")
    assert [matrix.loc[f"key-{i}", i] for i in range(2)] == alone
    assert rows.loc["cross-verify"].score_before == alone[1]
    metrics = rows.loc["cross-verify"].metrics
    assert metrics["identified"] == pytest.approx(sum(alone) / 2)
    assert metrics["misidentified"] < metrics["identified"]
    assert 0 <= metrics["unmarked"] <= 1


def test_false_claims_are_counted_on_the_victim_unmarked_models_and_heirs(rows: Any) -> None:
    metrics = rows.loc["false-claim"].metrics
    assert metrics["claims"] == 60
    for group in ("marked", "unmarked", "surrogate"):
        hits, rate = metrics[f"false_strict_{group}"], metrics[f"false_strict_{group}_rate"]
        trials = 60 * (2 if group == "surrogate" else 1)
        assert rate == hits / trials <= 0.05, "a claim in a thousand may verify by chance"
        assert rate < metrics[f"false_strict_{group}_upper"]
        assert hits == 0 or metrics[f"best_claim_{group}"] >= metrics["threshold_strict"]


def test_the_owners_key_verifies_where_the_claims_do_not(rows: Any) -> None:
    assert rows.loc["false-claim"].metrics["best_claim_marked"] < rows.loc["false-claim"].score_after
