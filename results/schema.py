"""The two tables of a sweep: one row per cell, and curves in long form. Rates are fractions in [0, 1]."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

SCHEMA_VERSION: Final = 2
ROWS_FILE: Final = "rows.parquet"
CURVES_FILE: Final = "curves.parquet"

STATUSES: Final = ("ok", "failed", "blocked", "not_applicable")
OUTCOMES: Final = ("removed", "retained", "useless", "failed")
STAGES: Final = ("clean", "calibrate", "embed", "attack")

_TEXT = pa.string()
_RATE = pa.float64()
_FLAG = pa.bool_()
_COUNT = pa.int64()


def _needed(name: str, kind: pa.DataType) -> pa.Field[Any]:
    return pa.field(name, kind, nullable=False)


def _metadata(table: str) -> dict[bytes | str, bytes | str]:
    return {"table": table, "schema_version": str(SCHEMA_VERSION)}


ROW: Final = pa.schema(
    [
        # Who: the content keys of the cell and of the stages behind it; a stage that does not exist is null.
        _needed("cell_key", _TEXT),
        pa.field("clean_key", _TEXT),
        pa.field("embed_key", _TEXT),
        pa.field("attack_key", _TEXT),
        # What was asked for.
        _needed("task", _TEXT),
        _needed("dataset", _TEXT),
        _needed("model", _TEXT),
        _needed("profile", _TEXT),
        _needed("split", _TEXT),
        _needed("method", _TEXT),
        _needed("method_config", _TEXT),  # canonical JSON, defaults included
        _needed("attack", _TEXT),
        _needed("attack_config", _TEXT),
        _needed("victim_seed", _COUNT),
        _needed("attack_seed", _COUNT),
        # What became of it.
        _needed("status", _TEXT),  # one of STATUSES
        _needed("reason", _TEXT),  # empty for `ok`
        # Accuracy on the main task: unmarked model, marked victim, surrogate.
        pa.field("main_clean", _RATE),
        pa.field("main_before", _RATE),
        pa.field("main_after", _RATE),
        # The owner's mark, in the method's own metric; `chance` is what an unrelated model scores.
        pa.field("score_before", _RATE),
        pa.field("score_after", _RATE),
        pa.field("chance", _RATE),
        pa.field("p_before", _RATE),
        pa.field("p_after", _RATE),
        pa.field("detected_before", _FLAG),  # at `strict`, as is `detected_after`
        pa.field("detected_after", _FLAG),
        pa.field("verdict_paper", _FLAG),  # after the attack, by the paper's own threshold
        pa.field("verdict_sok", _FLAG),  # after the attack, by the procedure of Lukas et al. (S&P 2022)
        pa.field("outcome", _TEXT),  # one of OUTCOMES, at `strict`
        # A rival claim left by an ambiguity attack.
        pa.field("rival_score", _RATE),
        pa.field("rival_p", _RATE),
        pa.field("rival_verified", _FLAG),
        # What it cost.
        pa.field("wall_s", pa.float64()),
        pa.field("device_s", pa.float64()),
        pa.field("forward_samples", _COUNT),
        pa.field("backward_samples", _COUNT),
        pa.field("queries", _COUNT),
        pa.field("unique_samples", _COUNT),  # different samples that the attack trained on, validated on or asked with
        pa.field("peak_mem_mb", pa.float64()),  # MiB: allocated on the GPU, or resident set of the process
        pa.field("cost_share", pa.float64()),  # device seconds of the attack over those of training an unmarked model
        pa.field("embed_cost_share", pa.float64()),  # device seconds of marking the victim over the same
        pa.field("environment", _TEXT),  # short hash; the environment itself lies in sweep.json
        pa.field("started", _TEXT),  # ISO 8601, UTC
        pa.field("ended", _TEXT),
        _needed("metrics", pa.map_(pa.string(), pa.float64())),  # further figures by name, keys sorted
    ],
    metadata=_metadata("rows"),
)

TIMING_COLUMNS: Final = (
    "wall_s", "device_s", "peak_mem_mb", "cost_share", "embed_cost_share", "environment", "started", "ended",
)  # fmt: skip
"""The columns that may differ between two runs of the same cell; every other one is bitwise the same."""

CURVE: Final = pa.schema(
    [
        _needed("stage_key", _TEXT),
        _needed("stage", _TEXT),  # one of STAGES
        _needed("curve", _TEXT),
        _needed("step", _COUNT),
        _needed("metric", _TEXT),
        _needed("value", pa.float64()),
    ],
    metadata=_metadata("curves"),
)
CURVE_ORDER: Final = ("stage_key", "curve", "step", "metric")
"""The order of a curve table; together also its identity."""
