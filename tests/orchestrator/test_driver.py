"""The driver around the scheduler, inline: account, failures, resuming, the lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import simulated_stages as simulated

from assay.orchestrator.execution.driver import Options, Summary, driver_lock, run
from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.tasks.errors import AssayError, BadInput


def inline(plan: Plan, out: Path, **options: Any) -> tuple[Summary, simulated.Recorder]:
    listener = simulated.Recorder()
    chosen = Options(executor="inline", runner=simulated.RUNNER, **options)
    return run(plan, Context(str(out)), chosen, listener), listener


def family(**facts: Any) -> Plan:
    root = simulated.stage("root")
    child = simulated.stage("child", root, **facts)
    return simulated.plan(root, child, simulated.stage("grandchild", child), simulated.stage("other", root))


def test_running_again_executes_nothing(tmp_path: Path) -> None:
    plan = family()
    first, listener = inline(plan, tmp_path)
    assert (first.executed, first.cached, first.failed, first.blocked) == (4, 0, 0, 0)
    assert [label for label, _ in listener.done] == simulated.executions(tmp_path)
    second, listener = inline(plan, tmp_path)
    assert (second.executed, second.cached) == (0, 4)
    assert set(second.states.values()) == {"committed"}
    assert listener.started == []
    assert len(simulated.executions(tmp_path)) == 4


@pytest.mark.parametrize("facts", [{"fail": "it broke"}, {"raises": "it broke"}])
def test_a_failed_stage_blocks_its_descendants_alone_and_runs_again_next_time(
    tmp_path: Path, facts: dict[str, str]
) -> None:
    plan = family(**facts)
    summary, listener = inline(plan, tmp_path)
    assert (summary.executed, summary.failed, summary.blocked) == (2, 1, 1)
    labels = {plan.stages[key].label: state for key, state in summary.states.items()}
    assert labels == {"root": "committed", "child": "failed", "grandchild": "blocked", "other": "committed"}
    assert ("child", "failed") in listener.done
    assert ("grandchild", "blocked") in listener.done
    child = next(stage for stage in plan.stages.values() if stage.label == "child")
    failure = Store(tmp_path / "store").failure(child.key)
    assert failure is not None
    assert "it broke" in failure["reason"]
    assert inline(plan, tmp_path)[0].failed == 1
    assert simulated.executions(tmp_path).count("child") == 2


def test_a_word_without_a_record_is_not_believed(tmp_path: Path) -> None:
    summary, listener = inline(family(forgets=True), tmp_path, max_deaths=3)
    assert (summary.executed, summary.failed, summary.blocked) == (2, 1, 1)
    assert simulated.executions(tmp_path).count("child") == 3
    assert len(listener.notes) == 2


def test_a_stage_that_only_a_committed_cell_used_is_not_needed(tmp_path: Path) -> None:
    plan = family()
    by_label = {stage.label: stage.key for stage in plan.stages.values()}
    store = Store(tmp_path / "store")
    store.commit(by_label["grandchild"], {})
    store.commit(by_label["other"], {})
    summary, _ = inline(plan, tmp_path)
    assert summary.executed == 0
    assert summary.cached == 2
    assert summary.states[by_label["root"]] == "not_needed"


HOLD = """
import fcntl, sys, time
with open(sys.argv[1] + "/driver.lock", "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.write("process 7 elsewhere")
    file.flush()
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_two_drivers_never_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BadInput, match=r"another sweep is running .*process 7 elsewhere"):
            inline(family(), tmp_path)
        other.kill()
        other.wait()
        assert inline(family(), tmp_path)[0].executed == 4, "the lock of a killed driver is no obstacle"


def test_the_lock_may_be_taken_again_by_its_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), "0"]
    with driver_lock(tmp_path):
        assert inline(family(), tmp_path)[0].executed == 4
        taken = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "BlockingIOError" in taken.stderr, "the inner holder must not have let go"
    subprocess.run(command, check=True)


def test_a_full_disk_ends_the_sweep_in_one_line_and_fails_no_stage(tmp_path: Path) -> None:
    plan = family(full=True)
    with pytest.raises(
        AssayError, match=r"store: no room left on the device, at child; what is committed is kept"
    ) as caught:
        inline(plan, tmp_path)
    assert "\n" not in str(caught.value)
    store = Store(tmp_path / "store")
    assert not any(store.failure(key) for key in plan.stages)
    kept = store.committed_keys()
    assert kept
    (tmp_path / "room").touch()
    assert inline(plan, tmp_path)[0].executed == 4 - len(kept)


class Backwards:
    """An executor of somebody else's: it commits without running anything."""

    def run(self, plan: Plan, context: Context, options: Options, listener: object, store: Store) -> Summary:
        for key in plan.stages:
            store.commit(key, {})
        return Summary(executed=len(plan.stages))


def test_another_executor_is_one_class(tmp_path: Path) -> None:
    options = Options(executor=f"{__name__}:Backwards")
    assert run(family(), Context(str(tmp_path)), options, simulated.Recorder()).executed == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tunes", "unknown executor 'tunes'; did you mean 'tune'"),
        ("nowhere.slurm:Slurm", "executor nowhere.slurm:Slurm: No module named 'nowhere'"),
        ("assay.orchestrator.keys:Slurm", "executor assay.orchestrator.keys:Slurm: .* has no attribute 'Slurm'"),
    ],
)
def test_an_executor_that_is_none_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(family(), Context(str(tmp_path)), Options(executor=name), simulated.Recorder())
