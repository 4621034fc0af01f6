"""What a cell looks like as an MLflow run, and what has to be written to have it there."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from assay.results.configs import flat, label, show, varying
from assay.results.mlflow_bulk import NewRun, Point, inserter, log
from assay.results.schema import ROW

CURVE_POINTS: Final = 100  # a curve is thinned to so many points; Parquet holds them all
_VALUE: Final = 6000  # characters of a parameter, likewise
_PAGE: Final = 1000
_STATUS: Final = {"ok": "FINISHED", "not_applicable": "FINISHED", "failed": "FAILED", "blocked": "KILLED"}

_TOGETHER: Final = 500  # new runs that are written at once

Row = Mapping[str, Any]

_NUMBERS = (
    *(f.name for f in ROW if pa.types.is_float64(f.type) or pa.types.is_boolean(f.type)),
    *("forward_samples", "backward_samples", "queries", "unique_samples"),
)
_RATES = frozenset(f.name for f in ROW if pa.types.is_float64(f.type))


@dataclass
class _Run:
    run_id: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)


class Writer:
    """Writes rows as runs of one experiment; every method can be repeated without effect.

    New leaves are collected; `flush` writes them.

    Args:
        uri: MLflow's tracking address.
        experiment: its name, created if missing.
        artifacts: the experiment's artifact location; None leaves it to the server. Nothing is ever stored there.
    """

    def __init__(self, uri: str, experiment: str, artifacts: str | None) -> None:
        _prepare_environment()
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            self._experiment = self._client.create_experiment(experiment, artifact_location=artifacts)
        else:
            self._experiment = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
        _write_ahead(uri)
        self._inserter = inserter(self._client, uri, self._experiment)
        self._pending: dict[str, NewRun] = {}
        self._runs = self._search()

    def _search(self) -> dict[str, _Run]:
        """Return every run of the experiment by its key."""
        runs: dict[str, _Run] = {}
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=_PAGE, page_token=token)
            for run in page:
                if key := run.data.tags.get("cell_key"):
                    runs[key] = _Run(run.info.run_id, run.data.tags, run.data.params)
            token = page.token
            if not token:
                return runs

    def leaf(self, row: Row, params: Mapping[str, str] | None = None, curves: pd.DataFrame | None = None) -> bool:
        """Write one cell below its parent, by `flush` at the latest; return whether its run was missing or outdated."""
        if row["cell_key"] in self._pending or len(self._pending) >= _TOGETHER:
            self.flush()
        key, digest = row["cell_key"], _digest(row)
        stamp = _milliseconds(row["ended"])
        drawn = _points(curves, stamp) if curves is not None else []
        extra = {"curves": _short(json.dumps(drawn))} if drawn else {}
        known = self._runs.get(key)
        if known and known.tags.get("row") == digest:
            self._add(known, drawn, params or {}, extra)
            return False
        if known:  # metrics and parameters cannot be taken back: a changed cell gets a new run
            self._client.delete_run(known.run_id)
        tags = {
            **{"cell_key": key, "row": digest, "stage": "attack", "method": row["method"], "dataset": row["dataset"]},
            **{"task": row["task"], "attack": row["attack"], "status": row["status"], "outcome": row["outcome"] or ""},
            **{"seed": f"{row['victim_seed']}.{row['attack_seed']}", "reason": row["reason"][:_VALUE]},
            **{"mlflow.parentRunId": self._parent(row).run_id, **extra},
        }
        self._pending[key] = NewRun(
            name=f"{row['method']} {row['attack']} {tags['seed']}",
            status=_STATUS[row["status"]],
            start=_milliseconds(row["started"]) or stamp or None,
            end=stamp or None,
            tags=tags,
            params=dict(params or {}),
            points=_figures(row, stamp) + drawn,
        )
        return True

    def flush(self) -> None:
        """Write the leaves collected so far."""
        runs = list(self._pending.values())
        for key, run, run_id in zip(self._pending, runs, self._inserter.write(runs), strict=True):
            self._runs[key] = _Run(run_id, dict(run.tags), dict(run.params))
        self._pending.clear()

    def sweep(self, rows: Sequence[Row], curves: pd.DataFrame | None) -> int:
        """Write a whole sweep: leaves with their curves and varying parameters, then the parents' summaries."""
        stages: dict[str, pd.DataFrame] = {}
        if curves is not None:
            stages = {str(key): part for key, part in curves.groupby("stage_key", sort=False)}
        methods = _varying(rows, "method")
        attacks = _varying(rows, "attack")
        families: dict[str, list[Row]] = defaultdict(list)
        new = 0
        for row in rows:
            params = {**_params(row, "method", methods), **_params(row, "attack", attacks)}
            new += self.leaf(row, params, stages.get(row["attack_key"] or ""))
            families[_family(row)].append(row)
        self.flush()
        for family in families.values():
            self._summary(family, _params(family[0], "method", methods), attacks, stages)
        return new

    def _parent(self, row: Row) -> _Run:
        key = _family(row)
        if key not in self._runs:
            tags = {
                **{"cell_key": key, "stage": "embed", "method": row["method"], "dataset": row["dataset"]},
                **{"task": row["task"], "profile": row["profile"]},
            }
            start = _milliseconds(row["started"])
            self._runs[key] = self._create(f"{row['method']} {row['task']}", tags, start)
        return self._runs[key]

    def _summary(
        self,
        rows: list[Row],
        params: Mapping[str, str],
        attacks: Mapping[str, tuple[str, ...]],
        stages: Mapping[str, pd.DataFrame],
    ) -> None:
        """Give a parent the means over its cells, so that methods compare without opening the leaves."""
        parent = self._parent(rows[0])
        stamp = max(_milliseconds(row["ended"]) for row in rows)
        # The step counts the cells behind a mean: it grows with the sweep, and MLflow shows the last step's value.
        means = [(name, value, stamp, len(rows)) for name, value in _means(rows, attacks).items()]
        for row in {row["embed_key"]: row for row in rows if row["embed_key"] in stages}.values():
            means += _points(stages[row["embed_key"]], stamp, f"embed.seed-{row['victim_seed']}.")
        digest = _short(json.dumps(means))
        if parent.tags.get("row") != digest:
            log(self._client, parent.run_id, means, {**params}, {"row": digest})
            parent.tags["row"] = digest
            self._client.set_terminated(parent.run_id, "FINISHED", stamp or None)
        else:
            self._add(parent, [], params, {})

    def _create(self, name: str, tags: Mapping[str, str], start: int) -> _Run:
        run = self._client.create_run(self._experiment, start_time=start or None, tags=dict(tags), run_name=name)
        return _Run(run.info.run_id, dict(tags))

    def _add(self, run: _Run, points: list[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add what a run lacks: curves that came later, parameters that vary only since the sweep grew."""
        lacking = {name: value for name, value in params.items() if name not in run.params}
        stale = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        if lacking or stale:
            log(self._client, run.run_id, points if stale else [], lacking, stale)
            run.params.update(lacking)
            run.tags.update(stale)


# --- what a run says ---------------------------------------------------------------------------------------------


def _figures(row: Row, stamp: int) -> list[Point]:
    """Return a row's numbers under the names of their columns, and the method's own under `metrics.`."""
    known = {name: row[name] for name in _NUMBERS if row[name] is not None}
    own = {f"metrics.{name}": value for name, value in row["metrics"].items()}
    return [(_clean(name), float(value), stamp, 0) for name, value in {**known, **own}.items()]


def _points(curves: pd.DataFrame, stamp: int, prefix: str = "") -> list[Point]:
    points: list[Point] = []
    for (curve, metric), part in curves.groupby(["curve", "metric"], sort=True):
        name = _clean(f"{prefix}{curve}.{metric}")
        steps, values = part["step"].tolist(), part["value"].tolist()
        points += [(name, float(values[i]), stamp, int(steps[i])) for i in _thin(len(steps))]
    return points


def _thin(count: int) -> list[int]:
    """Return at most `CURVE_POINTS` positions, evenly spread, the first and the last among them."""
    if count <= CURVE_POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]


def _means(rows: list[Row], attacks: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] != "ok":
            continue
        attack = label(row["attack"], row["attack_config"], attacks[row["attack"]])
        for name in ("main_clean", "main_before", "score_before", "detected_before"):
            values[name].append(_number(row[name]))
        for name in ("main_after", "score_after", "detected_after"):
            values[f"{name}.{attack}"].append(_number(row[name]))
        values[f"removed.{attack}"].append(float(row["outcome"] == "removed"))
    known = {name: [v for v in found if not math.isnan(v)] for name, found in values.items()}
    return {_clean(name): sum(found) / len(found) for name, found in known.items() if found}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _varying(rows: Iterable[Row], plugin: str) -> dict[str, tuple[str, ...]]:
    """Return for each method (or attack) the parameters that differ within the sweep."""
    configs: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        configs[row[plugin]][row[f"{plugin}_config"]] = None
    return {key: varying(texts) for key, texts in configs.items()}


def _params(row: Row, plugin: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    config = flat(row[f"{plugin}_config"])
    return {f"{plugin}.{n}": show(config[n])[:_VALUE] for n in names[row[plugin]] if n in config}


def _family(row: Row) -> str:
    """Return the key of a cell's parent: task, profile, method and its configuration."""
    return "parent-" + _short(json.dumps([row["task"], row["profile"], row["method"], row["method_config"]]))


def _digest(row: Row) -> str:
    """Return a hash of all that a row says; it is the same for a row in memory and one read from Parquet."""
    plain = {name: float(row[name]) if name in _RATES and row[name] is not None else row[name] for name in ROW.names}
    plain["metrics"] = {name: float(value) for name, value in row["metrics"].items()}
    return _short(json.dumps(plain, sort_keys=True))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _clean(name: str) -> str:
    """Return a name that MLflow accepts, at most 250 characters."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("=", "_").replace(" ", "."))[:250]


def _milliseconds(text: str | None) -> int:
    """Return an ISO time as milliseconds since 1970, 0 without one; the record's own time makes writing repeatable."""
    return round(datetime.fromisoformat(text).timestamp() * 1000) if text else 0


# --- MLflow's surroundings ---------------------------------------------------------------------------------------


def _prepare_environment() -> None:
    """Fail fast instead of retrying for minutes, send no telemetry, and keep migration logs off the terminal."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _write_ahead(uri: str) -> None:
    """Switch a local database to a write-ahead log, which the file remembers: half the time per run."""
    if uri.startswith("sqlite:///"):
        database = sqlite3.connect(uri.removeprefix("sqlite:///"))
        try:
            database.execute("PRAGMA journal_mode=WAL")
        finally:
            database.close()
