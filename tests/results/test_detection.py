"""Detection over models: marked against unmarked ones of the same task and attack."""

from __future__ import annotations

from typing import Any

import pandas as pd

from assay.results.detection import detections


def row(method: str, seed: int, index: float, **more: Any) -> dict[str, Any]:
    return {
        "cell_key": f"{method}-{seed}", "status": "ok", "task": "digits-lenet5", "attack": "neural-cleanse",
        "attack_config": "{}", "method": method, "metrics": {"index": index, "flagged": float(index > 2)}, **more,
    }  # fmt: skip


def test_models_are_ranked_against_the_unmarked_ones() -> None:
    rows = pd.DataFrame([
        row("adi", 0, 3.0), row("adi", 1, 1.0), row("clean", 0, 0.5), row("clean", 1, 1.0), row("uchida", 0, 0.1),
        row("adi", 2, 9.0, status="failed"), row("adi", 3, 9.0, metrics={}),
    ])  # fmt: skip
    table = detections(rows)
    found = {line[2]: line[3:] for line in table.rows}
    assert found["adi"][0].startswith("1/2 ")
    assert found["adi"][1] == "0.88"  # 3 beats both, 1 beats one and ties with the other
    assert found["uchida"][1] == "0.00"
    assert found["clean"] == ("0/2 (0-66 %)", "-")
    assert table.keys[0][3] == ("adi-0", "adi-1")


def test_without_unmarked_models_nothing_is_ranked() -> None:
    assert [line[-1] for line in detections(pd.DataFrame([row("adi", 0, 3.0)])).rows] == ["-"]
