"""Detection attacks over models: are marked ones told from unmarked ones? (docs/protocol.md §16)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from assay.results.configs import natural
from assay.results.merging import ATTACK, METHOD, TASK, Row, groups, labels, one_experiment, records
from assay.results.render import Keys, Table
from assay.results.statistics import auc, wilson

UNMARKED: Final = "clean"  # the method whose models carry no mark
_COLUMNS: Final = ("task", "attack", "method", "flagged", "AUC")
_LEGEND: Final = (
    "flagged: of how many models the attack says that they carry a trigger, with Wilson's 95 % interval",
    "AUC: how often a marked model's figure exceeds an unmarked one's, ties count half; - without unmarked models",
)


def detections(rows: pd.DataFrame, figure: str = "index") -> Table:
    """Return one line per setting of task, detection attack and method.

    Args:
        rows: as returned by `parquet.read_rows`; cells whose metrics have `flagged` and the figure count. Rows of the
            method `clean` are the unmarked models.
        figure: the metric that ranks models, larger is more suspicious.

    Raises:
        ResultsError: there are several kinds of unmarked models for one attack, or cells that cannot be told apart.
    """
    every = records(rows, ("status", "metrics"))
    done = [row for row in every if row["status"] == "ok" and {"flagged", figure} <= row["metrics"].keys()]
    aspects = (labels(done, aspect) for aspect in (TASK, ATTACK, METHOD))
    names = {row["cell_key"]: lead for row, *lead in zip(done, *aspects, strict=True)}
    lines: list[tuple[list[str], str, str, Keys]] = []
    for block in groups(done, TASK, ATTACK).values():
        unmarked = [row for row in block if row["method"] == UNMARKED]
        one_experiment(unmarked)
        for cells in groups(block, METHOD).values():
            one_experiment(cells)
            plain = [] if cells[0]["method"] == UNMARKED else unmarked
            behind = tuple(row["cell_key"] for row in cells)
            lines.append((names[behind[0]], *_figures(cells, plain, figure), behind))
    lines.sort(key=lambda line: [natural(name) for name in line[0]])
    texts = tuple((*lead, flagged, area) for lead, flagged, area, _ in lines)
    keys: tuple[tuple[Keys, ...], ...] = tuple(((), (), (), behind, behind) for *_, behind in lines)
    return Table("Detection", _COLUMNS, texts, _LEGEND, keys, lead=3)


def _figures(cells: Sequence[Row], plain: Sequence[Row], figure: str) -> tuple[str, str]:
    """Return how many models are flagged, and how well they are told from the unmarked ones."""
    hits = sum(row["metrics"]["flagged"] > 0 for row in cells)
    low, high = wilson(hits, len(cells))
    own, theirs = ([row["metrics"][figure] for row in some] for some in (cells, plain))
    return f"{hits}/{len(cells)} ({100 * low:.0f}-{100 * high:.0f} %)", f"{auc(own, theirs):.2f}" if theirs else "-"
