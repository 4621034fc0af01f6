"""What embedding costs and what it leaves: fidelity, the owner's reading, and readings that must not verify."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from assay.results import configs
from assay.results.render import Keys, Table, percent
from assay.results.statistics import Mean, over_victims

_UNMARKED = "clean"
_LEGEND = (
    "means over victim seeds with 95 % t half-widths; accuracy, drop and scores in percent; p: the largest of any seed",
    "on unmarked: the owner's key on the unmarked model of the same seed; fresh keys: never-embedded ones, their mean "
    "on unmarked models, and the best of those that false-claim tried on marked ones",
    "verified: at the strict threshold; of marked models, and of unmarked ones with the owner's key",
    "work, time: sample passes and device seconds of embedding over those of training the unmarked model",
)
_COLUMNS = (
    *("task", "method", "clean", "marked", "drop", "score", "p", "on unmarked", "fresh keys", "best fresh"),
    *("verified", "falsely", "work", "time"),
)


def embedding(rows: pd.DataFrame) -> Table:
    """Return one line per task and method configuration, from its cells without an attack.

    Args:
        rows: as returned by `parquet.read_rows`; `false-claim` cells of the same marked models add the best fresh key.
    """
    done = rows[(rows["status"] == "ok") & (rows["method"] != _UNMARKED)]
    texts: list[tuple[str, ...]] = []
    keys: list[tuple[Keys, ...]] = []
    for (task, method), block in done.groupby(["task", "method"], sort=True):
        names = configs.varying(block["method_config"].unique())
        for config, every in block.groupby("method_config", sort=True):
            plain = every[every["attack"] == "none"].drop_duplicates("embed_key")
            if plain.empty:
                continue
            claims = every[every["attack"] == "false-claim"]
            texts.append((str(task), configs.label(str(method), str(config), names), *_figures(plain, claims)))
            own, tried = tuple(plain["cell_key"]), tuple(claims["cell_key"])
            keys.append(((), (), *(tried if name == "best fresh" else own for name in _COLUMNS[2:])))
    return Table("Embedding", _COLUMNS, tuple(texts), _LEGEND, tuple(keys), lead=2)


def _figures(plain: pd.DataFrame, claims: pd.DataFrame) -> tuple[str, ...]:
    def mean(value: Callable[[pd.Series], float]) -> Mean:
        return over_victims([value(row) for _, row in plain.iterrows()], plain["victim_seed"])

    def metric(name: str) -> Mean:
        return mean(lambda row: row["metrics"].get(name, math.nan))

    best = [metrics.get("best_claim_marked", math.nan) for metrics in claims["metrics"]]
    best = [value for value in best if not math.isnan(value)]
    return (
        _share(mean(lambda row: row["main_clean"])),
        _share(mean(lambda row: row["main_before"])),
        _share(mean(lambda row: row["main_clean"] - row["main_before"])),
        _share(mean(lambda row: row["score_before"])),
        f"{plain['p_before'].max():.1e}",
        _share(metric("clean_score")),
        _share(metric("null_mean")),
        f"{100 * max(best):.1f}" if best else "-",
        f"{int(plain['detected_before'].sum())}/{len(plain)}",
        f"{sum(metrics.get('clean_strict', 0) > 0 for metrics in plain['metrics'])}/{len(plain)}",
        _times(metric("embed_work_share")),
        _times(mean(lambda row: row["embed_cost_share"])),
    )


def _share(mean: Mean) -> str:
    return percent(mean) if mean.n else "-"


def _times(mean: Mean) -> str:
    return f"{mean.value:.2f}" if mean.n else "-"
