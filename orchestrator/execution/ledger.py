"""What executors share: the account of a plan's stages by what the store holds, and how a worker runs one."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from assay.orchestrator.execution.executor import Listener, Options, Summary
from assay.orchestrator.execution.scheduler import Capacity, Scheduler, Trial
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store, out_of_room
from assay.orchestrator.work.bench import Context
from assay.orchestrator.work.stages import Status
from assay.tasks.errors import AssayError

# Logical resources by class. A fraction of a GPU admits several trials to one device; it limits no memory.
RESOURCES: Mapping[str, Mapping[str, float]] = {
    "cpu": {"CPU": 1.0},
    "gpu.small": {"CPU": 1.0, "GPU": 0.25},
    "gpu.medium": {"CPU": 1.0, "GPU": 0.5},
    "gpu.large": {"CPU": 1.0, "GPU": 1.0},
}

Runner = Callable[[Stage, Context], Status]
Attempt = Status | Literal["no_room"]  # what a worker says of a stage


class Ledger:
    """Tells the scheduler and the listener what became of the stages, by what the store holds.

    Attributes:
        halted: one line saying why no stage can be committed any more; empty while all is well.
    """

    def __init__(self, plan: Plan, store: Store, scheduler: Scheduler, listener: Listener) -> None:
        self.plan, self.store, self.scheduler, self.listener = plan, store, scheduler, listener
        self.summary = Summary(cached=len(scheduler.had))
        self.halted = ""

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
        if stage.done(self.store):
            self.scheduler.commit(stage.key)
            if status == "cached":
                self.summary.cached += 1
            else:
                self.summary.executed += 1
            self.listener.on_done(stage, "cached" if status == "cached" else "executed")
            return True
        if status == "no_room":
            self.halted = f"{self.store.root}: no room left on the device, at {stage.label}"
            return False
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

    def check(self) -> None:
        """Raise `AssayError` if no stage can be committed any more, `Stuck` if nothing runs and nothing can start."""
        if self.halted:
            raise AssayError(f"{self.halted}; what is committed is kept, make room and run the same command again")
        self.scheduler.check()

    def close(self) -> Summary:
        """Return the summary of a finished sweep."""
        for key in self.plan.stages:
            before = "committed" if key in self.scheduler.had else "not_needed"
            self.summary.states[key] = self.scheduler.state.get(key, before)
        return self.summary


def new_scheduler(plan: Plan, store: Store, capacity: Capacity, options: Options) -> Scheduler:
    """Return the scheduler of what the store lacks of a plan."""
    return Scheduler(
        plan,
        plan.done(store),
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


def attempt(runner: Runner, stage: Stage, context: Context) -> Attempt:
    """Run a stage; what the runner itself did not catch is noted as the stage's failure too.

    A full disk is no failure of the stage: nothing can be noted then, and the next stage would meet the same.
    """
    try:
        try:
            return runner(stage, context)
        except Exception as error:
            if out_of_room(error):
                return "no_room"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            Store(Path(context.out) / "store").fail(stage.key, "error", reason, traceback.format_exc())
            return "failed"
    except OSError as error:
        if out_of_room(error):
            return "no_room"
        raise
