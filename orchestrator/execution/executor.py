"""What an executor is: it runs the stages that a plan still lacks, wherever it runs them.

A further executor (Slurm, a thread pool) is one class with `run`. It needs no entry here: `Options.executor` may be its
`module:Class`. `orchestrator.execution.ledger` holds what executors share: the account of the stages, and how one of
them is run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.tasks.errors import BadInput, unknown

# Imported when it is asked for: Ray takes seconds.
EXECUTORS: Mapping[str, str] = {
    "inline": "assay.orchestrator.execution.inline:Inline",
    "tune": "assay.orchestrator.execution.ray_tune:RayTune",
}


@dataclass(frozen=True)
class Options:
    """How to execute; nothing of it changes a result.

    Attributes:
        executor: `tune`; `inline`: in this process, one stage after the other; or `module:Class` of another one.
        workers: trials at once; None: as many as the machine or cluster holds.
        pack: let several short stages travel in one trial.
        pack_s: estimated seconds of such a trial.
        address: of a Ray cluster (`auto` inside a job); None starts Ray on this machine alone.
        max_deaths: deaths of its worker after which a stage counts as failed.
        runner: `module:function` that runs one stage.
    """

    executor: str = "tune"
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
    """Told of each stage, in the driver's process."""

    def on_start(self, stage: Stage) -> None:
        """A stage is at work from now on (again, if its worker died before); called in the main thread."""

    def on_done(self, stage: Stage, status: str) -> None:
        """A stage has ended: executed, cached (committed by somebody else meanwhile), failed or blocked; likewise."""

    def on_note(self, text: str) -> None:
        """Something that a person should know, one line; any thread may call this."""


class Executor(Protocol):
    """Runs what the store lacks of a plan; made without arguments."""

    def run(self, plan: Plan, context: Context, options: Options, listener: Listener, store: Store) -> Summary:
        """Execute the stages, parents first, and return what became of every stage of the plan.

        A stage has ended when the store holds its record or its failure, whatever a worker said.

        Raises:
            BadInput: no worker has the resources that a stage needs, or the cluster cannot be reached.
            AssayError: the sweep cannot go on; what is committed is kept.
            KeyboardInterrupt: Ctrl-C or SIGTERM, alike.
        """


def executor(name: str) -> Executor:
    """Return the executor of that name, or the one that `module:Class` names.

    Raises:
        BadInput: there is none.
    """
    if ":" not in name and name not in EXECUTORS:
        raise unknown("executor", name, [*EXECUTORS, "module:Class"])
    module, _, attribute = EXECUTORS.get(name, name).partition(":")
    try:
        made: Executor = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise BadInput(f"executor {name}: {error}") from error
    return made
