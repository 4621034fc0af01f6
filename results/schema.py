"""The three tables of a sweep: one row per cell, curves and nulls in long form. Rates are fractions in [0, 1].

A column of the row table is declared once, in `COLUMNS`. The Arrow schema, the empty row, the timing columns, the
columns that `decisions.decided` fills, and the invented rows of `example` derive from that declaration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

import pyarrow as pa

SCHEMA_VERSION: Final = 3
ROWS_FILE: Final = "rows.parquet"
CURVES_FILE: Final = "curves.parquet"
NULLS_FILE: Final = "nulls.parquet"

STATUSES: Final = ("ok", "failed", "blocked", "not_applicable")
OUTCOMES: Final = ("removed", "retained", "useless", "failed")
STAGES: Final = ("clean", "calibrate", "embed", "attack")
FAMILIES: Final = ("bits", "triggers", "detector", "keys", "none")
KINDS: Final = ("removal", "ambiguity", "detection", "verification")

Part = Literal["who", "asked", "became", "measured", "derived", "cost", "metrics"]

_TEXT = pa.string()
_RATE = pa.float64()
_FLAG = pa.bool_()
_COUNT = pa.int64()


def _metadata(table: str) -> dict[bytes | str, bytes | str]:
    return {"table": table, "schema_version": str(SCHEMA_VERSION)}


def _needed(name: str, kind: pa.DataType) -> pa.Field[Any]:
    return pa.field(name, kind, nullable=False)


# --- readings ----------------------------------------------------------------------------------------------------


class Reading(TypedDict):
    """What was measured of one suspect with one secret.

    Attributes:
        score: the paper's own metric, in [0, 1]; higher is more marked.
        chance: what an unrelated model scores on average.
        p_value: probability, under "not marked", of a reading at least as strong.
        hits, trials: matched keys or bits, and of how many; None where the score counts nothing.
        paper_threshold: the paper's own threshold on `score`.
        accepted: whether the paper's own rule accepts the reading.
        applicable: False if the suspect cannot carry the mark at all; then the figures mean nothing.
        reason: why it is not applicable, else empty.
    """

    score: float | None
    chance: float | None
    p_value: float | None
    hits: int | None
    trials: int | None
    paper_threshold: float | None
    accepted: bool
    applicable: bool
    reason: str


READING: Final = pa.struct(
    [
        _needed("name", _TEXT),  # before, clean, after, rival, beside, as_left, …
        pa.field("score", _RATE),
        pa.field("chance", _RATE),
        pa.field("p_value", _RATE),
        pa.field("hits", _COUNT),
        pa.field("trials", _COUNT),
        pa.field("paper_threshold", _RATE),
        _needed("accepted", _FLAG),
        _needed("applicable", _FLAG),
        _needed("reason", _TEXT),
    ]
)


# --- rows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of the row table.

    Attributes:
        name: its name.
        kind: its Arrow type.
        example: its value in an invented row.
        part: what it tells: who the cell is, what was asked for, what became of it, what was measured, what was decided
            from that, what it cost; `metrics` holds measured and derived figures.
        needed: null is refused.
        timing: it may differ between two runs of the same cell; every other column is bitwise the same.
        json: its text is canonical JSON.
        choices: the words allowed, if only some are.
    """

    name: str
    kind: pa.DataType
    example: Any
    part: Part
    needed: bool = False
    timing: bool = False
    json: bool = False
    choices: tuple[str, ...] = ()


def _reading(score: float, p_value: float, accepted: bool) -> Reading:
    return {
        "score": score, "chance": 0.1, "p_value": p_value, "hits": round(100 * score), "trials": 100,
        "paper_threshold": 0.5, "accepted": accepted, "applicable": True, "reason": "",
    }  # fmt: skip


_READINGS = {
    "before": _reading(1.0, 1e-9, True),
    "clean": _reading(0.11, 0.4, False),
    "after": _reading(0.55, 1e-4, True),
}

COLUMNS: Final = (
    # The content keys of the cell and of the stages behind it; a stage that does not exist is null.
    Column("cell_key", _TEXT, "c" * 16, "who", needed=True),
    Column("clean_key", _TEXT, "clean-0", "who"),
    Column("embed_key", _TEXT, "embed-0", "who"),
    Column("attack_key", _TEXT, "attack-0", "who"),
    Column("null_key", _TEXT, "null-0", "who"),  # the `calibrate` stage whose null decides; null if the method has none
    # What was asked for. Columns younger than schema 2 may be null: older files lack them.
    Column("task", _TEXT, "mnist-mlp-1200x2", "asked", needed=True),
    Column("task_config", _TEXT, "{}", "asked", json=True),  # schedule, samples, …; nothing of calibration
    Column("calibration_config", _TEXT, '{"keys":100,"processed":1,"references":5}', "asked", json=True),
    Column("dataset", _TEXT, "mnist", "asked", needed=True),
    Column("model", _TEXT, "mlp-1200x2", "asked", needed=True),
    Column("profile", _TEXT, "laptop", "asked", needed=True),
    Column("split", _TEXT, "disjoint20", "asked", needed=True),
    Column("data", _TEXT, "data-0", "asked"),  # fingerprint of the data set
    Column("numerics", _TEXT, '{"device":"cpu"}', "asked", json=True),
    Column("method", _TEXT, "ingrain", "asked", needed=True),
    Column("method_config", _TEXT, "{}", "asked", needed=True, json=True),  # defaults included
    Column("method_version", _COUNT, 1, "asked"),
    Column("method_source", _TEXT, "", "asked"),  # of a plugin's file the first 16 digits of its SHA-256; else empty
    Column("family", _TEXT, "triggers", "asked", choices=FAMILIES),
    Column("attack", _TEXT, "none", "asked", needed=True),
    Column("attack_config", _TEXT, "{}", "asked", needed=True, json=True),
    Column("attack_version", _COUNT, 1, "asked"),
    Column("attack_source", _TEXT, "", "asked"),
    Column("kind", _TEXT, "removal", "asked", choices=KINDS),
    Column("victim_seed", _COUNT, 0, "asked", needed=True),
    Column("attack_seed", _COUNT, 0, "asked", needed=True),
    Column("status", _TEXT, "ok", "became", needed=True, choices=STATUSES),
    Column("reason", _TEXT, "", "became", needed=True),  # empty for `ok`
    # Accuracy on the main task: unmarked model, marked victim, surrogate.
    Column("main_clean", _RATE, 0.98, "measured"),
    Column("main_before", _RATE, 0.97, "measured"),
    Column("main_after", _RATE, 0.96, "measured"),
    Column("readings", pa.list_(READING), _READINGS, "measured"),  # in Python a dict from name to `Reading`
    # The owner's mark, in the method's own metric; `chance` is what an unrelated model scores.
    Column("score_before", _RATE, 1.0, "derived"),
    Column("score_after", _RATE, 0.55, "derived"),
    Column("chance", _RATE, 0.1, "derived"),
    Column("p_before", _RATE, 1e-9, "derived"),
    Column("p_after", _RATE, 1e-4, "derived"),
    Column("detected_before", _FLAG, True, "derived"),  # at `strict`, as is `detected_after`
    Column("detected_after", _FLAG, True, "derived"),
    Column("verdict_paper", _FLAG, True, "derived"),  # after the attack, by the paper's own rule
    Column("verdict_sok", _FLAG, True, "derived"),  # after the attack, by the procedure of Lukas et al. (S&P 2022)
    Column("outcome", _TEXT, "retained", "derived", choices=OUTCOMES),  # at `strict`
    # A rival claim left by an ambiguity attack.
    Column("rival_score", _RATE, None, "derived"),
    Column("rival_p", _RATE, None, "derived"),
    Column("rival_verified", _FLAG, None, "derived"),
    Column("wall_s", _RATE, 1.5, "cost", timing=True),
    Column("device_s", _RATE, 1.25, "cost", timing=True),
    Column("forward_samples", _COUNT, 1000, "cost"),
    Column("backward_samples", _COUNT, 500, "cost"),
    Column("queries", _COUNT, 0, "cost"),
    # Different samples that the attack trained on, validated on or asked with.
    Column("unique_samples", _COUNT, 400, "cost"),
    Column(
        "peak_mem_mb", _RATE, 512.0, "cost", timing=True
    ),  # MiB: allocated on the GPU, or the process's resident set
    Column("cost_share", _RATE, 0.1, "cost", timing=True),  # device seconds of the attack over those of training
    Column("embed_cost_share", _RATE, 1.5, "cost", timing=True),  # device seconds of marking the victim over the same
    Column("environment", _TEXT, "e1", "cost", timing=True),  # short hash; the environment itself lies in sweep.json
    Column("started", _TEXT, "2026-01-02T03:04:05+00:00", "cost", timing=True),  # ISO 8601, UTC
    Column("ended", _TEXT, "2026-01-02T03:04:06.500+00:00", "cost", timing=True),
    Column("metrics", pa.map_(pa.string(), _RATE), {"agreement": 0.9}, "metrics", needed=True),  # keys sorted
)

ROW: Final = pa.schema(
    [pa.field(column.name, column.kind, nullable=not column.needed) for column in COLUMNS], metadata=_metadata("rows")
)

TIMING_COLUMNS: Final = tuple(column.name for column in COLUMNS if column.timing)
"""The columns that may differ between two runs of the same cell; every other one is bitwise the same."""

DERIVED_COLUMNS: Final = tuple(column.name for column in COLUMNS if column.part == "derived")
"""The columns that `decisions.decided` fills from readings and a null, but for `metrics`."""


def empty_row() -> dict[str, Any]:
    """Return a row of which nothing is known: `metrics` is empty, all else is None.

    Example:
        >>> row = empty_row()
        >>> row["metrics"], row["outcome"], len(row) == len(COLUMNS)
        ({}, None, True)
    """
    return {**dict.fromkeys(ROW.names), "metrics": {}}


# --- curves and nulls --------------------------------------------------------------------------------------------

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

NULL: Final = pa.schema(
    [
        _needed("null_key", _TEXT),
        _needed("method", _TEXT),
        _needed("task", _TEXT),
        _needed("model", _TEXT),  # its role, as reference-0 or reference-0|prune
        _needed("place", _COUNT),  # of the model among the null's: sums depend on their order in the last bit
        _needed("key", _COUNT),
        _needed("score", _RATE),
        _needed("hits", _COUNT),  # of a score that counts nothing, thousandths
        _needed("trials", _COUNT),
    ],
    metadata=_metadata("nulls"),
)
NULL_ORDER: Final = ("null_key", "place", "key")
"""The order of a null table; together also its identity."""
