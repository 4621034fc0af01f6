"""Curves ready to plot: accuracy and score against pruning ratio, fine-tuning trial, distillation or piracy epoch."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd

from assay.results import configs

COLUMNS: Final = (
    "task", "method", "method_config", "attack", "series", "x_name", "x", "main", "score", "rival", "victim_seed",
    "attack_seed", "cell_key",
)  # fmt: skip
_FIGURES: Final = ("main", "score", "rival")


def over_steps(rows: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return what attacks that go step by step (epochs, trials) leave after each step; step 0 is the marked victim.

    Args:
        rows: as returned by `parquet.read_rows`.
        curves: as returned by `parquet.read_curves`; the points of the curve `attack` count.

    Returns:
        One line per point with `COLUMNS`, sorted. `series` names the attack's configuration by what varies on the task;
        a figure that was not measured is NaN.
    """
    done = rows[rows["status"] == "ok"]
    own = curves[(curves["stage"] == "attack") & (curves["curve"] == "attack")]
    wide = own.pivot_table(index=["stage_key", "step"], columns="metric", values="value").reset_index()
    lines = []
    for (_, attack), group in done.groupby(["task", "attack"], sort=True):
        names = configs.varying(group["attack_config"].unique())
        for row in group.to_dict("records"):
            points = wide[wide["stage_key"] == row["attack_key"]]
            if points.empty:
                continue
            base = {**_who(row), "series": configs.label(str(attack), row["attack_config"], names), "x_name": "step"}
            lines.append({**base, "x": 0.0, "main": row["main_before"], "score": row["score_before"]})
            lines += [
                {**base, "x": float(point["step"]), **{name: point[name] for name in _FIGURES if name in point}}
                for point in points.to_dict("records")
            ]
    return _sorted(lines)


def over_parameter(rows: pd.DataFrame, attack: str, parameter: str) -> pd.DataFrame:
    """Return how an attack ends as one of its parameters varies, e.g. `prune` and `ratio`.

    Args:
        rows: as returned by `parquet.read_rows`.
        attack: its key.
        parameter: name of a numeric parameter, nested ones joined by dots; cells without it are left out.

    Returns:
        As `over_steps`, with `x_name` the parameter; `series` names the other parameters that vary.
    """
    chosen = rows[(rows["status"] == "ok") & (rows["attack"] == attack)]
    lines = []
    for _, group in chosen.groupby("task", sort=True):
        names = [name for name in configs.varying(group["attack_config"].unique()) if name != parameter]
        for row in group.to_dict("records"):
            value = configs.flat(row["attack_config"]).get(parameter)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            figures = {"main": row["main_after"], "score": row["score_after"], "rival": row["rival_score"]}
            series = configs.label(attack, row["attack_config"], names)
            lines.append({**_who(row), "series": series, "x_name": parameter, "x": float(value), **figures})
    return _sorted(lines)


def _who(row: dict[Any, Any]) -> dict[str, Any]:
    names = ("task", "method", "method_config", "attack", "victim_seed", "attack_seed", "cell_key")
    return {name: row[name] for name in names}


def _sorted(lines: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    frame = frame.astype(dict.fromkeys(("x", *_FIGURES), "float64"))
    order = ["task", "method", "method_config", "attack", "series", "victim_seed", "attack_seed", "x", "cell_key"]
    return frame.sort_values(order, ignore_index=True)
