"""The progress view: figures, lines, where it writes."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import simulated_stages as simulated
from rich.console import Console

from assay.orchestrator.command import progress as module
from assay.orchestrator.command.progress import Progress
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.store import Store


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def sweep(tmp_path: Path) -> tuple[Progress, list[Stage], Clock, io.StringIO]:
    root = simulated.stage("root", seconds=10.0)
    stages = [root, *(simulated.stage(f"leaf{n}", root, seconds=10.0) for n in range(3))]
    clock, stream = Clock(), io.StringIO()
    return Progress(simulated.plan(*stages), tmp_path, stream=stream, clock=clock), stages, clock, stream


def test_the_time_left_is_scaled_by_what_stages_took(tmp_path: Path) -> None:
    progress, stages, clock, _ = sweep(tmp_path)
    assert progress.remaining_s() is None
    progress.on_start(stages[0])
    clock.now = 20.0  # twice the estimate
    progress.on_done(stages[0], "executed")
    assert progress.remaining_s() == pytest.approx(60.0)  # three leaves on one worker
    progress.on_start(stages[1])
    progress.on_start(stages[2])
    assert progress.remaining_s() == pytest.approx(30.0)  # on two
    assert progress.line() == "1/4 stages | 2 running | 20 s elapsed | about 30 s left"
    progress.on_done(stages[1], "failed")
    progress.on_done(stages[2], "executed")
    clock.now = 3700.0
    assert progress.line().startswith("3/4 stages | 0 running | 1 failed | 1 h 1 min elapsed")


def test_committed_stages_are_not_counted_as_work(tmp_path: Path) -> None:
    stages = sweep(tmp_path)[1]
    Store(tmp_path / "store").commit(stages[0].key, {})
    assert sweep(tmp_path)[0].total == 3


def test_without_a_terminal_lines_are_occasional_and_failures_immediate(tmp_path: Path) -> None:
    progress, stages, clock, stream = sweep(tmp_path)
    with progress:
        progress.on_done(stages[0], "executed")
        assert stream.getvalue() == ""
        progress.store.fail(stages[1].key, "error", "no [memory] left", "")
        progress.on_done(stages[1], "failed")
        assert stream.getvalue() == "failed: leaf0: no [memory] left\n"
        clock.now = 31.0
        progress.on_done(stages[2], "executed")
        assert stream.getvalue().count("\n") == 2
        progress.on_note("a worker died")
    assert stream.getvalue().splitlines()[2] == "a worker died"
    assert stream.getvalue().splitlines()[-1].startswith("3/4 stages")
    assert "\x1b" not in stream.getvalue()


def test_the_view_shows_stages_at_work_and_the_last_figures(tmp_path: Path) -> None:
    progress, stages, clock, _ = sweep(tmp_path)
    progress.store.commit(stages[0].key, {"result": {"main": 0.9876, "verdict": {"score": 1.0}}})
    progress.on_done(stages[0], "executed")
    progress.on_start(stages[1])
    clock.now = 75.0
    page = Console(file=io.StringIO(), width=100, record=True)
    page.print(progress._view())
    text = page.export_text()
    assert "1/4 stages" in text
    assert "1 min 15 s  leaf0" in text
    assert "root: main 0.988, score 1.000" in text


def test_nothing_is_said_when_there_was_nothing_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stages = sweep(tmp_path)[1]
    store = Store(tmp_path / "store")
    for stage in stages:
        store.commit(stage.key, {})
    with Progress(simulated.plan(*stages), tmp_path, quiet=True):
        pass
    assert capfd.readouterr() == ("", "")


def test_a_long_stage_shows_a_sign_of_life_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.01)
    progress, stages, clock, stream = sweep(tmp_path)
    with progress:
        progress.on_start(stages[0])
        time.sleep(0.1)
        assert stream.getvalue() == "", "not before it is due"
        clock.now = 121.0
        until = time.monotonic() + 10.0
        while not stream.getvalue():
            assert time.monotonic() < until, "no sign of life"
            time.sleep(0.01)
        time.sleep(0.1)
        assert stream.getvalue() == "0/4 stages | 1 running | 2 min 1 s elapsed\n", "once, not at every beat"
