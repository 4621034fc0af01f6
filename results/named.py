"""Tables by the names that people ask for."""

from __future__ import annotations

import pandas as pd

from assay.results.decisions import DEFAULT, Rules
from assay.results.detection import detections
from assay.results.embedding import embedding
from assay.results.errors import ResultsError
from assay.results.pareto import robustness
from assay.results.render import Table
from assay.results.reproduction import published
from assay.results.tables import matrix


def named_table(rows: pd.DataFrame, name: str | None, rules: Rules = DEFAULT) -> Table:
    """Return a table of rows.

    Args:
        rows: as `union.read` returns them, decided by `rules`.
        name: None: methods x attacks; `embedding`, `robustness`, `detection`; or PAPER/NUMBER of a published table.
        rules: named in the legend.

    Raises:
        ResultsError: there is no such table, or the rows cannot stand in one.
    """
    if name is None:
        return matrix(rows, rules)
    if name == "robustness":
        return robustness(rows, rules)
    if name in ("embedding", "detection"):
        return {"embedding": embedding, "detection": detections}[name](rows)
    paper, slash, number = name.partition("/")
    if not slash:
        raise ResultsError(f"table {name!r}: expected PAPER/NUMBER, embedding, robustness or detection")
    return published(rows, paper, number)
