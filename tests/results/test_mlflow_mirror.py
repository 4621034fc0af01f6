from __future__ import annotations

import pytest

from assay.results import mlflow_mirror, mlflow_runs
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_row
from assay.results.mlflow_mirror import Mirror, sync
from assay.results.parquet import write_curves, write_rows

# MLflow's own use of SQLAlchemy and pydantic.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # slow: the import and the schema take seconds
NOWHERE = "http://user:secret@127.0.0.1:9"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return an empty MLflow database: making its schema takes seconds."""
    out = tmp_path_factory.mktemp("template")
    write_rows(out, [])
    assert sync(out, experiment="e") == {"new": 0, "present": 0}
    return (out / "mlflow.db").read_bytes()


@pytest.fixture
def out(tmp_path, template, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "OUT"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(template)
    return folder


def cells():
    strengths = [
        make_row(cell_key=f"a{s}", method_config={"strength": s, "law": "walk"}, attack_key=f"attack-a{s}")
        for s in (1, 2)
    ]
    return [
        *strengths,
        make_row(cell_key="b", method="cap", attack="prune", attack_config={"ratio": 0.5}, outcome="removed"),
        make_failed(cell_key="c", method="cap", victim_seed=1),
    ]


def runs(out):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_mirror.local_uri(out))
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    return {run.data.tags["cell_key"]: run for run in found}


def test_one_run_per_cell_below_one_per_configuration(out):
    write_rows(out, cells())
    assert sync(out, experiment="e") == {"new": 4, "present": 0}
    found = runs(out)
    parents = {key: run for key, run in found.items() if key.startswith("parent-")}
    assert len(parents) == 3
    assert len(found) == 7
    leaf = found["b"]
    assert parents[found_parent(parents, leaf)].data.tags["method"] == "cap"
    tags = {
        "stage": "attack",
        "dataset": "mnist",
        "attack": "prune",
        "status": "ok",
        "outcome": "removed",
        "seed": "0.0",
    }
    assert tags.items() <= leaf.data.tags.items()
    assert leaf.data.metrics["score_after"] == 0.55
    assert leaf.data.metrics["metrics.agreement"] == 0.9
    assert leaf.data.metrics["detected_after"] == 1.0
    assert "rival_score" not in leaf.data.metrics
    assert leaf.info.end_time == 1767323046500  # 2026-01-02T03:04:06.5 UTC
    assert found["c"].info.status == "FAILED"
    assert found["c"].data.metrics == {}
    assert "gate" in found["c"].data.tags["reason"]


def found_parent(parents, leaf):
    return next(key for key, run in parents.items() if run.info.run_id == leaf.data.tags["mlflow.parentRunId"])


def test_only_what_varies_is_a_parameter(out):
    write_rows(out, cells())
    sync(out, experiment="e")
    found = runs(out)
    assert found["a1"].data.params == {"method.strength": "1"}
    assert found["b"].data.params == {}


def test_syncing_twice_adds_nothing_and_a_changed_cell_is_written_again(out):
    write_rows(out, cells())
    sync(out, experiment="e")
    first = {key: run.info.run_id for key, run in runs(out).items()}
    assert sync(out, experiment="e") == {"new": 0, "present": 4}
    assert {key: run.info.run_id for key, run in runs(out).items()} == first
    changed = [make_row(cell_key="c", method="cap", victim_seed=1) if r["cell_key"] == "c" else r for r in cells()]
    write_rows(out, [*changed, make_row(cell_key="d", method="cap", attack="prune", attack_config={"ratio": 0.9})])
    assert sync(out, experiment="e") == {"new": 2, "present": 3}
    found = runs(out)
    assert found["c"].info.status == "FINISHED"
    # The sweep grew: the ratio varies now, and the run that was there learns of it.
    assert found["b"].data.params == {"attack.ratio": "0.5"}
    assert found["b"].info.run_id == first["b"]
    assert sync(out, experiment="e") == {"new": 0, "present": 5}


def test_curves_are_thinned_and_come_late(out):
    write_rows(out, cells())
    sync(out, experiment="e")
    point = {"stage": "attack", "stage_key": "attack-a1", "curve": "fit", "metric": "loss"}
    embed = {"stage": "embed", "stage_key": "embed-0", "curve": "fit", "metric": "loss"}
    write_curves(out, [{**p, "step": i, "value": float(i)} for p in (point, embed) for i in range(1000)])
    assert sync(out, experiment="e") == {"new": 0, "present": 4}
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_mirror.local_uri(out))
    found = runs(out)
    history = client.get_metric_history(found["a1"].info.run_id, "fit.loss")
    assert len(history) == 100
    assert [(p.step, p.value) for p in (history[0], history[-1])] == [(0, 0.0), (999, 999.0)]
    parent = next(run for key, run in found.items() if run.info.run_id == found["a1"].data.tags["mlflow.parentRunId"])
    assert len(client.get_metric_history(parent.info.run_id, "embed.seed-0.fit.loss")) == 100
    assert parent.data.metrics["score_after.none"] == pytest.approx(0.55)
    sync(out, experiment="e")
    assert len(client.get_metric_history(found["a1"].info.run_id, "fit.loss")) == 100


def test_nothing_but_the_database_is_written(out):
    write_rows(out, cells())
    sync(out, experiment="e")
    assert [p.name for p in out.parent.iterdir()] == ["OUT"]
    assert {p.name for p in out.iterdir()} <= {"rows.parquet", "mlflow.db", "mlflow.db-wal", "mlflow.db-shm"}


def test_a_mirror_follows_the_sweep_and_sync_finds_it_complete(out):
    mirror = Mirror(out, experiment="e")
    for row in cells()[:2]:
        mirror.put(row)
    write_rows(out, cells())
    mirror.close(60)
    assert mirror.problem is None
    assert sync(out, experiment="e") == {"new": 0, "present": 4}


def test_a_dead_server_neither_blocks_nor_fails_the_sweep(out):
    mirror = Mirror(out, NOWHERE)
    for row in cells():
        mirror.put(row)
    mirror.close()
    assert mirror.problem is not None
    assert "not finished within" not in mirror.problem, "it gives up by itself"
    assert "assay mlflow sync" in mirror.problem
    assert "\n" not in mirror.problem
    assert "secret" not in mirror.problem
    write_rows(out, cells())
    with pytest.raises(ResultsError, match="MLflow failed") as caught:
        sync(out, NOWHERE)
    assert "secret" not in str(caught.value)
    assert sync(out, experiment="e") == {"new": 4, "present": 0}


def test_a_mirror_that_is_too_slow_says_so_and_leaves_no_process(out):
    mirror = Mirror(out, experiment="e")
    mirror.put(cells()[0])
    mirror.close(0.1)
    assert mirror.problem is not None
    assert "not finished within 0.1 s" in mirror.problem
    mirror._thread.join(30)
    assert not mirror._thread.is_alive()


def test_a_damaged_database_is_one_line(tmp_path):
    write_rows(tmp_path, cells())
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(ResultsError, match=r"mlflow\.db: MLflow failed"):
        sync(tmp_path)


def test_the_interface_is_shown_to_this_machine_only(tmp_path):
    command = mlflow_mirror.ui_command(tmp_path)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{tmp_path}/mlflow.db" in command


def test_digests_agree_between_memory_and_parquet():
    row = make_row()
    again = {**row, "main_clean": row["main_clean"], "metrics": dict(row["metrics"])}
    assert mlflow_runs._digest(row) == mlflow_runs._digest(again)
    assert mlflow_runs._digest({**row, "score_after": 1}) == mlflow_runs._digest({**row, "score_after": 1.0})
    assert mlflow_runs._digest({**row, "score_after": 0.5}) != mlflow_runs._digest(row)
