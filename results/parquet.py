"""Rows and curves to and from Parquet: one file each, replaced as a whole, never appended to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from assay.results.errors import Damaged, ResultsError, unknown
from assay.results.schema import (
    CURVE,
    CURVE_ORDER,
    CURVES_FILE,
    OUTCOMES,
    ROW,
    ROWS_FILE,
    STAGES,
    STATUSES,
    TIMING_COLUMNS,
)

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {"status": STATUSES, "outcome": OUTCOMES, "stage": STAGES}


# --- writing -----------------------------------------------------------------------------------------------------


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Replace `OUT/rows.parquet` by these rows, sorted by `cell_key`.

    Args:
        out: the sweep's folder, created if missing.
        rows: one mapping per cell with exactly the columns of `schema.ROW`; `metrics` is a mapping of numbers.

    Raises:
        ResultsError: a key is unknown, missing, of the wrong type or null where it must not be, or a cell is doubled.
    """
    return _replace(out / ROWS_FILE, _table(rows, ROW, ("cell_key",)))


def write_curves(out: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Replace `OUT/curves.parquet` by these points, sorted by stage, curve, step and metric; errors as `write_rows`."""
    return _replace(out / CURVES_FILE, _table(rows, CURVE, CURVE_ORDER))


def _table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, identity: tuple[str, ...]) -> pa.Table:
    """Check rows against a schema and return them as a sorted table."""
    records = list(rows)
    names = set(schema.names)
    for number, record in enumerate(records):
        if record.keys() != names:
            where = f"row {number} ({record.get(identity[0], f'no {identity[0]}')})"
            extra = sorted(set(record) - names)
            if extra:
                raise unknown("column", extra[0], schema.names, where)
            raise ResultsError(f"{where}: missing column {', '.join(sorted(names - set(record)))}; null is allowed")
    arrays = [_column(records, field, identity) for field in schema]
    table = pa.Table.from_arrays(arrays, schema=schema).sort_by([(name, "ascending") for name in identity])
    _refuse_doubles(table, identity)
    return table


def _column(records: list[Mapping[str, Any]], field: pa.Field[Any], identity: tuple[str, ...]) -> pa.Array[Any]:
    values = [record[field.name] for record in records]
    if pa.types.is_map(field.type):
        values = [sorted(value.items()) if isinstance(value, Mapping) else value for value in values]
    choices = _CHOICES.get(field.name)
    for record, value in zip(records, values, strict=True):
        where = f"{identity[0]} {record[identity[0]]}"
        if value is None and not field.nullable:
            raise ResultsError(f"{where}: {field.name} is null; it is needed in every row")
        if choices and value is not None and value not in choices:
            raise unknown(field.name, str(value), choices, where)
        # Arrow would read True as 1.0 and cut 1.5 down to 1.
        flag = isinstance(value, bool) and not pa.types.is_boolean(field.type)
        if flag or (isinstance(value, float) and pa.types.is_integer(field.type)):
            raise ResultsError(f"{where}: {field.name} is {value}; {field.type} is needed")
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError) as why:
        raise ResultsError(f"column {field.name}: a value is not {field.type} ({_one_line(why)})") from why


def _refuse_doubles(table: pa.Table, identity: tuple[str, ...]) -> None:
    counts = table.group_by(list(identity)).aggregate([([], "count_all")])
    for found in counts.filter(pa.compute.field("count_all") > 1).slice(0, 1).to_pylist():
        what = ", ".join(f"{name} {found[name]}" for name in identity)
        raise ResultsError(f"{what}: {found['count_all']} rows; each cell or point may appear once")


def _replace(path: Path, table: pa.Table) -> Path:
    """Write beside `path`, then rename: a reader sees the old file or the new one, and a crash leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would shut out the rest of the group
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself durable
    finally:
        os.close(folder)
    return path


# --- reading -----------------------------------------------------------------------------------------------------


def read_rows(out: Path) -> pd.DataFrame:
    """Return the rows of a sweep, in the order of `cell_key`.

    Null is NaN in float columns and `pd.NA` in counts and flags; `metrics` holds dicts.

    Args:
        out: the sweep's folder, or a Parquet file with rows.

    Raises:
        ResultsError: there is no such file, it is damaged, or something else wrote it.
    """
    return _row_frame(_read(out, ROWS_FILE, ROW))


def read_curves(out: Path) -> pd.DataFrame:
    """Return the curves of a sweep in long form; errors as `read_rows`."""
    return _frame(_read(out, CURVES_FILE, CURVE))


def read_records(out: Path, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a sweep as plain dicts, as they were given to `write_rows`: null is None, never NaN.

    Args:
        out: the sweep's folder, or a Parquet file with rows.
        names: the columns wanted; None for all.
    """
    table = _read(out, ROWS_FILE, ROW)
    records: list[dict[str, Any]] = table.select(names or ROW.names).to_pylist(maps_as_pydicts="strict")
    return records


def plain_curves(out: Path) -> list[dict[str, Any]]:
    """Return the curves of a sweep as `write_curves` takes them; errors as `read_rows`."""
    points: list[dict[str, Any]] = _read(out, CURVES_FILE, CURVE).to_pylist()
    return points


def frame_of(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows that were never written as `read_rows` would return them."""
    return _row_frame(_table(rows, ROW, ("cell_key",)))


def _row_frame(table: pa.Table) -> pd.DataFrame:
    frame = _frame(table.drop_columns(["metrics"]))
    frame["metrics"] = pd.Series(list(_dicts(table["metrics"])), dtype=object)
    return frame


def _frame(table: pa.Table) -> pd.DataFrame:
    kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
    return frame


def _dicts(column: pa.ChunkedArray[Any]) -> Iterator[dict[str, float]]:
    """Return one dict per row of a map column; whole arrays are converted at once, which is 10 times faster."""
    for chunk in column.chunks:
        part: Any = chunk  # a MapArray
        keys, values = part.keys.to_pylist(), part.items.to_numpy(zero_copy_only=False).tolist()
        for start, end in pairwise(part.offsets.to_pylist()):
            yield dict(zip(keys[start:end], values[start:end], strict=True))


def _read(out: Path, name: str, schema: pa.Schema) -> pa.Table:
    path = out if out.suffix == ".parquet" else out / name
    if not path.is_file():
        raise ResultsError(f"{path}: no such file; name the output folder of a sweep (assay run GRID -o OUT makes one)")
    try:
        found = pq.read_schema(path).metadata or {}
        table_name, version = found.get(b"table"), found.get(b"schema_version")
        if table_name is None or version is None:
            raise ResultsError(f"{path}: a Parquet file, but not one of assay's; name the output folder of a sweep")
        expected = schema.metadata
        if table_name != expected[b"table"]:
            raise ResultsError(f"{path}: holds {table_name.decode()}, not {expected[b'table'].decode()}")
        newest = expected[b"schema_version"].decode()
        if not version.decode().isdecimal() or int(version) > int(newest):
            raise ResultsError(
                f"{path}: schema version {version.decode()}, this assay reads up to {newest}; "
                "run the grid again into another folder, or install a newer assay"
            )
        # Columns that an older version lacks are null; running the grid again fills them from the store.
        return pq.read_table(path, schema=schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as why:
        raise Damaged(
            f"{path}: damaged or no Parquet file ({_one_line(why)}); "
            "run the grid again into the same folder to rebuild it from the store"
        ) from why


def _one_line(why: BaseException) -> str:
    return " ".join(str(why).split())[:160]


# --- comparing ---------------------------------------------------------------------------------------------------


def rows_equal(a: Path, b: Path) -> list[str]:
    """Return the differences between two sweeps' rows, one line each; timings are ignored, floats compared bitwise.

    Args:
        a: a sweep's folder or Parquet file.
        b: another one.
    """
    names = [name for name in ROW.names if name not in TIMING_COLUMNS]
    left, right = ({row["cell_key"]: row for row in read_records(out, names)} for out in (a, b))
    lines = [f"cell {key}: only in {a}" for key in sorted(left.keys() - right.keys())]
    lines += [f"cell {key}: only in {b}" for key in sorted(right.keys() - left.keys())]
    for key in sorted(left.keys() & right.keys()):
        lines += [
            f"cell {key}: {name}: {left[key][name]!r} in {a}, {right[key][name]!r} in {b}"
            for name in names
            if _bits(left[key][name]) != _bits(right[key][name])
        ]
    return lines


def _bits(value: Any) -> Any:
    """Return a value whose equality is bitwise: -0.0 differs from 0.0, and NaN equals NaN."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {name: _bits(number) for name, number in value.items()}
    return value
