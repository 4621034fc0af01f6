"""Detection over models: marked against unmarked ones of the same task and attack."""

from __future__ import annotations

from typing import Any

import pytest

from assay.results.detection import detections
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_row
from assay.results.parquet import frame_of
from assay.results.render import Table


def row(method: str, seed: int, index: float, **more: Any) -> dict[str, Any]:
    return make_row(**{
        "cell_key": f"{method}-{seed}", "attack": "neural-cleanse", "method": method, "victim_seed": seed,
        "metrics": {"index": index, "flagged": float(index > 2)}, **more,
    })  # fmt: skip


def table_of(*rows: dict[str, Any]) -> Table:
    return detections(frame_of({**row, "cell_key": f"{row['cell_key']}-{i}"} for i, row in enumerate(rows)))


def test_models_are_ranked_against_the_unmarked_ones() -> None:
    table = detections(frame_of([
        row("adi", 0, 3.0), row("adi", 1, 1.0), row("clean", 0, 0.5), row("clean", 1, 1.0), row("uchida", 0, 0.1),
        make_failed(cell_key="x", method="adi", attack="neural-cleanse"), row("adi", 3, 9.0, metrics={}),
    ]))  # fmt: skip
    found = {line[2]: line[3:] for line in table.rows}
    assert found["adi"][0].startswith("1/2 ")
    assert found["adi"][1] == "0.88"  # 3 beats both, 1 beats one and ties with the other
    assert found["uchida"][1] == "0.00"
    assert found["clean"] == ("0/2 (0-66 %)", "-")
    assert table.keys[0][3] == ("adi-0", "adi-1")


def test_without_unmarked_models_nothing_is_ranked() -> None:
    assert [line[-1] for line in table_of(row("adi", 0, 3.0)).rows] == ["-"]


def test_settings_of_a_method_are_lines_of_their_own() -> None:
    first, second = (row("adi", 0, index, method_config={"triggers": n}) for n, index in ((10, 3.0), (100, 1.0)))
    assert [line[2:4] for line in table_of(first, second).rows] == [
        ("adi triggers=10", "1/1 (21-100 %)"),
        ("adi triggers=100", "0/1 (0-79 %)"),
    ]


def test_two_kinds_of_unmarked_models_are_refused() -> None:
    with pytest.raises(ResultsError, match="differ in method_version; only seeds are averaged over"):
        table_of(row("adi", 0, 3.0), row("clean", 0, 1.0), row("clean", 1, 1.0, method_version=2))
