"""Curves: which points belong together, where they start, what lies on the axis."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from assay.results.curves import COLUMNS, over_parameter, over_steps


def row(key: str, attack: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "cell_key": key, "attack_key": f"stage-{key}", "status": "ok", "task": "digits-lenet5", "method": "adi",
        "method_config": "{}", "attack": attack, "attack_config": json.dumps(config), "victim_seed": 0,
        "attack_seed": 0, "main_before": 0.9, "score_before": 1.0, "main_after": 0.8, "score_after": 0.4,
        "rival_score": None, **more,
    }  # fmt: skip


def points(key: str, *values: tuple[int, str, float]) -> list[dict[str, Any]]:
    stage = {"stage_key": f"stage-{key}", "stage": "attack", "curve": "attack"}
    return [{**stage, "step": step, "metric": metric, "value": value} for step, metric, value in values]


def test_steps_start_at_the_victim_and_keep_their_series() -> None:
    rows = pd.DataFrame([
        row("a", "fine-tune", {"lr": 0.1, "epochs": 2}), row("b", "fine-tune", {"lr": 0.01, "epochs": 2}),
        row("c", "fine-tune", {"lr": 0.01, "epochs": 2}, status="failed"), row("d", "prune", {"ratio": 0.5}),
    ])  # fmt: skip
    measured = [
        *points("a", (1, "main", 0.85), (1, "score", 0.7), (2, "main", 0.86), (2, "score", 0.5)),
        *points("b", (1, "main", 0.88)),
        *points("c", (1, "main", 0.1)),
        {"stage_key": "stage-a", "stage": "attack", "curve": "train", "step": 1, "metric": "task", "value": 3.0},
    ]
    found = over_steps(rows, pd.DataFrame(measured))
    assert tuple(found.columns) == COLUMNS
    assert set(found.series) == {"fine-tune lr=0.1", "fine-tune lr=0.01"}
    first = found[found.cell_key == "a"]
    assert list(zip(first.x, first.main, first.score, strict=True)) == [(0, 0.9, 1.0), (1, 0.85, 0.7), (2, 0.86, 0.5)]
    second = found[found.cell_key == "b"]
    assert list(second.x) == [0, 1]
    assert second.score.isna().tolist() == [False, True], "what was not measured is no number"
    assert set(found.cell_key) == {"a", "b"}


def test_a_parameter_becomes_the_axis_and_the_others_the_series() -> None:
    rows = pd.DataFrame([
        row(f"{scope}-{ratio}", "prune", {"ratio": ratio, "scope": scope}, main_after=1 - ratio)
        for ratio in (0.8, 0.2) for scope in ("global", "layer")
    ] + [row("other", "distill", {"ratio": 0.5})])  # fmt: skip
    found = over_parameter(rows, "prune", "ratio")
    assert list(found.x) == [0.2, 0.8, 0.2, 0.8]
    assert list(found.series) == ["prune scope=global"] * 2 + ["prune scope=layer"] * 2
    assert found.main.round(6).tolist() == [0.8, 0.2, 0.8, 0.2]
    assert set(found.x_name) == {"ratio"}


def test_nothing_to_plot_is_an_empty_frame() -> None:
    rows = pd.DataFrame([row("a", "prune", {"scope": "global"})])
    assert over_parameter(rows, "prune", "ratio").empty
    none = pd.DataFrame(columns=["stage_key", "stage", "curve", "step", "metric", "value"])
    assert tuple(over_steps(rows, none).columns) == COLUMNS
