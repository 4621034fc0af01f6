"""Whole sweeps, in process: what runs once, what runs again, what a failure does, what the views hold."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import SafetensorError

from assay.orchestrator.command.cli import main
from assay.orchestrator.execution import sweep as sweep_module
from assay.orchestrator.execution.driver import Options
from assay.orchestrator.execution.sweep import Report, run_sweep
from assay.orchestrator.execution.views import sound_database
from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.results.parquet import read_curves, read_rows, rows_equal
from assay.tasks.errors import AssayError, BadInput

GRID: dict[str, Any] = {
    "name": "small",
    "tasks": ["digits-lenet5"],
    "methods": ["clean", {"uchida": {"allow_weak": True, "bits": 16}}],
    "attacks": ["none", {"prune": {"ratio": [0.3, 0.9]}}, "overwrite"],
    "seeds": 1,
    "profile": "smoke",
    "train": {"samples": 400, "epochs": 2, "test_samples": 100, "references": 2, "calibration_keys": 10},
}


class Quiet:
    """A listener that remembers what was executed."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def on_start(self, stage: Stage) -> None:
        pass

    def on_done(self, stage: Stage, status: str) -> None:
        self.done.append((stage.kind, status))

    def on_note(self, text: str) -> None:
        self.notes.append(text)


def sweep(folder: Path, out: Path, change: dict[str, Any] | None = None, **options: Any) -> tuple[Report, Quiet]:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **(change or {})}), "utf-8")
    registry = Registry()
    grid = parse(str(path), registry)
    plan = build_plan(grid, registry, None)
    listener = Quiet()
    settings = Options(**{"executor": "inline", **options})
    # Port 9 (discard) is closed: the mirror must never matter to a sweep.
    report = run_sweep(plan, grid, Context(str(out)), settings, listener, mlflow_uri="http://127.0.0.1:9")
    return report, listener


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("finished")
    report, _ = sweep(tmp_path_factory.mktemp("grid"), out)
    return out, report


def test_executed_stages_are_the_unique_keys(finished: tuple[Path, Report]) -> None:
    _, report = finished
    # 1 paired clean model, 2 references, 1 attacker's own model; 1 calibration; 2 methods; clean x 3 attacks and
    # uchida x 4 attacks.
    assert (report.executed, report.stages, report.cached) == (4 + 1 + 2 + 7, 4 + 1 + 2 + 7, 0)
    assert (report.cells, report.failed, report.blocked, report.not_applicable) == (8, 0, 0, 1)


def test_rows_hold_what_was_measured_and_reasons_for_the_rest(finished: tuple[Path, Report]) -> None:
    rows = read_rows(finished[0])
    assert len(rows) == 8
    impossible = rows[rows.status == "not_applicable"]
    assert list(zip(impossible.method, impossible.attack, strict=True)) == [("clean", "overwrite")]
    assert impossible.reason.iloc[0]
    assert impossible.main_after.isna().all()
    done = rows[rows.status == "ok"]
    assert done.main_after.between(0, 1).all()
    clean = done[done.method == "clean"]
    assert clean.score_after.isna().all(), "an unmarked model has no score"
    assert clean.outcome.isna().all()
    marked = done[done.method == "uchida"]
    assert marked.score_before.between(0, 1).all()
    overwritten = marked[marked.attack == "overwrite"].iloc[0]
    assert overwritten.unique_samples == 60  # a fifth of 400, a quarter of which is held out
    assert (done[done.attack != "overwrite"].unique_samples == 0).all()
    assert (done.peak_mem_mb > 1).all()
    untouched = marked[marked.attack == "none"].iloc[0]
    assert untouched.main_after == untouched.main_before
    assert untouched.score_after == untouched.score_before
    assert untouched.metrics["weight_change"] == 0.0
    assert untouched.metrics["agreement"] == 1.0
    assert marked[marked.attack == "overwrite"].rival_score.between(0, 1).all()


def test_curves_are_kept_per_stage(finished: tuple[Path, Report]) -> None:
    curves = read_curves(finished[0])
    trained = curves[(curves.stage == "embed") & (curves.metric == "task")]
    assert list(trained.step) == [1, 2]


def test_running_again_executes_nothing_and_changes_nothing(finished: tuple[Path, Report], tmp_path: Path) -> None:
    out, _ = finished
    before = (out / "rows.parquet").read_bytes()
    report, listener = sweep(tmp_path, out)
    assert (report.executed, report.cached) == (0, 14)
    assert not listener.done
    assert (out / "rows.parquet").read_bytes() == before


def test_adding_an_attack_executes_only_its_stages_and_keeps_the_rows(
    finished: tuple[Path, Report], tmp_path: Path
) -> None:
    out, _ = finished
    before = read_rows(out).set_index("cell_key")
    report, listener = sweep(tmp_path, out, {"attacks": ["none", {"prune": {"ratio": 0.5}}]})
    assert listener.done == [("attack", "executed")] * 2
    assert report.executed == 2
    after = read_rows(out).set_index("cell_key")
    assert set(before.index) < set(after.index)
    assert len(after) == len(before) + 2


def test_packing_and_a_fresh_store_give_the_same_rows(finished: tuple[Path, Report], tmp_path: Path) -> None:
    other = tmp_path / "other"
    sweep(tmp_path, other, pack=False)
    sweep(tmp_path, finished[0], {"attacks": GRID["attacks"]})
    keys = set(read_rows(other).cell_key)
    differences = [line for line in rows_equal(finished[0], other) if any(key in line for key in keys)]
    assert differences == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours to mend
@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2, "pack": False}], ids=["one-packed", "two-unpacked"])
def test_on_ray_any_workers_and_packing_give_the_same_bits(
    options: dict[str, Any], finished: tuple[Path, Report], tmp_path: Path
) -> None:
    sweep(tmp_path, finished[0], {"attacks": GRID["attacks"]})
    report, _ = sweep(tmp_path, tmp_path / "other", executor="tune", **options)
    assert (report.executed, report.failed) == (14, 0)
    keys = set(read_rows(tmp_path / "other").cell_key)
    differences = [line for line in rows_equal(finished[0], tmp_path / "other") if any(key in line for key in keys)]
    assert differences == []


def test_a_failure_is_a_row_its_descendants_are_blocked_the_rest_goes_on(tmp_path: Path) -> None:
    failing = {"uchida": {"allow_weak": False, "bits": 16, "strength": 0.0}}
    out = tmp_path / "out"
    report, _ = sweep(tmp_path, out, {"methods": ["clean", failing], "attacks": ["none"]})
    assert (report.failed, report.blocked) == (0, 1)
    rows = read_rows(out).set_index("method")
    assert rows.loc["clean"].status == "ok"
    assert rows.loc["uchida"].status == "blocked"
    assert "below the gate" in rows.loc["uchida"].reason
    assert report.failed_cells
    again, listener = sweep(tmp_path, out, {"methods": ["clean", failing], "attacks": ["none"]})
    assert again.blocked == 1
    assert [entry for entry in listener.done if entry[0] == "embed"] == [("embed", "failed")], (
        "a failure is tried again"
    )


def test_what_the_grid_no_longer_asks_for_and_failed_is_forgotten(tmp_path: Path) -> None:
    failing = {"uchida": {"allow_weak": False, "bits": 16, "strength": 0.0}}
    out = tmp_path / "out"
    sweep(tmp_path, out, {"methods": ["clean", failing], "attacks": ["none"]})
    mended = {"uchida": {"allow_weak": True, "bits": 16, "strength": 0.0}}
    report, _ = sweep(tmp_path, out, {"methods": [mended], "attacks": ["none"]})
    assert not report.failed_cells
    rows = read_rows(out)
    assert sorted(rows.method) == ["clean", "uchida"], "another grid's result stays"
    assert set(rows.status) == {"ok"}


def test_sweep_json_names_the_plans_stages_and_no_source_of_older_results(finished: tuple[Path, Report]) -> None:
    note = json.loads((finished[0] / "sweep.json").read_text("utf-8"))
    assert note["stage_keys"] == sorted(note["stage_keys"])
    assert len(note["stage_keys"]) == note["stages"]
    assert "plugins" not in note


@pytest.mark.slow
def test_damaged_views_are_set_aside_and_rebuilt(finished: tuple[Path, Report], tmp_path: Path) -> None:
    out, names = tmp_path / "out", ("rows.parquet", "curves.parquet")
    shutil.copytree(finished[0], out)
    sweep(tmp_path, out)
    whole = {name: (out / name).read_bytes() for name in names}
    for number in (1, 2):
        for name in names:
            (out / name).write_bytes(whole[name][:100])
        report, listener = sweep(tmp_path, out)
        assert report.executed == 0
        part = "rebuilt from the store (other grids' part when they run again)"
        assert listener.notes == [f"{out / name}: damaged, now {name}.damaged-{number}; {part}" for name in names]
        assert (out / f"rows.parquet.damaged-{number}").read_bytes() == whole["rows.parquet"][:100]
    assert set(read_rows(out).status) == {"ok", "not_applicable"}
    assert len(read_curves(out))


def test_a_damaged_record_runs_again_at_once(finished: tuple[Path, Report], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    report, _ = sweep(tmp_path, out)
    assert report.executed == 0
    wanted = json.loads((out / "sweep.json").read_text("utf-8"))["stage_keys"]
    records = [path for path in sorted((out / "store").glob("??/*/record.json")) if path.parent.name in wanted]
    record = next(path for path in records if json.loads(path.read_text("utf-8"))["stage"] == "attack")
    record.write_bytes(record.read_bytes()[:50])
    report, _ = sweep(tmp_path, out)
    assert (report.executed, report.failed) == (1, 0)


def database(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("create table alembic_version (version_num text)")
        made.execute("insert into alembic_version values ('head')")
        made.execute("create table runs (name text)")
        made.executemany("insert into runs values (?)", [("x" * 500,)] * 100)
    return path.read_bytes()


@pytest.mark.parametrize("damage", [lambda _: b"\x07" * 9000, lambda whole: whole[:9000]], ids=["random", "cut"])
def test_a_damaged_database_is_set_aside(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path, notes = tmp_path / "mlflow.db", list[str]()
    whole = database(path)
    sound_database(path, notes.append)
    assert path.read_bytes() == whole
    path.write_bytes(damage(whole))
    sound_database(path, notes.append)
    assert notes == [f"{path}: damaged, now mlflow.db.damaged-1; rebuilt from the results"]
    assert not path.exists()


@pytest.mark.parametrize(
    "change",
    ["delete from alembic_version", "drop table alembic_version", "create table _alembic_tmp_endpoints (id text)"],
)
def test_a_database_that_was_never_finished_is_set_aside(tmp_path: Path, change: str) -> None:
    """As a full disk or a kill leaves it; MLflow cannot go on from there."""
    path, notes = tmp_path / "mlflow.db", list[str]()
    database(path)
    with closing(sqlite3.connect(path)) as made, made:
        made.execute(change)
    sound_database(path, notes.append)
    assert len(notes) == 1
    assert not path.exists()


def test_a_database_in_use_is_not_damaged(tmp_path: Path) -> None:
    path, notes = tmp_path / "mlflow.db", list[str]()
    database(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin exclusive")
        sound_database(path, notes.append)
    assert notes == []
    assert path.exists()


def test_a_full_disk_is_one_line_and_resuming_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that takes one stage: what is committed stays, the views cannot be written either."""
    out, change = tmp_path / "out", {"methods": ["clean"], "attacks": ["none"]}
    commit, taken = Store.commit, list[str]()

    def full(self: Store, key: str, *parts: Any, **more: Any) -> bool:
        if taken:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        taken.append(key)
        return commit(self, key, *parts, **more)

    def no_view(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", full)
        patch.setattr(sweep_module, "write_rows", no_view)
        with pytest.raises(AssayError, match=r"no room left on the device.* what is committed is kept") as caught:
            sweep(tmp_path, out, change)
    assert str(out) in str(caught.value)
    assert "\n" not in str(caught.value)
    report, _ = sweep(tmp_path, out, change)
    assert (report.cached, report.failed) == (1, 0)


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(BadInput, match=r"-o .*out: cannot be made a folder \(File exists\)"):
        sweep(tmp_path, tmp_path / "out")


def test_an_unreachable_mlflow_server_is_one_remark(tmp_path: Path) -> None:
    report, _ = sweep(tmp_path, tmp_path / "out", {"methods": ["clean"], "attacks": ["none"]})
    assert len(report.problems) == 1
    assert "assay mlflow sync" in report.problems[0]
    assert "\n" not in report.problems[0]


def test_a_stage_resumes_from_its_rolling_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    """Stopped in its second epoch and run again, a stage gives the same weights as undisturbed."""
    from assay.orchestrator.work.stages import execute
    from assay.tasks.training import trainer

    grid_path = tmp_path / "grid.yaml"
    grid_path.write_text(yaml.safe_dump({**GRID, "methods": ["clean"], "attacks": ["none"]}), "utf-8")
    registry = Registry()
    plan = build_plan(parse(str(grid_path), registry), registry, None)
    stage = next(stage for stage in plan.stages.values() if stage.kind == "clean")
    whole, broken = (Context(str(tmp_path / name), checkpoint_s=0.0) for name in ("whole", "broken"))
    assert execute(stage, whole) == "executed"
    original = trainer.Recipe.before_epoch
    seen: list[int] = []

    def stop_in_second_epoch(self: trainer.Recipe, model: Any, epoch: int) -> None:
        seen.append(epoch)
        if epoch == 1 and len(seen) == 2:
            raise KeyboardInterrupt  # as a kill would: nothing is caught, nothing is noted
        original(self, model, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Recipe, "before_epoch", stop_in_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            execute(stage, broken)
        assert execute(stage, broken) == "executed"
    assert seen == [0, 1, 1], "the first epoch was not computed again"
    stores = [Store(Path(context.out) / "store") for context in (whole, broken)]
    first, second = (store.model(stage.key) for store in stores)
    assert all(first[name].equal(second[name]) for name in first)
    costs = [store.record(stage.key)["costs"]["forward_samples"] for store in stores]
    assert costs[0] == costs[1]


# --- the command line ------------------------------------------------------------------------------------------------


def test_run_status_table_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "grid.yaml", str(tmp_path / "out")
    path.write_text(yaml.safe_dump({**GRID, "attacks": ["none"]}), "utf-8")
    arguments = [str(path), "-o", out, "--executor", "inline", "--mlflow-uri", "http://127.0.0.1:9", "--json"]
    assert main(["run", *arguments]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(last) == {
        "executed", "cached", "failed", "blocked", "not_applicable", "cells", "stages", "wall_s",
    }  # fmt: skip
    assert (last["executed"], last["failed"]) == (8, 0)
    assert main(["plan", str(path), "-o", out, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["cached"], plan["to_execute"]) == (8, 0)
    assert main(["status", out, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["committed_stages"], status["cells"], status["running"]) == (8, 2, [])
    assert main(["table", out]) == 0
    table = capsys.readouterr().out
    assert "uchida" in table
    assert main(["table", out, "--table", "usp_csp/5", "--format", "csv"]) == 0
    assert "not tested" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["methods", "attacks", "tasks", "grids"])
def test_list_gives_objects_with_a_key(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(isinstance(row["key"], str) for row in rows)
    assert main(["list", what]) == 0


USER_MISTAKES = {
    "unknown grid": ["plan", "quikstart"],
    "unknown profile": ["plan", "quickstart", "--profile", "labtop"],
    "bad setting": ["plan", "quickstart", "--set", "methods.uchida.bits=many"],
    "no sweep": ["status", "/nowhere/at/all"],
    "no rows": ["table", "/nowhere/at/all"],
    "plugin that is not there": ["plan", "quickstart", "--plugin", "/nowhere/plugin.py"],
}


@pytest.mark.parametrize("name", USER_MISTAKES)
def test_a_users_mistake_is_one_line_and_exit_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(USER_MISTAKES[name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert "Traceback" not in printed.err


GRID_MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown method": ({"methods": ["uchida", "ingrane"]}, ["line 10", "unknown method 'ingrane'", "allowed"]),
    "unknown parameter": ({"methods": [{"uchida": {"bit": 64}}]}, ["line", "unknown field 'bit'", "mean 'bits'"]),
    "wrong type": ({"methods": [{"uchida": {"bits": "64"}}]}, ["line", "uchida", "bits", "found '64'", "integer"]),
    "missing data set": ({"tasks": ["mnist-lenet5"]}, ["mnist", "assay data fetch mnist"]),
    "empty axis": ({"attacks": []}, ["line", "attacks is empty", "assay list attacks"]),
}


@pytest.mark.parametrize("name", GRID_MISTAKES)
def test_the_likeliest_mistakes_in_a_grid_are_one_line_and_lose_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    change, parts = GRID_MISTAKES[name]
    path, out = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**GRID, **change}), "utf-8")
    assert main(["run", str(path), "-o", str(out), "--executor", "inline"]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.strip().splitlines()) == 1
    assert not printed.out
    for part in parts:
        assert part in printed.err
    if name != "missing data set":
        assert "grid.yaml" in printed.err
    assert not out.exists()


def test_wrong_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["run", "quickstart", "--workers", "none"])
    assert left.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
