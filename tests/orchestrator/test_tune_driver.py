"""Ray Tune with simulated stages, and what we rely on in Ray: the tests to run before its version is raised."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated_stages as simulated

from assay.orchestrator.execution.driver import Options, Summary, run
from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.tasks.errors import AssayError, BadInput

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours to mend


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, two workers, shared by the tests that do not care who started it."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    importlib.import_module("assay.orchestrator.execution.tune_driver")  # sets what Ray reads when it is imported
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def tuned(plan: Plan, out: Path, **options: Any) -> tuple[Summary, simulated.Recorder]:
    listener = simulated.Recorder()
    return run(plan, Context(str(out)), Options(runner=simulated.RUNNER, **options), listener), listener


def workers(out: Path) -> list[int]:
    return [json.loads(path.read_text("utf-8"))["worker"] for path in (out / "store").glob("??/*/record.json")]


def test_stages_run_in_order_of_dependency_and_a_failure_stays_a_leaf(cluster: None, tmp_path: Path) -> None:
    roots = [simulated.stage(f"root{n}", seconds=2.0) for n in range(2)]
    middle = [simulated.stage(f"middle{n}", roots[n % 2], fail="no" if n == 1 else "") for n in range(4)]
    leaves = [simulated.stage(f"leaf{n}", middle[n % 4], cheap=True, seconds=0.1) for n in range(12)]
    plan = simulated.plan(*roots, *middle, *leaves)
    summary, listener = tuned(plan, tmp_path, workers=2)
    assert (summary.executed, summary.failed, summary.blocked) == (14, 1, 3)
    assert sorted(simulated.executions(tmp_path)) == sorted({label for label, end in listener.done if end != "blocked"})
    assert len(set(workers(tmp_path))) <= 2, "workers are reused across trials, stages and idle moments"
    again, _ = tuned(plan, tmp_path, workers=2)
    assert (again.executed, again.cached, again.failed, again.blocked) == (0, 14, 1, 3)


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2, "pack": False}])
def test_workers_and_packing_change_no_set(cluster: None, tmp_path: Path, options: dict[str, Any]) -> None:
    root = simulated.stage("root")
    plan = simulated.plan(root, *(simulated.stage(f"leaf{n}", root, cheap=True) for n in range(6)))
    summary, _ = tuned(plan, tmp_path, **options)
    assert summary.executed == 7
    assert len(set(workers(tmp_path))) <= options["workers"]
    assert Store(tmp_path / "store").committed_keys() == plan.stages.keys()


def test_a_stage_whose_worker_dies_runs_again_but_not_for_ever(cluster: None, tmp_path: Path) -> None:
    once = simulated.stage("once", suicides=1)
    poison = simulated.stage("poison", suicides=99)
    company = [simulated.stage(f"company{n}") for n in range(3)]
    plan = simulated.plan(once, poison, *company, simulated.stage("child", poison))
    summary, listener = tuned(plan, tmp_path, workers=1, max_deaths=2)
    assert (summary.executed, summary.failed, summary.blocked) == (4, 1, 1)
    ran = simulated.executions(tmp_path)
    assert {label: ran.count(label) for label in set(ran)} == {
        "once": 2,
        "poison": 2,
        "company0": 1,
        "company1": 1,
        "company2": 1,
    }
    failure = Store(tmp_path / "store").failure(poison.key)
    assert failure is not None
    assert failure["reason"].startswith("killed its worker 2 times (ActorDiedError")
    assert any("runs again: once" in note for note in listener.notes)


def test_workers_that_cannot_start_end_the_sweep_with_the_reason(cluster: None, tmp_path: Path) -> None:
    plan = simulated.plan(simulated.stage("one"))
    with pytest.raises(AssayError, match="workers cannot start: ModuleNotFoundError: No module named 'nowhere'"):
        run(
            plan,
            Context(str(tmp_path)),
            Options(workers=1, runner="nowhere:execute", max_deaths=0),
            simulated.Recorder(),
        )


def test_a_trial_that_ends_without_a_callback_is_noticed(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune's trap: after a failed reset a trial becomes ERROR and nobody is told."""
    from assay.orchestrator.execution import tune_driver

    told: list[str] = []
    monkeypatch.setattr(
        tune_driver.DagSearch, "on_trial_complete", lambda self, trial_id, **more: told.append(trial_id)
    )
    monkeypatch.setattr(tune_driver.DagSearch, "on_trial_result", lambda self, trial_id, result: None)
    plan = simulated.plan(*(simulated.stage(f"s{n}") for n in range(4)))
    summary, _ = tuned(plan, tmp_path, workers=2)
    assert summary.executed == 4
    assert told


def test_resources_that_nobody_has_are_refused(cluster: None, tmp_path: Path) -> None:
    import dataclasses

    stage = dataclasses.replace(simulated.stage("big"), resource="gpu.large")
    with pytest.raises(BadInput, match=r"class gpu.large need 1 GPU of 0"):
        tuned(simulated.plan(stage), tmp_path)


def test_a_full_disk_ends_the_sweep_in_one_line(cluster: None, tmp_path: Path) -> None:
    roots = [simulated.stage("fine"), simulated.stage("full", full=True)]
    plan = simulated.plan(*roots, *(simulated.stage(f"child{n}", roots[1]) for n in range(3)))
    with pytest.raises(AssayError, match=r"store: no room left on the device, at full; what is committed is kept"):
        tuned(plan, tmp_path, workers=2)
    (tmp_path / "room").touch()
    assert tuned(plan, tmp_path, workers=2)[0].failed == 0
    assert Store(tmp_path / "store").committed_keys() == plan.stages.keys()


def test_a_sweep_in_which_nothing_begins_says_so_once_and_where_the_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assay.orchestrator.execution import tune_driver

    monkeypatch.setattr(tune_driver, "STALL_S", 0.2)
    listener = simulated.Recorder()
    begun = threading.Event()
    with tune_driver._warned(begun, listener) as place:
        place["logs"] = "/ray/logs"
        wait_for(lambda: listener.notes, 10.0)
        time.sleep(0.5)
    assert listener.notes == ["no stage has begun for 0.2 s: no worker is free or can start; Ray's log: /ray/logs"]
    begun.set()
    with tune_driver._warned(begun, listener):
        time.sleep(0.5)
    assert len(listener.notes) == 1


def test_a_long_tmpdir_moves_rays_sockets_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.orchestrator.execution.tune_driver import _ray_folder

    listener = simulated.Recorder()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/var/short")
    assert _ray_folder(listener) == Path("/var/short/ray")
    assert listener.notes == []
    monkeypatch.setenv("TMPDIR", "/" + "x" * 89)
    assert _ray_folder(listener) == Path("/tmp/ray")  # noqa: S108
    assert len(listener.notes) == 1
    assert listener.notes[0].startswith("TMPDIR is 90 characters long, Ray's sockets take at most")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInput, match=r"TMPDIR is 90 characters long.*set RAY_TMPDIR to a folder with a short path"):
        _ray_folder(listener)


SWEEP = """
import sys
import simulated_stages as simulated
from assay.orchestrator.execution.driver import Options, run
from assay.orchestrator.work.bench import Context
if __name__ == "__main__":
    plan = simulated.plan(*(simulated.stage(f"s{{n}}", sleep_s={sleep}) for n in range({count})))
    run(plan, Context(sys.argv[1]), Options(workers=2, runner=simulated.RUNNER), simulated.Recorder())
"""


def sweep_process(out: Path, sleep: float, count: int) -> subprocess.Popen[str]:
    code = SWEEP.format(sleep=sleep, count=count)
    command = [sys.executable, "-c", code, str(out)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(done: Any, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


AGENTS = ("ray::Dashboard", "ray::RuntimeEnv")  # a killed node's; idle, they give up after a minute


def alive_with(marker: str) -> dict[int, str]:
    """Processes, by name, whose environment or command line names the sweep's folder; agents left out."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            name = (path / "comm").read_text()
        except OSError:
            continue
        if marker.encode() in text and int(path.name) != os.getpid() and not name.startswith(AGENTS):
            found[int(path.name)] = name
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_an_ended_driver_leaves_no_process_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSAY_TEST_MARK", str(tmp_path))  # inherited by all that Ray starts
    for how in (signal.SIGINT, signal.SIGKILL):
        ran = len(simulated.executions(tmp_path))
        driver = sweep_process(tmp_path, sleep=30.0, count=4)
        wait_for(lambda ran=ran: len(simulated.executions(tmp_path)) >= ran + 2)
        started = time.monotonic()
        driver.send_signal(how)
        out, _ = driver.communicate(timeout=60)
        assert out == "", "nothing of Ray's on standard output"
        while left := alive_with(str(tmp_path)):
            assert time.monotonic() - started < 30.0, f"still alive after {how!r}: {left}"
            time.sleep(0.2)
    before = Store(tmp_path / "store").committed_keys()
    last = sweep_process(tmp_path, sleep=0.0, count=4)  # `sleep_s` is part of a stage's key: four new stages
    _, errors = last.communicate(timeout=200)
    assert last.returncode == 0, errors
    assert len(Store(tmp_path / "store").committed_keys() - before) == 4
