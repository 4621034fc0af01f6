"""Several folders as one: nothing depends on their order, and nothing is chosen silently."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.results import union
from assay.results.claims import CLAIMS, Cells, findings
from assay.results.decisions import Rules
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_null, make_row
from assay.results.nulls import null_points
from assay.results.parquet import frame_of, read_records, read_rows, write_curves, write_nulls, write_rows
from assay.results.schema import SCHEMA_VERSION, TIMING_COLUMNS
from assay.results.tables import matrix

REFERENCE: Final = Path(__file__).parents[2] / "results" / "reference" / "claims-ingrain"
FAILURE: Final = {
    **dict.fromkeys(("main_after", "score_after", "p_after", "outcome", "detected_after", "rival_score"), None),
    "status": "failed", "reason": "late",
}  # fmt: skip


def folder(out: Path, rows: Iterable[Mapping[str, Any]], curves: Iterable[Mapping[str, Any]] = ()) -> Path:
    write_rows(out, rows)
    write_curves(out, curves)
    return out


def point(value: float, **changes: Any) -> dict[str, Any]:
    return {
        "stage_key": "s", "stage": "attack", "curve": "attack", "step": 1, "metric": "main", "value": value, **changes
    }  # fmt: skip


# --- case 3 ------------------------------------------------------------------------------------------------------


def test_a_folder_of_failures_changes_no_claim_whatever_the_order(tmp_path: Path) -> None:
    failed = folder(tmp_path / "failed", ({**row, **FAILURE} for row in read_records(REFERENCE)))
    alone = [finding.as_dict() for finding in findings(Cells.read([REFERENCE]), CLAIMS)]
    assert sum(finding["verdict"] == "holds" for finding in alone) == 5
    for outs in itertools.permutations((REFERENCE, failed)):
        assert [finding.as_dict() for finding in findings(Cells.read(outs), CLAIMS)] == alone
        pd.testing.assert_frame_equal(union.read(outs), read_rows(REFERENCE))
        assert matrix(union.read(outs)) == matrix(read_rows(REFERENCE))


# --- which row counts --------------------------------------------------------------------------------------------

ROW: Final = st.fixed_dictionaries(
    {
        "cell_key": st.sampled_from("abc"),
        "status": st.sampled_from(["ok", "failed", "blocked", "not_applicable"]),
        "reason": st.sampled_from(["one", "two"]),
        "wall_s": st.sampled_from([1.0, 2.0]),
        "main_after": st.sampled_from([0.5, 0.5, 0.5, 0.25]),
    }
)


def made(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["status"] != "ok":
        return make_failed(values["status"], values["reason"], cell_key=values["cell_key"])
    return make_row(**{**values, "reason": "", "metrics": {"a": 1.0, "b": float("nan")}})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ROW, max_size=3, unique_by=lambda row: row["cell_key"]), min_size=2, max_size=4))
def test_order_never_matters(folders: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        outs = [folder(Path(name) / str(i), map(made, rows)) for i, rows in enumerate(folders)]
        answers, kept = set(), []
        for order in (outs, outs[::-1], outs[1:] + outs[:1]):
            try:
                kept = union.rows(order)
                pd.testing.assert_frame_equal(union.read(order), frame_of(kept))
                answers.add(str(kept))
            except ResultsError as why:
                answers.add(str(why).partition(": ")[0])
    assert len(answers) == 1
    statuses = {row["cell_key"]: row["status"] for row in kept}
    for values in itertools.chain.from_iterable(folders) if kept else ():
        assert values["status"] != "ok" or statuses[values["cell_key"]] == "ok"


def test_cells_that_never_applied_are_one(tmp_path: Path) -> None:
    outs = [folder(tmp_path / name, [make_failed("not_applicable", "no convolution")]) for name in "ab"]
    assert union.read(outs)["reason"].tolist() == ["no convolution"]


def test_two_results_that_differ_are_named_with_cell_folders_and_columns(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [make_row()])
    two = folder(tmp_path / "two", [make_row(main_after=0.5, metrics={"agreement": 0.1}, wall_s=9.0)])
    for outs in ((one, two), (two, one)):
        for reader in (union.read, union.rows, Cells.read):
            with pytest.raises(ResultsError) as caught:
                reader(outs)
            assert str(caught.value) == (
                f"cell {'c' * 16}: {one} and {two} hold different results of it (main_after, metrics); "
                "name only one of the two folders"
            )


def test_timings_are_no_difference_and_the_earlier_run_counts(tmp_path: Path) -> None:
    starts = ("2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00")
    outs = [folder(tmp_path / f"{i}", [make_row(started=start, wall_s=float(i))]) for i, start in enumerate(starts)]
    assert union.read(outs)["wall_s"].tolist() == union.read(outs[::-1])["wall_s"].tolist() == [1.0]
    assert {"wall_s", "started"} <= set(TIMING_COLUMNS)


def test_the_sign_of_a_zero_is_a_difference(tmp_path: Path) -> None:
    outs = [folder(tmp_path / f"{i}", [make_row(main_after=value)]) for i, value in enumerate((0.0, -0.0))]
    with pytest.raises(ResultsError, match="main_after"):
        union.read(outs)


def test_what_an_older_file_cannot_say_contradicts_nothing(tmp_path: Path) -> None:
    young = ("task_config", "data", "numerics", "method_version", "readings", "null_key", "kind", "family")
    new = folder(tmp_path / "new", [make_row()])
    old = folder(tmp_path / "old", [make_row(**dict.fromkeys(young))])
    assert SCHEMA_VERSION > 2
    for outs in ((new, old), (old, new)):
        assert union.rows(outs) == read_records(new)


def test_files_and_one_folder_are_read_too(tmp_path: Path) -> None:
    out = folder(tmp_path / "out", [make_row()])
    assert len(union.read([out / "rows.parquet"])) == 1
    assert len(union.read([out, out])) == 1
    assert union.read([]).empty
    with pytest.raises(ResultsError, match="no such file"):
        union.read([out, tmp_path / "nowhere"])


# --- curves, nulls and rules -------------------------------------------------------------------------------------


def test_curves_of_one_stage_are_one_and_may_not_differ(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [make_row(cell_key="a")], [point(0.5), point(0.6, step=2)])
    two = folder(tmp_path / "two", [make_row(cell_key="b")], [point(0.5), point(0.1, stage_key="t")])
    assert union.curves([one, two]) == union.curves([two, one])
    assert len(union.curves([one, two])) == 3
    three = folder(tmp_path / "three", [make_row(cell_key="c")], [point(0.4)])
    for outs in ((one, three), (three, one)):
        with pytest.raises(ResultsError, match=r"stage key s: .*one and .*three hold different values"):
            union.curves(outs)
    (three / "curves.parquet").unlink()
    assert len(union.curves([three, one])) == 2


def test_other_rules_decide_the_union_anew(tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for seed, out in enumerate(outs):
        folder(out, [make_row(cell_key=f"{seed}", victim_seed=seed)])
        write_nulls(out, null_points("null-0", "ingrain", "mnist-mlp-1200x2", make_null()))
    usual = union.read(outs)
    assert usual["detected_after"].tolist() == [True, True]
    assert len(union.nulls(outs)) == len(union.nulls(outs[:1])) == 10
    pd.testing.assert_frame_equal(union.read(outs, Rules()), usual)
    strict = union.read(outs, Rules(alpha=1e-5))
    assert strict["detected_after"].tolist() == [False, False]
    assert union.read(outs, Rules(largest_loss=0.001))["outcome"].tolist() == ["failed", "failed"]
    assert pq.read_table(outs[0] / "rows.parquet").num_rows == 1


def test_rules_need_readings_and_say_so_in_one_line() -> None:
    with pytest.raises(ResultsError) as caught:
        union.read([REFERENCE], Rules(alpha=1e-5))
    assert "no readings" in str(caught.value)
    assert "\n" not in str(caught.value)
