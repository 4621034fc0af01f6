"""The measurements that are shipped: whole sweeps of shipped grids, with the environments that they ran in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assay.results.parquet import plain_curves, read_records

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
GRIDS = Path(__file__).parents[2] / "grids"
SWEEPS = sorted(path.parent for path in REFERENCE.glob("*/rows.parquet"))


def test_there_are_some() -> None:
    assert SWEEPS


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_a_reference_is_a_whole_sweep_of_a_shipped_grid(sweep: Path) -> None:
    assert (GRIDS / f"{sweep.name}.yaml").is_file()
    rows = read_records(sweep)
    assert {row["status"] for row in rows} <= {"ok", "not_applicable"}
    environments = json.loads((sweep / "environments.json").read_text("utf-8"))
    assert {row["environment"] for row in rows if row["status"] == "ok"} <= environments.keys()
    stages = {row[name] for row in rows for name in ("embed_key", "attack_key")}
    assert stages & {point["stage_key"] for point in plain_curves(sweep)}
