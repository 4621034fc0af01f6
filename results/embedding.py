"""What embedding costs and what it leaves: fidelity, the owner's reading, and readings that must not verify."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pandas as pd

from assay.results.configs import natural
from assay.results.merging import ATTACK, METHOD, TASK, Row, groups, labels, one_each, one_experiment, records
from assay.results.render import Keys, Table, percent
from assay.results.statistics import Mean, over_victims

_UNMARKED: Final = "clean"
_LEGEND: Final = (
    "means over victim seeds with 95 % t half-widths; accuracy, drop and scores in percent; p: the largest of any seed",
    "on unmarked: the owner's key on the unmarked model of the same seed; fresh keys: never-embedded ones, their mean "
    "on unmarked models, and the best of those that false-claim tried on marked ones",
    "verified: at the strict threshold; of marked models, and of unmarked ones with the owner's key",
    "work, time: sample passes and device seconds of embedding over those of training the unmarked model",
)
_COLUMNS: Final = (
    *("task", "method", "clean", "marked", "drop", "score", "p", "on unmarked", "fresh keys", "best fresh"),
    *("verified", "falsely", "work", "time"),
)
_FIGURES: Final = (
    "embed_key", "status", "main_clean", "main_before", "score_before", "p_before", "detected_before",
    "embed_cost_share", "metrics",
)  # fmt: skip


def embedding(rows: pd.DataFrame) -> Table:
    """Return one line per setting of task and method, from its cells without an attack.

    Args:
        rows: as returned by `parquet.read_rows`; `false-claim` cells of the same marked models add the best fresh key.

    Raises:
        ResultsError: cells cannot be told apart by what their rows hold.
    """
    every = records(rows.sort_values("cell_key"), _FIGURES)
    done = [row for row in every if row["status"] == "ok" and row["method"] != _UNMARKED]
    aspects = (labels(done, aspect) for aspect in (TASK, METHOD, ATTACK))
    names = {row["cell_key"]: lead for row, *lead in zip(done, *aspects, strict=True)}
    lines: list[tuple[str, str, tuple[str, ...], Keys, Keys]] = []
    for block in groups(done, TASK, METHOD).values():
        claims = [row for row in block if row["attack"] == "false-claim"]
        for cells in groups((row for row in block if row["attack"] == "none"), ATTACK).values():
            plain = one_each(cells, "embed_key")
            task, method, attack = names[plain[0]["cell_key"]]
            own, tried = (tuple(row["cell_key"] for row in some) for some in (plain, claims))
            who = method if attack == "none" else f"{method} | {attack}"
            best = _best({names[some[0]["cell_key"]][2]: some for some in groups(claims, ATTACK).values()})
            lines.append((task, who, (*_figures(plain, best),), own, tried))
    lines.sort(key=lambda line: [natural(name) for name in line[:2]])
    texts = tuple((task, who, *figures) for task, who, figures, _, _ in lines)
    keys = tuple(
        ((), (), *(tried if name == "best fresh" else own for name in _COLUMNS[2:])) for *_, own, tried in lines
    )
    return Table("Embedding", _COLUMNS, texts, _LEGEND, keys, lead=2)


def _best(claims: dict[str, list[Row]]) -> str:
    """Return the best score of a never-embedded key on a marked model, for each setting of `false-claim`."""
    found = {}
    for name, cells in claims.items():
        one_experiment(cells)
        scores = [row["metrics"].get("best_claim_marked", math.nan) for row in cells]
        if known := [score for score in scores if not math.isnan(score)]:
            found[name] = f"{100 * max(known):.1f}"
    several = len(claims) > 1
    return "; ".join(f"{text} ({name})" if several else text for name, text in sorted(found.items())) or "-"


def _figures(plain: Sequence[Row], best: str) -> Iterator[str]:
    def mean(value: Callable[[Row], float | None]) -> Mean:
        return over_victims([value(row) for row in plain], plain)

    def column(name: str) -> Mean:
        return mean(lambda row: row[name])

    def metric(name: str) -> Mean:
        return mean(lambda row: row["metrics"].get(name))

    yield _share(column("main_clean"))
    yield _share(column("main_before"))
    yield _share(mean(_drop))
    yield _share(column("score_before"))
    p_values = [row["p_before"] for row in plain if row["p_before"] is not None]
    yield f"{max(p_values):.1e}" if p_values else "-"
    yield _share(metric("clean_score"))
    yield _share(metric("null_mean"))
    yield best
    yield f"{sum(bool(row['detected_before']) for row in plain)}/{len(plain)}"
    yield f"{sum(row['metrics'].get('clean_strict', 0) > 0 for row in plain)}/{len(plain)}"
    yield _times(metric("embed_work_share"))
    yield _times(column("embed_cost_share"))


def _drop(row: Row) -> float | None:
    clean, marked = row["main_clean"], row["main_before"]
    return None if clean is None or marked is None else clean - marked


def _share(mean: Mean) -> str:
    return percent(mean) if mean.n else "-"


def _times(mean: Mean) -> str:
    return f"{mean.value:.2f}" if mean.n else "-"
