"""Executing a plan: on Ray Tune, or inline for tests and a debugger. Resuming is running again.

"Done" means that the stage's record is in the store, whatever a worker said; Tune's own state is thrown away.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from assay.orchestrator.execution.scheduler import Capacity, Scheduler, Trial
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.orchestrator.work.stages import Status
from assay.tasks.errors import BadInput

# Logical resources by class. A fraction of a GPU admits several trials to one device; it limits no memory.
RESOURCES: Mapping[str, Mapping[str, float]] = {
    "cpu": {"CPU": 1.0},
    "gpu.small": {"CPU": 1.0, "GPU": 0.25},
    "gpu.medium": {"CPU": 1.0, "GPU": 0.5},
    "gpu.large": {"CPU": 1.0, "GPU": 1.0},
}

_HELD: set[Path] = set()  # folders that this process has locked

Runner = Callable[[Stage, Context], Status]


@dataclass(frozen=True)
class Options:
    """How to execute; nothing of it changes a result.

    Attributes:
        executor: `tune`, or `inline`: in this process, one stage after the other.
        workers: trials at once; None: as many as the machine or cluster holds.
        pack: let several short stages travel in one trial.
        pack_s: estimated seconds of such a trial.
        address: of a Ray cluster (`auto` inside a job); None starts Ray on this machine alone.
        max_deaths: deaths of its worker after which a stage counts as failed.
        runner: `module:function` that runs one stage.
    """

    executor: Literal["tune", "inline"] = "tune"
    workers: int | None = None
    pack: bool = True
    pack_s: float = 60.0
    address: str | None = None
    max_deaths: int = 5
    runner: str = "assay.orchestrator.work.stages:execute"


@dataclass
class Summary:
    """What became of the plan's stages; `states` holds committed, failed, blocked or not_needed by stage key."""

    executed: int = 0
    cached: int = 0
    failed: int = 0
    blocked: int = 0
    states: dict[str, str] = field(default_factory=dict)


class Listener(Protocol):
    """Told of each stage, in the driver's process and main thread."""

    def on_start(self, stage: Stage) -> None:
        """A stage is at work from now on (again, if its worker died before)."""

    def on_done(self, stage: Stage, status: str) -> None:
        """A stage has ended: executed, cached (committed by somebody else meanwhile), failed or blocked."""

    def on_note(self, text: str) -> None:
        """Something that a person should know, one line."""


class Ledger:
    """Tells the scheduler and the listener what became of the stages, by what the store holds."""

    def __init__(self, plan: Plan, store: Store, scheduler: Scheduler, listener: Listener) -> None:
        self.plan, self.store, self.scheduler, self.listener = plan, store, scheduler, listener
        self.summary = Summary(cached=len(scheduler.had))

    def settled(self, key: str) -> bool:
        """Return whether the stage has ended."""
        return self.scheduler.state[key] in ("committed", "failed", "blocked")

    def settle(self, stage: Stage, status: str | None) -> bool:
        """Book the end of a stage; return False if the store holds neither its record nor, if it failed, a reason.

        Args:
            stage: of a trial that is or was alive.
            status: what the worker said, None if it died.
        """
        if self.settled(stage.key):
            return True
        if self.store.committed(stage.key):
            self.scheduler.commit(stage.key)
            if status == "cached":
                self.summary.cached += 1
            else:
                self.summary.executed += 1
            self.listener.on_done(stage, "cached" if status == "cached" else "executed")
            return True
        failure = self.store.failure(stage.key)
        if status != "failed" or failure is None:
            return False
        self._fail(stage, failure["reason"])
        return True

    def retire(self, trial: Trial, died_at: str | None, why: str) -> None:
        """Book the end of a trial; a stage that has killed its worker too often has failed."""
        culprit = self.scheduler.retire(trial, died_at)
        if died_at is not None and culprit is None:
            label = self.plan.stages[died_at].label
            self.listener.on_note(f"a worker died ({why}); runs again: {label}")
        if culprit is not None:
            reason = f"killed its worker {self.scheduler.deaths[culprit]} times ({why})"
            self.store.fail(culprit, "killed", reason, "")
            self._fail(self.plan.stages[culprit], reason)

    def _fail(self, stage: Stage, reason: str) -> None:
        blocked = self.scheduler.fail(stage.key, reason)
        self.summary.failed += 1
        self.summary.blocked += len(blocked)
        self.listener.on_done(stage, "failed")
        for key in blocked:
            self.listener.on_done(self.plan.stages[key], "blocked")

    def close(self) -> Summary:
        """Return the summary of a finished sweep."""
        for key in self.plan.stages:
            before = "committed" if key in self.scheduler.had else "not_needed"
            self.summary.states[key] = self.scheduler.state.get(key, before)
        return self.summary


def run(plan: Plan, context: Context, options: Options, listener: Listener) -> Summary:
    """Execute what the store lacks of a plan, and return what became of every stage.

    Failures noted by earlier runs are forgotten: their stages run again.

    Raises:
        BadInput: another driver works on the same folder, or no worker has the resources that a stage needs.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was committed stays, running again goes on from there.
    """
    out = Path(context.out)
    out.mkdir(parents=True, exist_ok=True)
    with driver_lock(out):
        store = Store(out / "store")
        store.clear_failures()
        store.clear_running()
        if options.executor == "inline" or not plan.missing(store.committed_keys()):
            return _run_inline(plan, context, options, listener, store)
        if options.address is None:
            # Ray's servers bind to all interfaces but on systems without its clusters; read when Ray is imported.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        from assay.orchestrator.execution.tune_driver import run_tune  # Ray takes seconds to import

        return run_tune(plan, context, options, listener, store)


def _run_inline(plan: Plan, context: Context, options: Options, listener: Listener, store: Store) -> Summary:
    capacity = Capacity(1, {"CPU": 1.0, "GPU": 1.0})
    scheduler = new_scheduler(plan, store, capacity, options)
    ledger = Ledger(plan, store, scheduler, listener)
    runner = resolve_runner(options.runner)
    while not scheduler.finished:
        trial = scheduler.release()
        if trial is None:
            scheduler.check()
            continue
        for stage in trial.stages:
            listener.on_start(stage)
            ledger.settle(stage, attempt(runner, stage, context))
        lost = next((stage.key for stage in trial.stages if not ledger.settled(stage.key)), None)
        ledger.retire(trial, lost, "reported done without a record")
    return ledger.close()


def new_scheduler(plan: Plan, store: Store, capacity: Capacity, options: Options) -> Scheduler:
    """Return the scheduler of what the store lacks of a plan."""
    return Scheduler(
        plan,
        store.committed_keys(),
        capacity,
        RESOURCES,
        pack=options.pack,
        pack_s=options.pack_s,
        max_deaths=options.max_deaths,
    )


def resolve_runner(path: str) -> Runner:
    """Import the function `module:name` that runs one stage."""
    module, _, name = path.partition(":")
    runner: Runner = getattr(importlib.import_module(module), name)
    return runner


def attempt(runner: Runner, stage: Stage, context: Context) -> Status:
    """Run a stage; what the runner itself did not catch is noted as the stage's failure too."""
    try:
        return runner(stage, context)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        Store(Path(context.out) / "store").fail(stage.key, "error", reason, traceback.format_exc())
        return "failed"


@contextmanager
def driver_lock(out: Path) -> Iterator[None]:
    """Hold the folder for this process alone, which may hold it already; the lock ends with it, however it ends.

    Raises:
        BadInput: another process holds it.
    """
    if out.resolve() in _HELD:
        yield
        return
    with (out / "driver.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BadInput(f"{out}: another sweep is running in this folder ({file.read().strip()})") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        _HELD.add(out.resolve())
        try:
            yield
        finally:
            _HELD.discard(out.resolve())
