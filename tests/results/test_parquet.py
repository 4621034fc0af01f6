from __future__ import annotations

import math
import struct
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.results import parquet, schema
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_null, make_row
from assay.results.nulls import null_points

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
REFERENCE = Path(__file__).parents[2] / "results" / "reference"
POINT = {"stage_key": "s", "stage": "embed", "curve": "fit", "step": 0, "metric": "loss", "value": 0.5}


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def make_reading(**changes: object) -> dict[str, object]:
    return {**make_row()["readings"]["after"], **changes}


def null_point(**changes: object) -> dict[str, object]:
    point = null_points("null-0", "ingrain", "mnist-mlp-1200x2", make_null())[0]
    return {**point, **changes}


@settings(max_examples=30, deadline=None)
@given(score=FLOATS, metrics=st.dictionaries(st.text(min_size=1, max_size=5), FLOATS, max_size=4))
def test_floats_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, score: float, metrics: dict[str, float]
) -> None:
    out = tmp_path_factory.mktemp("out")
    row = make_row(score_after=score, metrics=metrics)
    parquet.write_rows(out, [row])
    (back,) = parquet.read_records(out)
    assert bits(back.pop("score_after")) == bits(row.pop("score_after"))
    found, given_ = back.pop("metrics"), row.pop("metrics")
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in given_.items()}
    assert back == row


@settings(max_examples=20, deadline=None)
@given(FLOATS, st.none() | st.integers(0, 2**40), st.text(max_size=5))
def test_readings_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, score: float, hits: int | None, name: str
) -> None:
    out = tmp_path_factory.mktemp("out")
    readings = {name: make_reading(score=score, hits=hits), "b": make_reading(p_value=None, reason="layer missing")}
    rows = [
        make_row(cell_key="a", readings=readings),
        make_row(cell_key="b", readings=None),
        make_row(cell_key="c", readings={}),
        make_row(cell_key="d"),
    ]
    parquet.write_rows(out, rows[::-1])
    for found in (parquet.read_records(out), parquet.read_rows(out).to_dict("records")):
        back = [row["readings"] for row in found]
        assert bits(back[0][name].pop("score")) == bits(score)
        assert back[0][name] == {key: value for key, value in readings[name].items() if key != "score"}
        assert list(back[0]) == sorted(readings)
        if name != "b":
            assert back[0]["b"] == readings["b"]
        assert back[1:] == [None, {}, rows[3]["readings"]]


def test_rows_are_sorted_and_the_file_depends_on_nothing_else(tmp_path: Path) -> None:
    rows = [make_row(cell_key=f"{i:03d}", metrics={"b": 1.0, "a": i / 7}) for i in (3, 1, 2)]
    one = parquet.write_rows(tmp_path / "a", rows)
    two = parquet.write_rows(tmp_path / "b", [{**r, "metrics": {"a": r["metrics"]["a"], "b": 1.0}} for r in rows[::-1]])
    assert one.read_bytes() == two.read_bytes()
    assert parquet.read_rows(tmp_path / "a")["cell_key"].tolist() == ["001", "002", "003"]


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    parquet.write_rows(tmp_path, [])
    frame = parquet.read_rows(tmp_path)
    assert len(frame) == 0
    assert list(frame.columns) == schema.ROW.names


def test_frames_keep_null_apart_from_zero_and_metrics_as_dicts(tmp_path: Path) -> None:
    parquet.write_rows(tmp_path, [make_row(cell_key="a", queries=0, metrics={"x": 0.25}), make_failed(cell_key="b")])
    frame = parquet.read_rows(tmp_path)
    assert frame["queries"].isna().tolist() == [False, True]
    assert frame["detected_after"].isna().tolist() == [False, True]
    assert math.isnan(frame["main_after"][1])
    assert frame["metrics"].tolist() == [{"x": 0.25}, {}]
    assert frame["victim_seed"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"main_aftr": 0.5}, "unknown column 'main_aftr'; did you mean 'main_after'"),
        ({"status": "done"}, "unknown status 'done'"),
        ({"outcome": "lost"}, "unknown outcome 'lost'"),
        ({"task": None}, "task is null"),
        ({"main_after": True}, "main_after is True; double is needed"),
        ({"main_after": "0.5"}, "column main_after: a value is not double"),
        ({"victim_seed": 1.5}, "victim_seed is 1.5; int64 is needed"),
        ({"metrics": {"x": "much"}}, "column metrics"),
        ({"family": "bit"}, "unknown family 'bit'; did you mean 'bits'"),
        ({"kind": "removals"}, "unknown kind 'removals'; did you mean 'removal'"),
        ({"readings": 0.5}, "readings is 0.5; a mapping from names to readings is needed"),
        ({"readings": {"after": make_reading(scor=0.5)}}, "reading after: unknown figure 'scor'; did you mean 'score'"),
        ({"readings": {"after": {"score": 0.5}}}, "reading after: missing figure accepted, applicable, chance, hits"),
        ({"readings": {"after": make_reading(accepted=None)}}, "reading after: accepted is null"),
        ({"readings": {"after": make_reading(hits=0.5)}}, "reading after: hits is 0.5; int64 is needed"),
        ({"readings": {"after": make_reading(score=True)}}, "reading after: score is True; double is needed"),
        ({"readings": {"after": make_reading(reason=1)}}, "column reason: a value is not string"),
    ],
)
def test_a_wrong_row_is_one_line_and_leaves_the_old_file(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = parquet.write_rows(tmp_path, [make_row()])
    before = path.read_bytes()
    with pytest.raises(ResultsError) as caught:
        parquet.write_rows(tmp_path, [{**make_row(), **change}])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_missing_column_and_a_doubled_cell_are_refused(tmp_path: Path) -> None:
    short = make_row()
    del short["chance"]
    with pytest.raises(ResultsError, match="missing column chance"):
        parquet.write_rows(tmp_path, [short])
    with pytest.raises(ResultsError, match="2 rows"):
        parquet.write_rows(tmp_path, [make_row(), make_row()])


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet.write_rows(tmp_path, [make_row()])
    before = path.read_bytes()

    def crash(table: pa.Table, file: IO[bytes], **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", crash)
    with pytest.raises(KeyboardInterrupt):
        parquet.write_rows(tmp_path, [make_row(main_after=0.1)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_curves_are_sorted_and_unique(tmp_path: Path) -> None:
    points = [{**POINT, "step": step, "metric": metric} for step in (10, 9) for metric in ("loss", "acc")]
    parquet.write_curves(tmp_path, points)
    frame = parquet.read_curves(tmp_path)
    assert list(zip(frame["step"], frame["metric"], strict=True)) == [
        (9, "acc"),
        (9, "loss"),
        (10, "acc"),
        (10, "loss"),
    ]
    with pytest.raises(ResultsError, match="2 rows"):
        parquet.write_curves(tmp_path, [POINT, POINT])
    with pytest.raises(ResultsError, match="unknown stage 'probe'"):
        parquet.write_curves(tmp_path, [{**POINT, "stage": "probe"}])


def test_unreadable_files_are_one_line_with_advice(tmp_path: Path) -> None:
    def complaint() -> str:
        with pytest.raises(ResultsError) as caught:
            parquet.read_rows(tmp_path)
        text = str(caught.value)
        assert "\n" not in text
        assert str(tmp_path) in text
        return text

    assert "no such file" in complaint()
    path = parquet.write_rows(tmp_path, [make_row()])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in complaint()
    path.write_bytes(whole[:40] + bytes(len(whole) - 440) + whole[-400:])
    assert "damaged" in complaint()
    path.write_text("cell_key,task\n")
    assert "no Parquet file" in complaint()
    pq.write_table(pa.table({"x": [1]}), path)
    assert "not one of assay's" in complaint()
    parquet.write_curves(tmp_path, [POINT]).rename(path)
    assert "holds curves, not rows" in complaint()
    pq.write_table(pq.read_table(parquet.write_rows(tmp_path, [])).replace_schema_metadata(
        {"table": "rows", "schema_version": "999"}), path)  # fmt: skip
    assert "schema version 999" in complaint()


def test_an_older_file_is_read_with_nulls_and_may_be_written_again(tmp_path: Path) -> None:
    path = parquet.write_rows(tmp_path, [make_row()])
    table = pq.read_table(path)
    younger = [name for name in schema.ROW.names if name in YOUNGER]
    old = table.drop_columns(younger).replace_schema_metadata({"table": "rows", "schema_version": "2"})
    pq.write_table(old, path)
    (record,) = parquet.read_records(tmp_path)
    assert record == {**make_row(), **dict.fromkeys(younger)}
    frame = parquet.read_rows(tmp_path)
    assert frame[younger].isna().all(axis=None)
    assert str(frame["method_version"].dtype) == "Int64"
    parquet.write_rows(tmp_path, [record, make_row(cell_key="new")])
    assert parquet.read_records(tmp_path)[0] == record


YOUNGER = {
    "null_key", "task_config", "calibration_config", "data", "numerics", "method_version", "method_source", "family",
    "attack_version", "attack_source", "kind", "readings",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*/rows.parquet"))[:3], ids=lambda path: path.parent.name)
def test_what_schema_2_wrote_is_read(path: Path) -> None:
    assert pq.read_schema(path).metadata[b"schema_version"] in (b"1", b"2", b"3")
    frame = parquet.read_rows(path.parent)
    assert list(frame.columns) == schema.ROW.names
    assert len(frame)


def test_nulls_are_sorted_and_unique(tmp_path: Path) -> None:
    points = null_points("null-0", "ingrain", "mnist-mlp-1200x2", make_null())
    parquet.write_nulls(tmp_path, points[::-1])
    assert parquet.plain_nulls(tmp_path) == [{name: point[name] for name in schema.NULL.names} for point in points]
    frame = parquet.read_nulls(tmp_path)
    assert frame["key"].tolist() == [0, 1, 2, 3, 4] * 2
    assert frame["model"].tolist() == ["reference-0"] * 5 + ["reference-1"] * 5
    assert frame.loc[1].to_dict() == {
        "null_key": "null-0", "method": "ingrain", "task": "mnist-mlp-1200x2", "model": "reference-0", "place": 0,
        "key": 1, "score": 0.1, "hits": 10, "trials": 100,
    }  # fmt: skip
    with pytest.raises(ResultsError, match="2 rows"):
        parquet.write_nulls(tmp_path, [null_point(), null_point()])
    with pytest.raises(ResultsError, match="null_key null-0: hits is null"):
        parquet.write_nulls(tmp_path, [null_point(hits=None)])


def test_a_sweep_of_before_there_were_nulls_has_none(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such file"):
        parquet.read_nulls(tmp_path)
    parquet.write_rows(tmp_path, [make_row()])
    assert parquet.plain_nulls(tmp_path) == []
    assert parquet.read_nulls(tmp_path).columns.tolist() == schema.NULL.names


def test_an_empty_row_and_a_failed_one_have_every_column_and_no_figure(tmp_path: Path) -> None:
    empty = schema.empty_row()
    assert list(empty) == schema.ROW.names
    assert {name for name, value in empty.items() if value is not None} == {"metrics"}
    schema.empty_row()["metrics"]["x"] = 1.0
    assert schema.empty_row()["metrics"] == {}
    failed = make_failed(reason="why")
    figures = {column.name for column in schema.COLUMNS if column.part in ("measured", "derived", "cost")}
    assert all(failed[name] is None for name in figures)
    assert not {name for name in failed if failed[name] is None} - figures - {"attack_key"}
    assert {"main_after", "readings", "outcome", "cost_share", "rival_verified"} <= figures
    parquet.write_rows(tmp_path, [failed])


def test_example_rows_share_nothing_and_take_mappings_for_json(tmp_path: Path) -> None:
    make_row()["readings"]["after"]["score"] = 7.0
    assert make_row()["readings"]["after"]["score"] == 0.55
    row = make_row(task_config={"epochs": 3}, numerics={"device": "cuda"}, method_config={"b": 1, "a": 2})
    assert (row["task_config"], row["method_config"]) == ('{"epochs": 3}', '{"a": 2, "b": 1}')
    assert make_row(task_config=None)["task_config"] is None
    with pytest.raises(ResultsError, match="unknown column 'task_confg'; did you mean 'task_config'"):
        make_row(task_confg={})


def test_equal_but_for_timings(tmp_path: Path) -> None:
    rows = [make_row(cell_key=key) for key in "ab"]
    later = {"wall_s": 9.0, "device_s": 9.0, "cost_share": 0.9, "embed_cost_share": 9.0, "environment": "e2"}
    later |= {"peak_mem_mb": 9.0, **dict.fromkeys(("started", "ended"))}
    assert set(later) == set(schema.TIMING_COLUMNS)
    parquet.write_rows(tmp_path / "a", rows)
    parquet.write_rows(tmp_path / "b", [{**r, **later} for r in rows])
    assert parquet.rows_equal(tmp_path / "a", tmp_path / "b") == []


def test_differences_are_found_to_the_last_bit(tmp_path: Path) -> None:
    nudged = float(np.nextafter(0.96, 1))
    changes: list[dict[str, Any]] = [
        {"main_after": nudged},
        {"score_after": -0.0},
        {"p_after": None},
        {"metrics": {"agreement": nudged}},
    ]
    parquet.write_rows(
        tmp_path / "a", [make_row(cell_key=f"{i}", score_after=0.0) for i in range(4)] + [make_row(cell_key="x")]
    )
    other = [make_row(**{"cell_key": f"{i}", "score_after": 0.0, **change}) for i, change in enumerate(changes)]
    parquet.write_rows(tmp_path / "b", [*other, make_row(cell_key="y")])
    found = parquet.rows_equal(tmp_path / "a", tmp_path / "b")
    assert [line.split(": ")[:2] for line in found[2:]] == [
        *(["cell 0", "main_after"], ["cell 1", "score_after"], ["cell 2", "p_after"], ["cell 3", "metrics"]),
    ]
    assert found[0] == f"cell x: only in {tmp_path / 'a'}"
    assert found[1] == f"cell y: only in {tmp_path / 'b'}"


def test_a_reading_differs_to_the_last_bit_too(tmp_path: Path) -> None:
    nudged = float(np.nextafter(0.55, 1))
    for out, reading in (("a", make_reading()), ("b", make_reading(score=nudged)), ("c", make_reading(hits=None))):
        readings = {**make_row()["readings"], "after": reading}
        parquet.write_rows(tmp_path / out, [make_row(readings=readings)])
    for other in "bc":
        (line,) = parquet.rows_equal(tmp_path / "a", tmp_path / other)
        assert line.split(": ")[1] == "readings"
    assert parquet.rows_equal(tmp_path / "b", tmp_path / "b") == []


def test_nan_equals_nan_but_not_null(tmp_path: Path) -> None:
    for name, value in (("a", math.nan), ("b", math.nan), ("c", None)):
        parquet.write_rows(tmp_path / name, [make_row(main_after=value)])
    assert parquet.rows_equal(tmp_path / "a", tmp_path / "b") == []
    assert len(parquet.rows_equal(tmp_path / "a", tmp_path / "c")) == 1


def test_the_committed_columns_are_those_of_the_design() -> None:
    assert schema.ROW.names[:5] == ["cell_key", "clean_key", "embed_key", "attack_key", "null_key"]
    assert set(schema.TIMING_COLUMNS) < set(schema.ROW.names)
    assert schema.ROW.metadata[b"schema_version"] == str(schema.SCHEMA_VERSION).encode()
    assert Path(schema.ROWS_FILE).suffix == ".parquet"


# --- the declaration, by hand ------------------------------------------------------------------------------------


def test_what_a_row_never_lacks() -> None:
    always = {
        "cell_key", "task", "dataset", "model", "profile", "split", "method", "method_config", "attack",
        "attack_config", "victim_seed", "attack_seed", "status", "reason", "metrics",
    }  # fmt: skip
    assert {column.name for column in schema.COLUMNS if column.needed} == always
    assert {field.name for field in schema.ROW if not field.nullable} == always
    reading = schema.READING.fields
    assert {field.name for field in reading if not field.nullable} == {"name", "accepted", "applicable", "reason"}
    assert [field.name for field in reading[1:]] == list(schema.Reading.__annotations__)
    for table in (schema.CURVE, schema.NULL):
        assert not any(field.nullable for field in table)


def test_which_columns_hold_json_which_are_times_and_which_are_derived() -> None:
    json_columns = {"task_config", "calibration_config", "numerics", "method_config", "attack_config"}
    assert {column.name for column in schema.COLUMNS if column.json} == json_columns
    times = {"wall_s", "device_s", "peak_mem_mb", "cost_share", "embed_cost_share", "environment", "started", "ended"}
    assert {column.name for column in schema.COLUMNS if column.timing} == times == set(schema.TIMING_COLUMNS)
    derived = {
        "score_before", "score_after", "chance", "p_before", "p_after", "detected_before", "detected_after",
        "verdict_paper", "verdict_sok", "outcome", "rival_score", "rival_p", "rival_verified",
    }  # fmt: skip
    assert set(schema.DERIVED_COLUMNS) == derived
    plain = schema.Column("x", pa.string(), None, "who")
    assert (plain.needed, plain.timing, plain.json, plain.choices) == (False, False, False, ())


def test_the_tables_say_what_they_are() -> None:
    for table, name in ((schema.ROW, b"rows"), (schema.CURVE, b"curves"), (schema.NULL, b"nulls")):
        assert table.metadata == {b"table": name, b"schema_version": b"3"}
    assert schema.SCHEMA_VERSION == 3, "a new version means that older files are read on purpose"


def test_the_example_is_a_row_that_could_be() -> None:
    row = make_row()
    for column in schema.COLUMNS:
        value = row[column.name]
        if column.name.startswith(("main_", "score_", "p_")) or column.name == "chance":
            assert 0 <= value <= 1
        assert not column.choices or value in column.choices
    for reading in row["readings"].values():
        assert reading["hits"] == round(reading["score"] * reading["trials"])
        assert reading["accepted"] == (reading["score"] >= reading["paper_threshold"])
        assert (reading["applicable"], reading["reason"], reading["trials"]) == (True, "", 100)
        assert (reading["chance"], reading["paper_threshold"]) == (0.1, 0.5)
        assert 0 <= reading["p_value"] <= 1
    assert row["detected_before"]
    assert (row["score_after"], row["p_after"]) == (
        row["readings"]["after"]["score"],
        row["readings"]["after"]["p_value"],
    )
    assert (row["victim_seed"], row["attack_seed"], row["method_version"], row["attack_version"]) == (0, 0, 1, 1)
    assert (datetime.fromisoformat(row["ended"]) - datetime.fromisoformat(row["started"])).total_seconds() == row[
        "wall_s"
    ]
    assert (row["queries"], row["backward_samples"], row["forward_samples"]) == (0, 500, 1000)
    assert 0 < row["cost_share"] < 1 < row["device_s"] < row["wall_s"]
    assert 0 <= row["metrics"]["agreement"] <= 1
