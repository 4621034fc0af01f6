"""Runs in MLflow: complete, not doubled, never in the sweep's way."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from assay.results import mlflow_mirror
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_row
from assay.results.mlflow_folder import identity, local_uri
from assay.results.mlflow_mirror import Mirror, sync
from assay.results.mlflow_runs import Writer, make_database
from assay.results.parquet import write_curves, write_rows

# MLflow's own use of SQLAlchemy and pydantic. Slow: the import and the schema take seconds.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NOWHERE = "http://user:secret@127.0.0.1:9"

Row = dict[str, Any]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an empty MLflow database: making its schema takes seconds."""
    out = tmp_path_factory.mktemp("template")
    write_rows(out, [])
    assert sync([out], experiment="e") == {"new": 0, "present": 0}
    return (out / "mlflow.db").read_bytes()


@pytest.fixture
def out(tmp_path: Path, template: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "OUT"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(template)
    return folder


def cells() -> list[Row]:
    strengths = [
        make_row(cell_key=f"a{s}", method_config={"strength": s, "law": "walk"}, attack_key=f"attack-a{s}")
        for s in (1, 2)
    ]
    return [
        *strengths,
        make_row(cell_key="b", method="cap", attack="prune", attack_config={"ratio": 0.5}, outcome="removed"),
        make_failed(cell_key="c", method="cap", victim_seed=1),
    ]


def client_of(out: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=local_uri(out))


def runs(out: Path) -> dict[str, Any]:
    client = client_of(out)
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    keys = [run.data.tags["cell_key"] for run in found]
    assert len(keys) == len(set(keys)), "a cell has one run"
    return dict(zip(keys, found, strict=True))


def parent_of(found: Mapping[str, Any], key: str) -> Any:
    wanted = found[key].data.tags["mlflow.parentRunId"]
    return next(run for run in found.values() if run.info.run_id == wanted)


def writer_of(out: Path) -> Writer:
    return Writer(local_uri(out), "e", None, identity(out))


def test_one_run_per_cell_below_one_per_victim_setting(out: Path) -> None:
    write_rows(out, cells())
    assert sync([out], experiment="e") == {"new": 4, "present": 0}
    found = runs(out)
    assert len([key for key in found if key.startswith("parent-")]) == 3
    assert len(found) == 7
    leaf = found["b"]
    assert parent_of(found, "b").data.tags["method"] == "cap"
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
    assert {key: run.info.status for key, run in found.items() if key in "a1 b c"} == {
        "a1": "FINISHED",
        "b": "FINISHED",
        "c": "FAILED",
    }
    assert found["c"].data.tags["reason"]


def test_every_run_and_the_experiment_carry_the_sweeps_identity(out: Path) -> None:
    (out / "mlflow.db").unlink()
    write_rows(out, cells())
    sync([out], experiment="e")
    assert {run.data.tags["sweep"] for run in runs(out).values()} == {identity(out)}
    assert client_of(out).get_experiment_by_name("e").tags["sweep"] == identity(out)


def test_cells_that_differ_in_settings_never_share_a_parent(out: Path) -> None:
    rows: list[Row] = [
        {**make_row(cell_key=f"{name}{n}", score_after=float(n)), "method_version": 1, "task_config": "{}", name: value}
        for name, values in (("task_config", ('{"epochs": 1}', '{"epochs": 8}')), ("method_version", (2, 3)))
        for n, value in enumerate(values)
    ]
    assert writer_of(out).sweep(rows, None) == 4
    found = runs(out)
    parents = {key: parent_of(found, key) for key in found if not key.startswith("parent-")}
    assert len({run.info.run_id for run in parents.values()}) == 4
    assert parents["task_config1"].data.params["task.epochs"] == "8"
    assert parents["method_version1"].data.params["method_version"] == "3"
    assert parents["method_version1"].data.tags["method_version"] == "3"
    assert [parents[f"task_config{n}"].data.metrics["score_after.none"] for n in (0, 1)] == [0.0, 1.0]


def test_only_what_varies_is_a_parameter(out: Path) -> None:
    write_rows(out, cells())
    sync([out], experiment="e")
    found = runs(out)
    assert found["a1"].data.params == {"method.strength": "1"}
    assert found["b"].data.params == {}


def test_syncing_twice_adds_nothing_and_a_changed_cell_is_written_again(out: Path) -> None:
    write_rows(out, cells())
    sync([out], experiment="e")
    first = {key: run.info.run_id for key, run in runs(out).items()}
    assert sync([out], experiment="e") == {"new": 0, "present": 4}
    assert {key: run.info.run_id for key, run in runs(out).items()} == first
    changed = [make_row(cell_key="c", method="cap", victim_seed=1) if r["cell_key"] == "c" else r for r in cells()]
    write_rows(out, [*changed, make_row(cell_key="d", method="cap", attack="prune", attack_config={"ratio": 0.9})])
    assert sync([out], experiment="e") == {"new": 2, "present": 3}
    found = runs(out)
    assert found["c"].info.status == "FINISHED"
    # The sweep grew: the ratio varies now, and the run that was there learns of it.
    assert found["b"].data.params == {"attack.ratio": "0.5"}
    assert found["b"].info.run_id == first["b"]
    assert sync([out], experiment="e") == {"new": 0, "present": 5}


def test_what_the_rows_no_longer_hold_leaves_but_other_peoples_runs_stay(out: Path) -> None:
    write_rows(out, [*cells(), make_row(cell_key="d", method="cap", attack="none", score_after=1.0)])
    sync([out], experiment="e")
    client = client_of(out)
    experiment = client.get_experiment_by_name("e").experiment_id
    client.create_run(experiment, tags={"cell_key": "theirs", "sweep": "f" * 32})
    write_rows(out, [row for row in cells() if row["cell_key"] in ("a1", "b")])
    assert sync([out], experiment="e") == {"new": 0, "present": 2}
    found = runs(out)
    assert {key for key in found if not key.startswith("parent-")} == {"a1", "b", "theirs"}
    assert len(found) == 5
    assert str(parent_of(found, "b").data.metrics["score_after.none"]) == "nan", "no cell is behind this mean any more"
    assert parent_of(found, "b").data.metrics["score_after.prune"] == 0.55
    assert sync([out], experiment="e") == {"new": 0, "present": 2}


def test_an_interrupted_run_is_written_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(out, cells()[:1])
    writer = writer_of(out)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in ("log_batch", "set_terminated"):
        with monkeypatch.context() as patch:
            patch.setattr(writer._client, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.leaf(cells()[0])
        writer = writer_of(out)
    assert sync([out], experiment="e") == {"new": 1, "present": 0}
    assert runs(out)["a1"].data.metrics["score_after"] == 0.55
    assert sync([out], experiment="e") == {"new": 0, "present": 1}


def test_a_run_takes_three_calls(out: Path) -> None:
    writer = writer_of(out)
    calls: list[str] = []
    real = writer._client

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(real, name)

    writer._client = Counting()
    writer.leaf(make_row(cell_key="first"))
    calls.clear()
    writer.leaf(make_row(cell_key="second", attack="prune"), {"attack.ratio": "0.5"})
    assert calls == ["create_run", "log_batch", "set_terminated"]


def test_long_curves_and_many_parameters_are_split(out: Path) -> None:
    writer = writer_of(out)
    row = make_row(metrics={f"m{n}": float(n) for n in range(1500)})
    writer.leaf(row, {f"p{n}": str(n) for n in range(150)})
    found = runs(out)[row["cell_key"]]
    assert found.data.metrics["metrics.m1499"] == 1499.0
    assert len(found.data.params) == 150


def test_curves_are_thinned_and_come_late(out: Path) -> None:
    write_rows(out, cells())
    sync([out], experiment="e")
    point = {"stage": "attack", "stage_key": "attack-a1", "curve": "fit", "metric": "loss"}
    embed = {"stage": "embed", "stage_key": "embed-0", "curve": "fit", "metric": "loss"}
    write_curves(out, [{**p, "step": i, "value": float(i)} for p in (point, embed) for i in range(1000)])
    assert sync([out], experiment="e") == {"new": 0, "present": 4}
    client = client_of(out)
    found = runs(out)
    history = client.get_metric_history(found["a1"].info.run_id, "fit.loss")
    assert len(history) == 100
    assert [(p.step, p.value) for p in (history[0], history[-1])] == [(0, 0.0), (999, 999.0)]
    parent = parent_of(found, "a1")
    assert len(client.get_metric_history(parent.info.run_id, "embed.seed-0.fit.loss")) == 100
    assert parent.data.metrics["score_after.none"] == pytest.approx(0.55)
    sync([out], experiment="e")
    assert len(client.get_metric_history(found["a1"].info.run_id, "fit.loss")) == 100


def test_nothing_but_the_database_and_the_identity_is_written(out: Path) -> None:
    write_rows(out, cells())
    sync([out], experiment="e")
    assert [p.name for p in out.parent.iterdir()] == ["OUT"]
    assert {p.name for p in out.iterdir()} == {"rows.parquet", "mlflow.db", "mlflow.json"}


def test_several_folders_have_a_mirror_each(out: Path, template: bytes) -> None:
    other = out.parent / "OTHER"
    other.mkdir()
    (other / "mlflow.db").write_bytes(template)
    write_rows(out, cells())
    write_rows(other, cells()[:1])
    assert sync([out, other], experiment="e") == {"new": 5, "present": 0}
    assert sync([other, out], experiment="e") == {"new": 0, "present": 5}
    assert set(runs(other)) > {"a1"}
    assert identity(out) != identity(other)


def test_a_mirror_follows_the_sweep_and_sync_finds_it_complete(out: Path) -> None:
    mirror = Mirror(out, experiment="e")
    for row in cells()[:2]:
        mirror.put(row)
    write_rows(out, cells())
    mirror.close(60)
    assert mirror.problem is None
    assert sync([out], experiment="e") == {"new": 0, "present": 4}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Yield the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://user:secret@127.0.0.1:{listening.getsockname()[1]}"


def test_a_dead_server_neither_blocks_nor_fails_the_sweep(out: Path) -> None:
    mirror = Mirror(out, NOWHERE)
    for row in cells():
        mirror.put(row)
    mirror.close()
    assert mirror.problem is not None
    assert "not finished within" not in mirror.problem, "it gives up by itself"
    assert "assay mlflow sync" in mirror.problem
    assert "--mlflow-uri http://127.0.0.1:9" in mirror.problem
    assert "\n" not in mirror.problem
    assert "secret" not in mirror.problem
    write_rows(out, cells())
    with pytest.raises(ResultsError, match="MLflow failed") as caught:
        sync([out], NOWHERE)
    assert "secret" not in str(caught.value)
    assert sync([out], experiment="e") == {"new": 4, "present": 0}


def test_a_silent_server_is_given_up(out: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    mirror = Mirror(out, silent_server)
    mirror.put(cells()[0])
    mirror.close()
    assert mirror.problem is not None
    assert "not finished within" not in mirror.problem
    assert "secret" not in mirror.problem


def test_a_mirror_that_is_too_slow_says_so_and_leaves_no_process(out: Path) -> None:
    mirror = Mirror(out, experiment="e")
    mirror.put(cells()[0])
    mirror.close(0.1)
    assert mirror.problem is not None
    assert "not finished within 0.1 s" in mirror.problem
    mirror._thread.join(30)
    assert not mirror._thread.is_alive()


def test_a_damaged_database_is_set_aside_and_rebuilt_by_sync(out: Path) -> None:
    write_rows(out, cells())
    damaged = os.urandom(5000)
    (out / "mlflow.db").write_bytes(damaged)
    told: list[str] = []
    assert sync([out], experiment="e", tell=told.append) == {"new": 4, "present": 0}
    assert len(told) == 1
    assert "mlflow.db.damaged-1" in told[0]
    assert (out / "mlflow.db.damaged-1").read_bytes() == damaged
    assert sync([out], experiment="e", tell=told.append) == {"new": 0, "present": 4}
    assert len(told) == 1


def test_a_damaged_database_is_set_aside_and_rebuilt_by_a_sweep(out: Path) -> None:
    (out / "mlflow.db").write_bytes(b"no database" * 100)
    mirror = Mirror(out, experiment="e")
    mirror.put(cells()[0])
    write_rows(out, cells())
    mirror.close(120)
    assert mirror.problem is not None
    assert "mlflow.db.damaged-1" in mirror.problem
    assert "complete it with" not in mirror.problem, "it is complete"
    assert "\n" not in mirror.problem
    assert sync([out], experiment="e") == {"new": 0, "present": 4}


def test_an_interrupted_schema_leaves_no_half_made_database(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow never opens a database again whose first tables alone were made."""
    (out / "mlflow.db").unlink()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.search_experiments", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_database(out / "mlflow.db")
    assert list(out.iterdir()) == []
    write_rows(out, cells())
    assert sync([out], experiment="e") == {"new": 4, "present": 0}


def test_a_damaged_database_of_ones_own_is_never_touched(out: Path) -> None:
    write_rows(out, cells())
    own = out.parent / "own.db"
    own.write_bytes(b"no database" * 100)
    with pytest.raises(ResultsError, match=r"own\.db: MLflow failed") as caught:
        sync([out], f"sqlite:///{own}")
    assert "\n" not in str(caught.value)
    assert own.read_bytes() == b"no database" * 100


def test_the_interface_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    command = mlflow_mirror.ui_command(tmp_path)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5000"
    assert f"sqlite:///{tmp_path}/mlflow.db" in command
    command = mlflow_mirror.ui_command(tmp_path, "0.0.0.0", 8123)  # noqa: S104 -- asked for
    assert command[command.index("--host") + 1] == "0.0.0.0"  # noqa: S104
    assert command[command.index("--port") + 1] == "8123"
