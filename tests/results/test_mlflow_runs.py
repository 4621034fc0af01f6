"""What a run says of a cell, and which cells share a parent."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from assay.results import mlflow_runs
from assay.results.example import make_failed, make_row
from assay.results.schema import ROW

# Seeds, keys, and what was measured or decided; the attack's own settings distinguish figures below one parent.
SEEDS = {"victim_seed", "attack_seed"}
ATTACK = {"attack", "attack_config", "attack_version", "attack_source"}
FOLLOWS = {"dataset", "model", "family", "kind"}  # from the task's, the method's or the attack's key
STATE = {"status", "reason", "outcome", "environment", "started", "ended", "readings", "metrics"}
DISTINGUISHING = ("task_config", "calibration_config", "numerics", "data", "method_version", "method_source")


def extended(**changes: Any) -> dict[str, Any]:
    """Return a row with the columns that tell versions, sources and settings apart."""
    settings = {
        "task_config": '{"epochs": 2}',
        "calibration_config": '{"references": 5}',
        "numerics": '{"device": "cpu"}',
        "data": "d1",
        "method_version": 1,
        "method_source": "",
        "attack_version": 1,
        "attack_source": "",
    }
    own = {name: changes.pop(name) for name in [*changes] if name in settings}
    return {**make_row(**changes), **settings, **own}


def another(name: str, value: Any) -> Any:
    if name.endswith("_version"):
        return value + 1
    return '{"changed": 1}' if name.endswith("_config") or name == "numerics" else "changed"


def test_a_parent_groups_over_seeds_alone() -> None:
    row = extended()
    key = mlflow_runs._family(row)
    figures = {field.name for field in ROW if not pa.types.is_string(field.type)} - {"method_version"}
    free = figures | SEEDS | ATTACK | FOLLOWS | STATE | {name for name in ROW.names if name.endswith("_key")}
    apart = [name for name in row if mlflow_runs._family({**row, name: another(name, row[name])}) != key]
    assert set(apart) == {"task", "profile", "split", "method", "method_config", *DISTINGUISHING}
    assert set(ROW.names) - free <= set(apart), "a column that distinguishes cells distinguishes parents"
    for name in SEEDS:
        assert mlflow_runs._family({**row, name: 7}) == key


def test_rows_that_say_less_have_parents_of_their_own() -> None:
    row = extended()
    assert mlflow_runs._family({**row, "task_config": None}) != mlflow_runs._family(row)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("task_config", ('{"train": {"epochs": 1}}', '{"train": {"epochs": 8}}'), {"task.train.epochs": "8"}),
        ("calibration_config", ('{"references": 5}', '{"references": 10}'), {"calibration.references": "10"}),
        ("numerics", ('{"device": "cpu"}', '{"device": "cuda"}'), {"numerics.device": "cuda"}),
        ("data", ("d1", "d2"), {"data": "d2"}),
        ("method_version", (1, 2), {"method_version": "2"}),
        ("method_source", ("", "0123abcd"), {"method_source": "0123abcd"}),
        ("attack_version", (1, 2), {"attack_version": "2"}),
        ("attack_source", ("0123abcd", ""), {"attack_source": "shipped"}),
        ("attack_config", ('{"ratio": 0.5}', '{"ratio": 0.75}'), {"attack.ratio": "0.75"}),
        ("split", ("disjoint20", "shared"), {"split": "shared"}),
    ],
)
def test_what_varies_is_a_parameter(name: str, values: tuple[Any, Any], expected: dict[str, str]) -> None:
    rows = [extended(**{name: value}) for value in values]
    names: mlflow_runs.Names = {part: mlflow_runs._varying(rows, part) for part in mlflow_runs._CONFIGS}
    assert mlflow_runs._params(rows[1], names, "task", "method", "attack") == expected


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return mlflow_runs._means(rows, mlflow_runs._varying(rows, "attack"))


def test_means_are_over_seeds_and_a_victim_counts_once() -> None:
    rows = [
        extended(victim_seed=0, main_before=0.5, score_after=0.25),
        extended(victim_seed=0, attack="prune", main_before=0.5, score_after=1.0, outcome="removed"),
        extended(victim_seed=1, main_before=1.0, score_after=0.75),
        {**extended(victim_seed=2), **make_failed(victim_seed=2)},
    ]
    found = means(rows)
    assert found["main_before"] == 0.75, "not the mean over three rows"
    assert found["score_after.none"] == 0.5
    assert found["score_after.prune"] == 1.0
    assert (found["removed.none"], found["removed.prune"]) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["attack_version", "attack_source", "attack_config"])
def test_attacks_that_differ_are_figures_of_their_own(name: str) -> None:
    rows = [extended(score_after=0.0), extended(score_after=1.0)]
    rows[1][name] = another(name, rows[0][name])
    found = {key: value for key, value in means(rows).items() if key.startswith("score_after")}
    assert sorted(found.values()) == [0.0, 1.0]


def test_two_values_for_one_seed_have_no_mean() -> None:
    rows = [extended(score_after=0.0, main_after=0.5), extended(score_after=1.0, main_after=0.5)]
    found = means(rows)
    assert "score_after.none" not in found
    assert found["main_after.none"] == 0.5
    assert "score_after.none" in means([*rows[:1], extended(score_after=1.0, attack_seed=1)])


def test_a_figure_without_any_value_is_absent() -> None:
    assert "score_after.none" not in means([extended(score_after=None)])
    assert not any(math.isnan(value) for value in means([extended(score_after=None), extended(victim_seed=1)]).values())


def test_digests_agree_between_memory_and_parquet() -> None:
    row = make_row()
    digest = mlflow_runs._digest(row)
    assert mlflow_runs._digest({**row, "metrics": dict(row["metrics"])}) == digest
    assert mlflow_runs._digest({**row, "score_after": 1}) == mlflow_runs._digest({**row, "score_after": 1.0})
    assert mlflow_runs._digest({**row, "score_after": 0.5}) != digest
    assert mlflow_runs._digest({**row, "detected_after": None}) != digest


def test_long_names_stay_apart() -> None:
    names = [mlflow_runs._clean("score_after.chain " + "x" * 300 + end) for end in "ab"]
    assert len({*names}) == 2
    assert all(len(name) == 250 for name in names)


def test_every_measured_column_is_a_metric_and_no_setting_is() -> None:
    assert {"main_after", "detected_after", "queries", "unique_samples"} <= {*mlflow_runs._NUMBERS}
    assert not {"victim_seed", "attack_seed", "method_version", "attack_version"} & {*mlflow_runs._NUMBERS}
