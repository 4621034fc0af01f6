"""Rows merge over seeds alone: in every table, whatever else tells two cells apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.results.detection import detections
from assay.results.embedding import embedding
from assay.results.errors import ResultsError
from assay.results.example import make_row
from assay.results.merging import ATTACK, IDENTITY, METHOD, SEEDS, TASK, labels, one_experiment
from assay.results.pareto import robustness
from assay.results.parquet import frame_of
from assay.results.render import Table
from assay.results.schema import COLUMNS
from assay.results.tables import matrix, published

# Two values for each column that may differ between cells of one task, method and attack.
CHOICES: Final[Mapping[str, tuple[Any, Any]]] = {
    "task_config": ('{"epochs":1,"optimizer":{"lr":0.1}}', '{"epochs":8,"optimizer":{"lr":0.1}}'),
    "calibration_config": ('{"keys":30}', '{"keys":100}'),
    "profile": ("laptop", "paper"),
    "data": ("ab12cd", "ab12ce"),
    "numerics": ('{"device":"cpu","threads":1}', '{"device":"cuda","threads":1}'),
    "method_config": ('{"bits":64}', '{"bits":65}'),
    "method_version": (1, 2),
    "method_source": ("", "ab12cd34ef56ab78"),
    "attack_config": ('{"lr":0.1000001}', '{"lr":0.1000002}'),
    "attack_version": (1, 2),
    "attack_source": ("ab12cd34ef56ab78", "ab12cd34ef56ab79"),
    "split": ("disjoint20", "none"),
}
UNDER: Final[Mapping[str, Callable[[pd.DataFrame], Table]]] = {
    "matrix": matrix,
    "embedding": embedding,
    "robustness": robustness,
    "detection": detections,
    "published": lambda rows: published(rows, "usp_csp", "5"),
}
FIGURES: Final = {"score_sok": 0.4, "index": 1.0, "flagged": 0.0, "best_claim_marked": 0.2}


def cell(number: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose models have the keys that its settings give them."""
    base = {
        "task": "cifar10-resnet18", "dataset": "cifar10", "model": "resnet18", "method": "usp", "outcome": "removed",
        "metrics": FIGURES, "cell_key": f"cell-{number:03d}", **{name: values[0] for name, values in CHOICES.items()},
    }  # fmt: skip
    row = make_row(**{**base, **changes})
    clean = repr([row[name] for name in (*TASK.columns[2:], "victim_seed")])
    return row | {"clean_key": clean, "embed_key": clean + repr([row[name] for name in METHOD.columns])}


CHANGES = st.fixed_dictionaries(
    {
        "victim_seed": st.integers(0, 1),
        "attack": st.sampled_from(["none", "prune", "false-claim"]),
        "method": st.sampled_from(["usp", "clean"]),
    },
    optional={name: st.sampled_from(values) for name, values in CHOICES.items()},
)


def merged(table: Table) -> list[tuple[str, ...]]:
    """Return the cells behind each text."""
    return [keys for line in table.keys for keys in line if keys]


def test_every_column_that_was_asked_for_tells_experiments_apart() -> None:
    asked = {column.name for column in COLUMNS if column.part == "asked"}
    assert asked == {*IDENTITY, *SEEDS}
    named = {name for aspect in (TASK, METHOD, ATTACK) for name in aspect.columns}
    assert asked - named == {"dataset", "model", "family", "kind", *SEEDS}, "these follow from a key"
    assert named - {"task", "method", "attack"} == set(CHOICES)


@pytest.mark.parametrize("name", UNDER)
@settings(max_examples=60, deadline=None)
@given(changes=st.lists(CHANGES, min_size=2, max_size=6))
def test_rows_that_a_table_merges_differ_in_seeds_alone(name: str, changes: list[dict[str, Any]]) -> None:
    rows = {row["cell_key"]: row for row in itertools.starmap(cell, enumerate(changes))}
    try:
        table = UNDER[name](frame_of(rows.values()))
    except ResultsError:  # what it says is tested below
        return
    for line, behind in zip(table.rows, table.keys, strict=True):
        for keys in behind:
            for column in _fixed(name, table.columns, line):
                assert len({rows[key][column] for key in keys}) <= 1, f"{column} differs within {keys}"


def _fixed(name: str, headings: tuple[str, ...], line: tuple[str, ...]) -> Iterable[str]:
    """Return the columns in which the rows behind a text must be equal."""
    if name in ("matrix", "detection"):
        return IDENTITY
    if name == "published" and line[headings.index("method")].startswith("clean"):
        return TASK.columns  # every method is embedded beside an unmarked model
    return (*TASK.columns, *METHOD.columns)  # a line on a marked model, or on all attacks on it


@pytest.mark.parametrize("column", sorted(CHOICES))
def test_what_differs_names_a_line_or_a_column(column: str) -> None:
    rows = [cell(i, {column: value, "attack": "prune"}) for i, value in enumerate(CHOICES[column])]
    table = matrix(frame_of(rows))
    assert sorted(key for keys in merged(table) for key in keys) == ["cell-000", "cell-001"]
    assert all(len(keys) == 1 for keys in merged(table))
    shown = {
        "task_config": "cifar10-resnet18 epochs=8", "calibration_config": "usp calibration.keys=100",
        "profile": "cifar10-resnet18 profile=paper", "data": "cifar10-resnet18 data=ab12ce",
        "numerics": "cifar10-resnet18 device=cuda", "method_config": "usp bits=65", "method_version": "usp v2",
        "method_source": "usp source=ab12", "attack_config": "prune lr=0.1000002",
        "attack_version": "prune v2", "attack_source": "prune source=ab12cd34ef56ab79", "split": "prune split=none",
    }[column]  # fmt: skip
    assert shown in (*table.columns, *(text for line in table.rows for text in line[: table.lead]))


def test_a_plugins_source_is_told_from_the_shipped_one_and_shown_as_short_as_may_be() -> None:
    sources = ("", "ab12cd34ef56ab78", "ab99cd34ef56ab78")
    rows = [make_row(cell_key=str(i), method="adi", method_source=source) for i, source in enumerate(sources)]
    assert labels(rows, METHOD) == ["adi source=shipped", "adi source=ab12", "adi source=ab99"]


def test_a_profile_stands_for_all_that_it_sets() -> None:
    rows = [
        make_row(cell_key=f"{profile}-{epochs}", profile=profile, task_config={"epochs": epochs}, task="t")
        for profile, epochs in (("laptop", 1), ("paper", 60), ("paper", 200))
    ]
    assert labels(rows, TASK) == ["t profile=laptop", "t profile=paper epochs=60", "t profile=paper epochs=200"]


def test_what_an_older_file_does_not_say_is_no_setting_of_its_own_but_is_told_apart() -> None:
    old, new = make_row(task_config=None, task="t"), make_row(task_config={"epochs": 1}, task="t")
    assert labels([old, old], TASK) == ["t", "t"]
    assert labels([old, new], TASK) == ["t task_config=unknown", "t"]


def test_equal_settings_written_differently_are_one() -> None:
    rows = [
        make_row(cell_key=str(seed), victim_seed=seed, method_config=text)
        for seed, text in enumerate(('{"a": 1, "b": 2}', '{"b": 2.0, "a": 1}'))
    ]
    assert len(set(labels(rows, METHOD))) == 1
    one_experiment(rows)
    assert "retained 96.0±0.0" in matrix(frame_of(rows)).rows[0][1]


def test_settings_that_no_text_tells_apart_are_refused() -> None:
    rows = [make_row(cell_key=str(i), method="m a=1", method_config="{}") for i in range(2)]
    rows[1] |= {"method": "m", "method_config": '{"a": 1}'}
    rows.append(make_row(cell_key="2", method="m", method_config='{"a": 2}'))
    with pytest.raises(ResultsError, match="differ in method, a;"):
        matrix(frame_of(rows))


def test_two_results_of_one_setting_are_named() -> None:
    rows = [make_row(cell_key=key) for key in ("first", "second")]
    for table in (matrix, embedding):
        with pytest.raises(ResultsError, match=r"cells first and second .* are two results of one setting"):
            table(frame_of({**row, "embed_key": row["cell_key"]} for row in rows))


def test_two_plans_in_one_folder_never_share_a_cell() -> None:
    plans = [
        [cell(10 * plan + seed, {"victim_seed": seed, "task_config": f'{{"epochs":{epochs}}}'}) for seed in range(2)]
        for plan, epochs in enumerate((1, 8))
    ]
    everything = frame_of(row for plan in plans for row in plan)
    for make in UNDER.values():
        for keys in merged(make(everything)):
            assert len({key[:-1] for key in keys}) == 1


def test_false_claims_of_two_settings_are_told_apart() -> None:
    changes = [{"attack": "none"}, *({"attack": "false-claim", "attack_config": f'{{"draws":{n}}}'} for n in (10, 20))]
    rows = [
        {**cell(i, change), "embed_key": "e", "metrics": {**FIGURES, "best_claim_marked": i / 10}}
        for i, change in enumerate(changes)
    ]
    (line,) = embedding(frame_of(rows)).rows
    assert line[9] == "10.0 (false-claim draws=10); 20.0 (false-claim draws=20)"


def test_published_numbers_meet_each_setting_of_ours_alone() -> None:
    rows = [
        cell(i, {"method_version": version, "attack": "none", "main_before": rate, "embed_key": f"{i}"})
        for i, (version, rate) in enumerate(((1, 0.5), (2, 0.7)))
    ]
    table = published(frame_of(rows), "usp_csp", "5")
    ours = {
        line[5].split(" ")[0] for line in table.rows if line[1].startswith("usp") and line[3].startswith("main_acc")
    }
    assert {"50.00", "70.00"} <= ours
    assert "60.00" not in ours
