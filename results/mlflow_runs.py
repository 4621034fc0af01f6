"""What a cell looks like as an MLflow run, and what has to be written to have it there.

A leaf is one cell. Its parent is one victim setting: task, method and all that distinguishes two cells before the
attack (configurations, versions, plugin sources, numerics, data), seeds apart. The parent's figures are means over
seeds; figures after an attack are named by the attack, with whatever of its settings differs within the sweep.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
import pyarrow as pa

from assay.results.configs import flat, show, varying
from assay.results.schema import ROW

Point = tuple[str, float, int, int]  # name, value, timestamp in ms, step
Row = Mapping[str, Any]
Part = Literal["task", "method", "attack"]
Names = Mapping[Part, Mapping[str, tuple[str, ...]]]  # by part and its key: the settings that vary within the sweep

CURVE_POINTS: Final = 100  # a curve is thinned to so many points; Parquet holds them all
_BATCH: Final = 1000  # metrics that MLflow takes in one call
_FEW: Final = 100  # parameters, or tags, that it takes in one call
_NAME: Final = 250  # characters of a metric's or parameter's name
_TEXT: Final = 6000  # characters of a parameter, likewise
_PAGE: Final = 1000
_STATUS: Final = {"ok": "FINISHED", "not_applicable": "FINISHED", "failed": "FAILED", "blocked": "KILLED"}

_CONFIGS: Final[Mapping[Part, Mapping[str, str]]] = {  # prefix of a parameter's name -> column with JSON text
    "task": {"task": "task_config", "calibration": "calibration_config", "numerics": "numerics"},
    "method": {"method": "method_config"},
    "attack": {"attack": "attack_config"},
}
_WORDS: Final[Mapping[Part, tuple[str, ...]]] = {
    "task": ("profile", "split", "data"),
    "method": ("method_version", "method_source"),
    "attack": ("attack_version", "attack_source"),
}
_SETTINGS: Final = {*("victim_seed", "attack_seed"), *(name for names in _WORDS.values() for name in names)}
_NUMBERS: Final = tuple(
    f.name
    for f in ROW
    if (pa.types.is_floating(f.type) or pa.types.is_integer(f.type) or pa.types.is_boolean(f.type))
    and f.name not in _SETTINGS
)


@dataclass
class _Run:
    run_id: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # the latest values
    whole: bool = True  # False: whoever wrote it was interrupted


class Writer:
    """Writes rows as runs of one experiment; every method can be repeated without effect.

    Args:
        uri: MLflow's tracking address.
        experiment: its name, created if missing.
        artifacts: the experiment's artifact location; None leaves it to the server. Nothing is ever stored there.
        sweep: the sweep's identity; every run that is created, and a created experiment, has it as the tag `sweep`.
    """

    def __init__(self, uri: str, experiment: str, artifacts: str | None, sweep: str) -> None:
        _prepare_environment()
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self._sweep = sweep
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            tags = {"sweep": sweep}
            self._experiment = self._client.create_experiment(experiment, artifact_location=artifacts, tags=tags)
        else:
            self._experiment = found.experiment_id
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
        self._runs = self._search()

    def _search(self) -> dict[str, _Run]:
        """Return every run of the experiment by its key."""
        runs: dict[str, _Run] = {}
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=_PAGE, page_token=token)
            for run in page:
                if key := run.data.tags.get("cell_key"):
                    whole = run.info.status != "RUNNING"
                    runs[key] = _Run(run.info.run_id, run.data.tags, run.data.params, run.data.metrics, whole)
            token = page.token
            if not token:
                return runs

    def leaf(self, row: Row, params: Mapping[str, str] | None = None, curves: pd.DataFrame | None = None) -> bool:
        """Write one cell below its parent; return whether its run was missing, outdated or half written."""
        key, digest = row["cell_key"], _digest(row)
        stamp = _milliseconds(row["ended"])
        drawn = _points(curves, stamp) if curves is not None else []
        extra = {"curves": _short(json.dumps(drawn))} if drawn else {}
        known = self._runs.get(key)
        if known and known.whole and known.tags.get("row") == digest:
            self._add(known, drawn, params or {}, extra)
            return False
        if known:  # metrics and parameters cannot be taken back: a changed cell gets a new run
            self._client.delete_run(known.run_id)
        seed = f"{row['victim_seed']}.{row['attack_seed']}"
        tags = {
            **{"cell_key": key, "row": digest, "stage": "attack", "method": row["method"], "dataset": row["dataset"]},
            **{"task": row["task"], "attack": row["attack"], "status": row["status"], "outcome": row["outcome"] or ""},
            **{"seed": seed, "reason": row["reason"][:_TEXT], "mlflow.parentRunId": self._parent(row).run_id},
            **_tags(row, "attack"),
            **extra,
        }
        start = _milliseconds(row["started"]) or stamp
        made = self._create(key, f"{row['method']} {row['attack']} {seed}", tags, start)
        self._log(made.run_id, _figures(row, stamp) + drawn, params or {}, {})
        made.params.update(params or {})
        # The status comes last: a run that is still RUNNING was interrupted, and is written again.
        self._client.set_terminated(made.run_id, _STATUS[row["status"]], stamp or None)
        made.whole = True
        return True

    def sweep(self, rows: Sequence[Row], curves: pd.DataFrame | None) -> int:
        """Write a whole sweep: leaves with their curves and varying parameters, then the parents' summaries.

        Runs of this sweep whose cells are no longer among the rows are deleted.

        Returns:
            The number of new or changed cells.
        """
        stages: dict[str, pd.DataFrame] = {}
        if curves is not None:
            stages = {str(key): part for key, part in curves.groupby("stage_key", sort=False)}
        names: Names = {part: _varying(rows, part) for part in _CONFIGS}
        families: dict[str, list[Row]] = defaultdict(list)
        new = 0
        for row in rows:
            new += self.leaf(row, _params(row, names, "task", "method", "attack"), stages.get(row["attack_key"] or ""))
            families[_family(row)].append(row)
        for family in families.values():
            self._summary(family, names, stages)
        self._drop({row["cell_key"] for row in rows} | families.keys())
        return new

    def _drop(self, keys: Collection[str]) -> None:
        """Delete this sweep's runs of other keys; runs that another sweep wrote stay."""
        for key in [key for key, run in self._runs.items() if run.tags.get("sweep") == self._sweep]:
            if key not in keys:
                self._client.delete_run(self._runs.pop(key).run_id)

    def _parent(self, row: Row) -> _Run:
        key = _family(row)
        if key not in self._runs:
            tags = {
                **{"cell_key": key, "stage": "embed", "method": row["method"], "dataset": row["dataset"]},
                **{"task": row["task"], **_tags(row, "task"), **_tags(row, "method")},
            }
            self._create(key, f"{row['method']} {row['task']}", tags, _milliseconds(row["started"]))
        return self._runs[key]

    def _summary(self, rows: Sequence[Row], names: Names, stages: Mapping[str, pd.DataFrame]) -> None:
        """Give a parent the means over its seeds, so that settings compare without opening the leaves."""
        parent = self._parent(rows[0])
        stamp = max(_milliseconds(row["ended"]) for row in rows)
        means = _means(rows, names["attack"])
        curves = []
        for row in {row["embed_key"]: row for row in rows if row["embed_key"] in stages}.values():
            curves += _points(stages[row["embed_key"]], stamp, f"embed.seed-{row['victim_seed']}.")
        params = _params(rows[0], names, "task", "method")
        digest = _short(json.dumps([means, curves]))
        if parent.tags.get("row") == digest:
            self._add(parent, [], params, {})
            return
        # MLflow shows the value of the last step, and cannot take one back: a mean that is gone becomes NaN.
        step = int(parent.tags.get("revision", "0")) + 1
        gone = parent.metrics.keys() - means.keys() - {name for name, *_ in curves}
        values = {**means, **{name: math.nan for name in gone if not math.isnan(parent.metrics[name])}}
        points = [(name, value, stamp, step) for name, value in values.items()]
        tags = {"row": digest, "revision": str(step)}
        lacking = {name: value for name, value in params.items() if name not in parent.params}
        self._log(parent.run_id, points + curves, lacking, tags)
        self._client.set_terminated(parent.run_id, "FINISHED", stamp or None)
        parent.tags.update(tags)
        parent.params.update(lacking)
        parent.metrics.update(values)

    def _create(self, key: str, name: str, tags: Mapping[str, str], start: int) -> _Run:
        own = {**tags, "sweep": self._sweep}
        run = self._client.create_run(self._experiment, start_time=start or None, tags=own, run_name=name)
        self._runs[key] = _Run(run.info.run_id, own, whole=False)
        return self._runs[key]

    def _add(self, run: _Run, points: list[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add what a run lacks: curves that came later, parameters that vary only since the sweep grew."""
        lacking = {name: value for name, value in params.items() if name not in run.params}
        stale = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        if lacking or stale:
            self._log(run.run_id, points if stale else [], lacking, stale)
            run.params.update(lacking)
            run.tags.update(stale)

    def _log(self, run_id: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add to a run, in one call unless it is long; the tags go last, because they say that the rest is there."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(name, value, stamp, step) for name, value, stamp, step in points]
        settings = [Param(name, value) for name, value in params.items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        while len(metrics) > _BATCH or len(settings) > _FEW:
            self._client.log_batch(run_id, metrics[:_BATCH], settings[:_FEW])
            metrics, settings = metrics[_BATCH:], settings[_FEW:]
        if metrics or settings or labels:
            self._client.log_batch(run_id, metrics, settings, labels)


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


def _means(rows: Sequence[Row], attacks: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Return means over the seeds of one victim setting's finished cells.

    A figure that has two values for one seed is left out: something that its row does not say differs.
    """
    found: dict[str, dict[tuple[int, ...], set[float]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        if row["status"] != "ok":
            continue
        for name in ("main_clean", "main_before", "score_before", "detected_before"):
            found[name][(row["victim_seed"],)].add(_number(row[name]))
        label, seeds = _label(row, attacks[row["attack"]]), (row["victim_seed"], row["attack_seed"])
        for name in ("main_after", "score_after", "detected_after"):
            found[f"{name}.{label}"][seeds].add(_number(row[name]))
        found[f"removed.{label}"][seeds].add(float(row["outcome"] == "removed"))
    means = {}
    for name, by_seed in found.items():
        known = [{value for value in values if not math.isnan(value)} for values in by_seed.values()]
        values = [value for values in known for value in values]
        if values and all(len(values) <= 1 for values in known):
            means[_clean(name)] = math.fsum(values) / len(values)
    return means


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# --- what distinguishes cells ------------------------------------------------------------------------------------


def _settings(row: Row, part: Part) -> str:
    """Return as canonical JSON all that a row says of a task, method or attack beside its key; null says nothing."""
    settings: dict[str, Any] = {}
    for prefix, column in _CONFIGS[part].items():
        settings |= {f"{prefix}.{name}": value for name, value in flat(row.get(column) or "{}").items()}
    for name in _WORDS[part]:
        if (value := row.get(name)) is not None:
            settings[name] = value if value != "" else "shipped"  # only the source of a shipped plugin is empty
    return json.dumps(settings, sort_keys=True)


def _varying(rows: Iterable[Row], part: Part) -> dict[str, tuple[str, ...]]:
    """Return for each task, method or attack the settings that differ within the sweep."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        texts[row[part]][_settings(row, part)] = None
    return {key: varying(found) for key, found in texts.items()}


def _params(row: Row, names: Names, *parts: Part) -> dict[str, str]:
    params: dict[str, str] = {}
    for part in parts:
        settings = flat(_settings(row, part))
        params |= {_clean(n): show(settings[n])[:_TEXT] for n in names[part][row[part]] if n in settings}
    return params


def _tags(row: Row, part: Part) -> dict[str, str]:
    """Return the columns behind `_settings` as they stand in the row."""
    columns = (*_CONFIGS[part].values(), *_WORDS[part])
    return {name: str(row[name])[:_TEXT] for name in columns if row.get(name) is not None}


def _label(row: Row, names: Iterable[str]) -> str:
    """Return an attack's key followed by its varying settings, as in `prune ratio=0.5 attack_version=2`."""
    settings = flat(_settings(row, "attack"))
    shown = (f"{name.removeprefix('attack.')}={show(settings[name])}" for name in names if name in settings)
    return " ".join([row["attack"], *shown])


def _family(row: Row) -> str:
    """Return the key of a cell's parent: all that distinguishes two victims, but for the seed."""
    return "parent-" + _short(
        json.dumps([row["task"], row["method"], _settings(row, "task"), _settings(row, "method")])
    )


def _digest(row: Row) -> str:
    """Return a hash of all that a row says; it is the same for a row in memory and one read from Parquet."""
    return _short(json.dumps({name: _plain(row[name]) for name in ROW.names}, sort_keys=True))


def _plain(value: Any) -> Any:
    """Return a value with every number a float: 1 and 1.0 are the same figure."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _clean(name: str) -> str:
    """Return a name that MLflow accepts: at most 250 characters, a longer one ending in a hash of its whole."""
    clean = re.sub(r"[^\w\-. /]", "_", name.replace("=", "_").replace(" ", "."))
    return clean if len(clean) <= _NAME else f"{clean[: _NAME - 17]}-{_short(name)}"


def _milliseconds(text: str | None) -> int:
    """Return an ISO time as milliseconds since 1970, 0 without one; the record's own time makes writing repeatable."""
    return round(datetime.fromisoformat(text).timestamp() * 1000) if text else 0


# --- MLflow's surroundings ---------------------------------------------------------------------------------------


def make_database(path: Path) -> None:
    """Create an empty MLflow database, whole or not at all: MLflow never recovers from a schema that is half made."""
    _prepare_environment()
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory(prefix="assay-mlflow-") as folder:
        made = Path(folder) / path.name
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        shutil.copyfile(made, beside)
    beside.replace(path)


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
