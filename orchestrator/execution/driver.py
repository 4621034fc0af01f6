"""Executing a plan, on Ray Tune or by another executor. Resuming is running again.

"Done" means that the stage's record is in the store, whatever a worker said; an executor's own state is thrown away.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.orchestrator.execution.executor import Listener, Options, Summary, executor
from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.tasks.errors import BadInput

__all__ = ["Listener", "Options", "Summary", "driver_lock", "run"]

_HELD: set[Path] = set()  # folders that this process has locked


def run(plan: Plan, context: Context, options: Options, listener: Listener) -> Summary:
    """Execute what the store lacks of a plan, and return what became of every stage.

    Failures noted by earlier runs are forgotten: their stages run again.

    Raises:
        BadInput: another driver works on the same folder, or no worker has the resources that a stage needs.
        AssayError: the sweep cannot go on, e.g. the disk is full; what was committed stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was committed stays, running again goes on from there.
    """
    chosen = executor(options.executor)
    out = Path(context.out)
    out.mkdir(parents=True, exist_ok=True)
    with driver_lock(out):
        store = Store(out / "store")
        store.clear_failures()
        store.clear_running()
        if not plan.missing(plan.done(store)):
            chosen = executor("inline")  # nothing to start workers for
        return chosen.run(plan, context, options, listener, store)


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
