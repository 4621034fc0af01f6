"""Rows, curves and nulls to and from Parquet: one file each, replaced as a whole, never appended to."""

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

from assay.results.errors import ResultsError, unknown
from assay.results.schema import (
    COLUMNS,
    CURVE,
    CURVE_ORDER,
    CURVES_FILE,
    NULL,
    NULL_ORDER,
    NULLS_FILE,
    READING,
    ROW,
    ROWS_FILE,
    STAGES,
    TIMING_COLUMNS,
)

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "stage": STAGES,
    **{column.name: column.choices for column in COLUMNS if column.choices},
}
_NESTED: Final = tuple(field.name for field in ROW if pa.types.is_nested(field.type))  # read as dicts
_FIELDS: Final[Mapping[str, pa.Field[Any]]] = {field.name: field for field in READING if field.name != "name"}


# --- writing -----------------------------------------------------------------------------------------------------


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Replace `OUT/rows.parquet` by these rows, sorted by `cell_key`.

    Args:
        out: the sweep's folder, created if missing.
        rows: one mapping per cell with exactly the columns of `schema.ROW`; `metrics` is a mapping of numbers, and
            `readings` a mapping from names to `schema.Reading`, or None.

    Raises:
        ResultsError: a key is unknown, missing, of the wrong type or null where it must not be, or a cell is doubled.
    """
    return _replace(out / ROWS_FILE, _table(rows, ROW, ("cell_key",)))


def write_curves(out: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Replace `OUT/curves.parquet` by these points, sorted by stage, curve, step and metric; errors as `write_rows`."""
    return _replace(out / CURVES_FILE, _table(rows, CURVE, CURVE_ORDER))


def write_nulls(out: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Replace `OUT/nulls.parquet` by these points (`nulls.null_points`), sorted by null, model and key.

    Errors as `write_rows`.
    """
    return _replace(out / NULLS_FILE, _table(rows, NULL, NULL_ORDER))


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
    for record, value in zip(records, values, strict=True):
        if why := _fault(field, value):
            raise ResultsError(f"{identity[0]} {record[identity[0]]}: {why}")
    if pa.types.is_map(field.type):
        values = [sorted(value.items()) if isinstance(value, Mapping) else value for value in values]
    elif pa.types.is_list(field.type):
        values = [_listed(value) if isinstance(value, Mapping) else value for value in values]
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError) as why:
        raise ResultsError(f"column {field.name}: a value is not {field.type} ({_one_line(why)})") from why


def _fault(field: pa.Field[Any], value: Any) -> str:
    """Return what is wrong with a value, in words; empty if nothing is, as far as Arrow does not see it itself."""
    if value is None:
        return "" if field.nullable else f"{field.name} is null; it is needed in every row"
    if field.name in _CHOICES and value not in _CHOICES[field.name]:
        return str(unknown(field.name, str(value), _CHOICES[field.name]))
    if pa.types.is_list(field.type):
        return _fault_of_readings(value)
    # Arrow would read True as 1.0 and cut 1.5 down to 1.
    flag = isinstance(value, bool) and not pa.types.is_boolean(field.type)
    if flag or (isinstance(value, float) and pa.types.is_integer(field.type)):
        return f"{field.name} is {value}; {field.type} is needed"
    return ""


def _fault_of_readings(readings: Any) -> str:
    if not isinstance(readings, Mapping):
        return f"readings is {type(readings).__name__}; a mapping from names to readings is needed"
    for name, reading in readings.items():
        if reading.keys() != _FIELDS.keys():
            extra, lost = sorted(reading.keys() - _FIELDS.keys()), sorted(_FIELDS.keys() - reading.keys())
            why = str(unknown("figure", extra[0], _FIELDS)) if extra else f"missing figure {', '.join(lost)}"
            return f"reading {name!r}: {why}"
        for field in _FIELDS.values():
            if why := _fault(field, reading[field.name]):
                return f"reading {name!r}: {why}"
    return ""


def _listed(readings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": name, **readings[name]} for name in sorted(readings)]


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

    Null is NaN in float columns and `pd.NA` in counts and flags; `metrics` holds dicts, `readings` dicts of
    `schema.Reading`, or None.

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
    table = _read(out, ROWS_FILE, ROW).select(names or ROW.names)
    columns = [list(_made(table[name])) if name in _NESTED else table[name].to_pylist() for name in table.column_names]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def plain_curves(out: Path) -> list[dict[str, Any]]:
    """Return the curves of a sweep as `write_curves` takes them; errors as `read_rows`."""
    points: list[dict[str, Any]] = _read(out, CURVES_FILE, CURVE).to_pylist()
    return points


def read_nulls(out: Path) -> pd.DataFrame:
    """Return the nulls of a sweep, one row per null, model and key; errors as `read_rows`.

    A sweep that was written before schema version 3 has rows but no nulls: the table is empty.
    """
    return _frame(_nulls(out))


def plain_nulls(out: Path) -> list[dict[str, Any]]:
    """Return the nulls of a sweep as `write_nulls` takes them; otherwise as `read_nulls`."""
    points: list[dict[str, Any]] = _nulls(out).to_pylist()
    return points


def _nulls(out: Path) -> pa.Table:
    if (out / ROWS_FILE).is_file() and not (out / NULLS_FILE).exists():
        return NULL.empty_table()
    return _read(out, NULLS_FILE, NULL)


def frame_of(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows that were never written as `read_rows` would return them."""
    return _row_frame(_table(rows, ROW, ("cell_key",)))


def _row_frame(table: pa.Table) -> pd.DataFrame:
    frame = _frame(table.drop_columns(list(_NESTED)))
    nested = {name: pd.Series(list(_made(table[name])), dtype=object) for name in _NESTED}
    return frame.assign(**nested)[table.column_names]


def _frame(table: pa.Table) -> pd.DataFrame:
    kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
    return frame


def _made(column: pa.ChunkedArray[Any]) -> Iterator[dict[str, Any] | None]:
    """Return one dict per row of a nested column; whole arrays are converted at once, which is 10 times faster."""
    for chunk in column.chunks:
        part: Any = chunk  # a MapArray or a ListArray
        keys, values = _pairs(part) if pa.types.is_map(part.type) else _named(part)
        for there, (start, end) in zip(part.is_valid().to_pylist(), pairwise(part.offsets.to_pylist()), strict=True):
            yield dict(zip(keys[start:end], values[start:end], strict=True)) if there else None


def _pairs(part: Any) -> tuple[list[str], list[float]]:
    return part.keys.to_pylist(), part.items.to_numpy(zero_copy_only=False).tolist()


def _named(part: Any) -> tuple[list[str], list[dict[str, Any]]]:
    figures = [part.values.field(name).to_pylist() for name in _FIELDS]
    readings = [dict(zip(_FIELDS, values, strict=True)) for values in zip(*figures, strict=True)]
    return part.values.field("name").to_pylist(), readings


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
        raise ResultsError(
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
