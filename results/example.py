"""Invented rows, for tests and for trying out tables and plots without a sweep."""

from __future__ import annotations

import json
from typing import Any

from assay.results.errors import unknown

Row = dict[str, Any]


def make_row(**changes: Any) -> Row:
    """Return the row of one finished cell with these columns changed.

    Args:
        changes: columns of `schema.ROW`; `method_config` and `attack_config` may also be mappings.
    """
    row: Row = {
        "cell_key": "c" * 16,
        "clean_key": "clean-0",
        "embed_key": "embed-0",
        "attack_key": "attack-0",
        "task": "mnist-mlp-1200x2",
        "dataset": "mnist",
        "model": "mlp-1200x2",
        "profile": "laptop",
        "split": "disjoint20",
        "method": "ingrain",
        "method_config": "{}",
        "attack": "none",
        "attack_config": "{}",
        "victim_seed": 0,
        "attack_seed": 0,
        "status": "ok",
        "reason": "",
        "main_clean": 0.98,
        "main_before": 0.97,
        "main_after": 0.96,
        "score_before": 1.0,
        "score_after": 0.55,
        "chance": 0.1,
        "p_before": 1e-9,
        "p_after": 1e-4,
        "detected_before": True,
        "detected_after": True,
        "verdict_paper": True,
        "verdict_sok": True,
        "outcome": "retained",
        "rival_score": None,
        "rival_p": None,
        "rival_verified": None,
        "wall_s": 1.5,
        "device_s": 1.25,
        "forward_samples": 1000,
        "backward_samples": 500,
        "queries": 0,
        "unique_samples": 400,
        "peak_mem_mb": 512.0,
        "cost_share": 0.1,
        "embed_cost_share": 1.5,
        "environment": "e1",
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:04:06.500+00:00",
        "metrics": {"agreement": 0.9},
    }
    for name in changes:
        if name not in row:
            raise unknown("column", name, row)
    row |= changes
    for name in ("method_config", "attack_config"):
        if not isinstance(row[name], str):
            row[name] = json.dumps(row[name], sort_keys=True)
    return row


def make_failed(
    status: str = "failed", reason: str = "NotEmbedded: score 0.31 is below the gate", **changes: Any
) -> Row:
    """Return the row of a cell that did not run: it has a reason and no figures."""
    empty = [
        *("attack_key", "main_clean", "main_before", "main_after", "score_before", "score_after", "chance", "p_before"),
        *("p_after", "detected_before", "detected_after", "verdict_paper", "verdict_sok", "outcome", "wall_s"),
        *("device_s", "forward_samples", "backward_samples", "queries", "unique_samples"),
        *("peak_mem_mb", "cost_share", "started", "ended"),
        "embed_cost_share",
    ]
    return make_row(**{**dict.fromkeys(empty), "metrics": {}, "status": status, "reason": reason, **changes})
