"""Many new MLflow runs at once: in one transaction where MLflow is a local database, else call by call.

MLflow's client spends 15-20 ms of processor time on a run, most of it on transactions; written together a run takes
about 1 ms. The tables are read from the database itself, and whatever is not exactly as known goes through the client.
"""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

Point = tuple[str, float, int, int]  # name, value, timestamp in ms, step

_BATCH: Final = 1000  # metrics that MLflow takes in one call
_COLUMNS: Final[Mapping[str, set[str]]] = {
    "runs": {
        *("run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id", "status", "start_time"),
        *("end_time", "deleted_time", "source_version", "lifecycle_stage", "artifact_uri", "experiment_id"),
    },
    "tags": {"key", "value", "run_uuid"},
    "params": {"key", "value", "run_uuid"},
    "metrics": {"key", "value", "timestamp", "run_uuid", "step", "is_nan"},
    "latest_metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
}


@dataclass(frozen=True)
class NewRun:
    """A whole run: its times in ms since 1970 (None: now), its status in MLflow's words, and what it logs."""

    name: str
    status: str
    start: int | None
    end: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: Sequence[Point]


class Inserter(Protocol):
    """Writes runs into one experiment."""

    def write(self, runs: Sequence[NewRun]) -> list[str]:
        """Write runs whole; return their ids in the same order."""


def inserter(client: Any, uri: str, experiment: str) -> Inserter:
    """Return the fastest inserter for an experiment (its id) at a tracking address."""
    tables = _known_tables(uri) if uri.startswith("sqlite:///") else None
    if tables is None:
        return ByClient(client, experiment)
    return ByTables(*tables, experiment, client.get_experiment(experiment).artifact_location)


def _known_tables(uri: str) -> tuple[Any, Mapping[str, Any]] | None:
    """Return (engine, tables by name) if the database has the columns that we know, and no others."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine, only=lambda name, _: name in _COLUMNS, resolve_fks=False)
    found = {name: set(table.columns.keys()) for name, table in metadata.tables.items()}
    return (engine, metadata.tables) if found == _COLUMNS else None


class ByClient:
    """Through MLflow's client: three calls per run and more for long curves."""

    def __init__(self, client: Any, experiment: str) -> None:
        self._client, self._experiment = client, experiment

    def write(self, runs: Sequence[NewRun]) -> list[str]:
        """Write runs one after the other."""
        return [self._write(run) for run in runs]

    def _write(self, run: NewRun) -> str:
        made = self._client.create_run(self._experiment, start_time=run.start, tags=dict(run.tags), run_name=run.name)
        run_id: str = made.info.run_id
        log(self._client, run_id, run.points, run.params, {})
        self._client.set_terminated(run_id, run.status, run.end)
        return run_id


def log(client: Any, run_id: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Add to a run through the client; the tags go last, because they say that the rest is there."""
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(name, value, stamp, step) for name, value, stamp, step in points]
    settings = [Param(name, value) for name, value in params.items()]
    labels = [RunTag(name, value) for name, value in tags.items()]
    batches = [metrics[start : start + _BATCH] for start in range(0, len(metrics), _BATCH)] or [[]]
    for batch in batches[:-1]:
        client.log_batch(run_id, batch)
    if batches[-1] or settings or labels:
        client.log_batch(run_id, batches[-1], settings, labels)


class ByTables:
    """Into the database's tables, as MLflow's own store would fill them; all runs or none."""

    def __init__(self, engine: Any, tables: Mapping[str, Any], experiment: str, artifacts: str) -> None:
        self._engine, self._tables = engine, tables
        self._experiment, self._artifacts = int(experiment), artifacts.rstrip("/")

    def write(self, runs: Sequence[NewRun]) -> list[str]:
        """Write runs in one transaction."""
        ids = [uuid.uuid4().hex for _ in runs]
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _COLUMNS}
        for run_id, run in zip(ids, runs, strict=True):
            rows["runs"].append(self._run(run_id, run))
            tags = {**run.tags, "mlflow.runName": run.name}
            rows["tags"] += [{"run_uuid": run_id, "key": key, "value": value} for key, value in tags.items()]
            rows["params"] += [{"run_uuid": run_id, "key": key, "value": value} for key, value in run.params.items()]
            rows["metrics"] += _metrics(run_id, run.points)
            latest = {point[0]: point for point in sorted(run.points, key=_recency)}
            rows["latest_metrics"] += _metrics(run_id, latest.values())
        with self._engine.begin() as connection:
            for name, entries in rows.items():
                if entries:
                    connection.execute(self._tables[name].insert(), entries)
        return ids

    def _run(self, run_id: str, run: NewRun) -> dict[str, Any]:
        now = round(1000 * time.time())
        return {
            **dict.fromkeys(_COLUMNS["runs"]),
            "run_uuid": run_id,
            "name": run.name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": run.status,
            "start_time": now if run.start is None else run.start,
            "end_time": now if run.end is None else run.end,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"{self._artifacts}/{run_id}/artifacts",
            "experiment_id": self._experiment,
        }


def _recency(point: Point) -> tuple[int, int, float]:
    """Return the order in which MLflow calls a metric's value its latest."""
    _, value, stamp, step = point
    return step, stamp, -math.inf if math.isnan(value) else value


def _metrics(run_id: str, points: Iterable[Point]) -> list[dict[str, Any]]:
    largest = sys.float_info.max  # in place of infinities, as MLflow does
    return [
        {
            "run_uuid": run_id,
            "key": name,
            "value": 0.0 if math.isnan(value) else min(max(value, -largest), largest),
            "is_nan": math.isnan(value),
            "timestamp": stamp,
            "step": step,
        }
        for name, value, stamp, step in dict.fromkeys(points)
    ]
