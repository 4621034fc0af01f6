"""Invented rows and nulls, for tests and for trying out tables and plots without a sweep."""

from __future__ import annotations

import copy
import json
from typing import Any

from assay.results.errors import unknown
from assay.results.nulls import Null
from assay.results.schema import COLUMNS

Row = dict[str, Any]


def make_row(**changes: Any) -> Row:
    """Return the row of one finished cell with these columns changed.

    With `make_null()` the default rules decide its readings as its columns say.

    Args:
        changes: columns of `schema.ROW`; those that hold JSON may also be mappings.
    """
    row: Row = {column.name: copy.deepcopy(column.example) for column in COLUMNS}
    for name in changes:
        if name not in row:
            raise unknown("column", name, row)
    row |= changes
    for column in COLUMNS:
        if column.json and not isinstance(row[column.name], str | None):
            row[column.name] = json.dumps(row[column.name], sort_keys=True)
    return row


def make_failed(
    status: str = "failed", reason: str = "NotEmbedded: score 0.31 is below the gate", **changes: Any
) -> Row:
    """Return the row of a cell that did not run: it has a reason and no figures."""
    figures = {column.name: None for column in COLUMNS if column.part in ("measured", "derived", "cost")}
    return make_row(**{**figures, "attack_key": None, "metrics": {}, "status": status, "reason": reason, **changes})


def make_null() -> Null:
    """Return a null of two unmarked models and five keys that match about a tenth of 100 trials."""
    hits = [[8, 10, 12, 9, 11], [7, 10, 13, 10, 11]]
    scores = [[count / 100 for count in model] for model in hits]
    return Null(scores, hits, 100, ["reference-0", "reference-1"])
