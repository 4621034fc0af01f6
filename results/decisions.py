"""What readings mean, given a null and rules: readings are stored, decisions are derived.

`decided` derives them when a row is built, `redecide` again from Parquet alone, under any rules. Nothing here measures,
trains or knows a method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from assay.results.errors import ResultsError
from assay.results.nulls import Null, null_points, nulls_of
from assay.results.rules import (
    DEFAULT,
    Decision,
    OutcomeClass,
    Rules,
    ambiguity,
    chance_norm,
    classify,
    decide,
    number,
    sok_norm,
    succeeded,
    thresholds,
)
from assay.results.schema import DERIVED_COLUMNS
from assay.results.thresholds import Thresholds

__all__ = [
    "DEFAULT", "DERIVED_METRICS", "Decision", "Null", "OutcomeClass", "Rules", "Thresholds", "ambiguity",
    "chance_norm", "classify", "decide", "decided", "null_points", "nulls_of", "redecide", "sok_norm", "succeeded",
    "thresholds",
]  # fmt: skip

DERIVED_METRICS: Final = frozenset(
    {
        *("threshold_paper", "threshold_sok", "threshold_strict", "threshold_rare"),
        *("clean_score", "clean_p_value", "clean_paper", "clean_sok", "clean_strict", "before_paper", "before_sok"),
        *("rival_paper", "rival_sok", *(f"ambiguity_{name}" for name in ("piracy", "takeover", "corruption", "none"))),
        *("score_sok", "score_chance", "success", "pointless", "detected_as_left"),
        *("beside_score", "beside_p_value", "beside_strict", "null_mean", "null_key_sd", "null_model_sd"),
    }
)
"""Entries of a row's `metrics` that `decided` computes; all others were measured."""

# Counted by verification attacks while they ran, at the default thresholds; other rules cannot count them anew.
_COUNTED: Final = re.compile(r"false_(paper|sok|strict)_.+|(identified|misidentified|unmarked)_strict")


def decided(row: Mapping[str, Any], null: Null | None, rules: Rules = DEFAULT) -> dict[str, Any]:
    """Return what the readings of a row mean.

    Args:
        row: `kind`, `family`, `main_before`, `main_after`, `readings` and `metrics` as `schema.ROW` says. A cell that
            did not finish may lack the reading `after`; then only the figures of the reading `before` are filled.
        null: the null of the row's `null_key`; None if the method has none. Thresholds are computed once for each
            object, so rows of one null should share it.
        rules: the false-claim rate and the largest loss.

    Returns:
        All of `schema.DERIVED_COLUMNS`, and `metrics`: the row's own with those of `DERIVED_METRICS` made anew.

    Raises:
        ResultsError: the readings hold `after` without `before` and `clean`.
    """
    readings: Mapping[str, Mapping[str, Any]] = row["readings"] or {}
    measured = {name: value for name, value in row["metrics"].items() if name not in DERIVED_METRICS}
    found: dict[str, Any] = {**dict.fromkeys(DERIVED_COLUMNS), "metrics": measured}
    if before := readings.get("before"):
        found |= {"score_before": _seen(before, "score"), "p_before": _seen(before, "p_value")}
        found["chance"] = _seen(before, "chance")
    if (after := readings.get("after")) is None:
        return found
    if before is None or "clean" not in readings:
        raise ResultsError(f"cell {row.get('cell_key')}: a reading 'after' needs 'before' and 'clean' beside it")
    limits = thresholds(row["family"], null, readings["clean"], rules)
    decisions = {name: decide(reading, limits, rules) for name, reading in readings.items()}
    found |= {"score_after": _seen(after, "score"), "p_after": _seen(after, "p_value")}
    found |= {"detected_before": decisions["before"].strict, "detected_after": decisions["after"].strict}
    found |= {"verdict_paper": decisions["after"].paper, "verdict_sok": decisions["after"].sok}
    if rival := readings.get("rival"):
        found |= {"rival_score": _seen(rival, "score"), "rival_p": _seen(rival, "p_value")}
        found["rival_verified"] = decisions["rival"].strict
    found["outcome"], figures = _worth(row, decisions, limits, rules)
    figures |= {f"threshold_{name}": getattr(limits, name) for name in ("paper", "sok", "strict", "rare")}
    figures |= _figures(readings, decisions)
    if null is not None:
        figures |= {f"null_{name}": value for name, value in null.spread().items()}
    measured |= {name: float(value) for name, value in figures.items() if value is not None}
    return found


def _worth(
    row: Mapping[str, Any], decisions: Mapping[str, Decision], limits: Thresholds, rules: Rules
) -> tuple[OutcomeClass | None, dict[str, float | None]]:
    """Return the outcome class, and figures of what the attack was worth."""
    metrics, before, after = row["metrics"], row["readings"]["before"], row["readings"]["after"]
    main_before, main_after = row["main_before"], row["main_after"]
    figures: dict[str, float | None] = {}
    if "main_scratch" in metrics:
        figures["pointless"] = main_after <= metrics["main_scratch"]
    owner, rival = bool(decisions["after"].strict), decisions["rival"].strict if "rival" in decisions else None
    if rival is not None and limits.decides:
        figures[f"ambiguity_{ambiguity(owner, rival)}"] = 1.0
    if not before["applicable"] or not limits.decides:
        return None, figures
    if "target_acc" in metrics:  # worth what it is on its own task, beside the same transfer of an unmarked model
        main_after = metrics["target_acc"]
        main_before = metrics.get("target_acc_unmarked", main_after)
    score, chance = (number(after[name]) if after["applicable"] else 0.0 for name in ("score", "chance"))
    figures |= {"score_sok": sok_norm(score, limits.sok), "score_chance": chance_norm(score, chance)}
    figures["success"] = succeeded(row["kind"], main_before, main_after, owner, rival, rules)
    return classify(main_before, main_after, owner, rules), figures


def _figures(readings: Mapping[str, Mapping[str, Any]], decisions: Mapping[str, Decision]) -> dict[str, float | None]:
    """Return the figures of the readings beside the surrogate's, by their names in `metrics`."""
    found: dict[str, float | None] = {}
    if readings["clean"]["applicable"]:
        found |= {f"clean_{name}": readings["clean"][name] for name in ("score", "p_value")}
        found |= {f"clean_{name}": made for name, made in decisions["clean"]._asdict().items()}
        found |= {f"before_{name}": getattr(decisions["before"], name) for name in ("paper", "sok")}
    if "rival" in readings:
        found |= {f"rival_{name}": getattr(decisions["rival"], name) for name in ("paper", "sok")}
    if "as_left" in readings:
        found["detected_as_left"] = decisions["as_left"].strict
    if "beside" in readings and readings["beside"]["applicable"]:
        found |= {f"beside_{name}": readings["beside"][name] for name in ("score", "p_value")}
        found["beside_strict"] = decisions["beside"].strict
    return found


def _seen(reading: Mapping[str, Any], name: str) -> Any:
    """A figure of a reading; None where the mark cannot be read at all, so that no number stands in its place."""
    return reading[name] if reading["applicable"] else None


# --- tables of rows ----------------------------------------------------------------------------------------------


def redecide(rows: pd.DataFrame, nulls: pd.DataFrame, rules: Rules = DEFAULT) -> pd.DataFrame:
    """Return the rows with everything that was decided decided anew; under the rules they were decided by, equal bits.

    Figures that verification attacks counted at the default false-claim rate are left out under another one.

    Args:
        rows: as returned by `parquet.read_rows`, of one folder or several.
        nulls: as returned by `parquet.read_nulls`, of the same folders.
        rules: the false-claim rate and the largest loss.

    Raises:
        ResultsError: a finished row has no readings, or its null is missing.
    """
    known, done = nulls_of(nulls), rows["status"] == "ok"
    bare = done & rows["readings"].isna()
    if bare.any():
        raise ResultsError(
            f"{_cells(rows[bare])}: no readings, so nothing can be decided anew; an older assay wrote them: "
            "run the grid again into the same folder"
        )
    lost = done & rows["null_key"].notna() & ~rows["null_key"].isin(list(known))
    if lost.any():
        raise ResultsError(
            f"{_cells(rows[lost])}: null {rows['null_key'][lost].iloc[0]} is not in nulls.parquet; "
            "read the nulls of all folders that the rows come from, or run the grid again into the same folder"
        )
    names = ["cell_key", "kind", "family", "null_key", "main_before", "main_after", "readings", "metrics"]
    made: list[dict[str, Any] | None] = []
    for values in rows[names].itertuples(index=False, name=None):
        row = dict(zip(names, values, strict=True))
        # A cell that did not finish has decided nothing; what is known of its victim stays.
        made.append(_anew(row, known.get(row["null_key"]), rules) if isinstance(row["readings"], dict) else None)
    changed = {
        name: [old if new is None else new[name] for old, new in zip(rows[name], made, strict=True)]
        for name in (*DERIVED_COLUMNS, "metrics")
    }
    return rows.assign(**{name: pd.Series(new, dtype=rows[name].dtype).array for name, new in changed.items()})


def _anew(row: Mapping[str, Any], null: Null | None, rules: Rules) -> dict[str, Any]:
    found = decided(row, null, rules)
    if rules.alpha != DEFAULT.alpha:
        found["metrics"] = {name: value for name, value in found["metrics"].items() if not _COUNTED.fullmatch(name)}
    return found


def _cells(rows: pd.DataFrame) -> str:
    first, count = rows["cell_key"].iloc[0], len(rows)
    return f"cell {first}" if count == 1 else f"{count} cells ({first}, …)"
