"""Runs that go straight into a local database are those that MLflow's own client would have written."""

from __future__ import annotations

import math

import pytest

from assay.results.mlflow_bulk import ByClient, ByTables, NewRun, inserter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RUNS = [
    NewRun(
        name="csp prune 0.0",
        status="FINISHED",
        start=1_700_000_000_000,
        end=1_700_000_001_000,
        tags={"cell_key": "a", "mlflow.parentRunId": "p", "reason": ""},
        params={"attack.ratio": "0.8"},
        points=[
            ("score", 0.5, 5, 0),
            ("score", 0.25, 5, 2),
            ("score", 0.75, 5, 1),
            ("score", 0.75, 5, 1),  # twice: a point is there once
            ("broken", math.nan, 5, 0),
            ("huge", math.inf, 5, 0),
        ],
    ),
    NewRun("empty", "FAILED", 1_700_000_000_000, 1_700_000_000_500, {"cell_key": "b"}, {}, []),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from mlflow.tracking import MlflowClient

    out = tmp_path_factory.mktemp("bulk")
    uri = f"sqlite:///{out / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri), uri


def seen(client, run_id):
    run = client.get_run(run_id)
    facts = {name: getattr(run.info, name) for name in ("run_name", "status", "start_time", "end_time", "user_id")}
    facts["artifacts"] = run.info.artifact_uri.replace(run_id, "ID")
    history = {
        name: sorted((m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(run_id, name))
        for name in run.data.metrics
    }
    latest = {name: repr(value) for name, value in run.data.metrics.items()}
    return facts, run.data.tags, run.data.params, latest, history


def test_tables_and_client_leave_the_same_runs(client):
    mlflow, uri = client
    experiment = mlflow.create_experiment("both")
    fast = inserter(mlflow, uri, experiment)
    assert isinstance(fast, ByTables), "the tables of this MLflow are known"
    for own, theirs in zip(fast.write(RUNS), ByClient(mlflow, experiment).write(RUNS), strict=True):
        assert seen(mlflow, own) == seen(mlflow, theirs)
    assert len(mlflow.search_runs([experiment], "metrics.score = 0.25")) == 2, (
        "the latest value is that of the last step"
    )


def test_a_failed_write_leaves_nothing(client):
    mlflow, uri = client
    experiment = mlflow.create_experiment("none")
    twice = NewRun("x", "FINISHED", 1, 2, {"cell_key": "c"}, {}, [("a", 1.0, 1, 0), ("a", 1.0, 1, 0)])
    broken = NewRun("y", "FINISHED", 1, 2, {"cell_key": None}, {"p": None}, [])  # a parameter needs a value
    with pytest.raises(Exception, match="NOT NULL"):
        inserter(mlflow, uri, experiment).write([twice, broken])
    assert mlflow.search_runs([experiment]) == []


def test_a_database_with_other_columns_goes_through_the_client(client, tmp_path):
    import shutil
    import sqlite3

    mlflow, uri = client
    copy = tmp_path / "other.db"
    shutil.copy(uri.removeprefix("sqlite:///"), copy)
    with sqlite3.connect(copy) as database:
        database.execute("ALTER TABLE runs ADD COLUMN news VARCHAR(20)")
    assert isinstance(inserter(mlflow, f"sqlite:///{copy}", "0"), ByClient)
    assert isinstance(inserter(mlflow, "http://127.0.0.1:9", "0"), ByClient)
