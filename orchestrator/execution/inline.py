"""The executor without Ray: in this process, one stage after the other; for tests and a debugger."""

from __future__ import annotations

from assay.orchestrator.execution.executor import Listener, Options, Summary
from assay.orchestrator.execution.ledger import Ledger, attempt, new_scheduler, resolve_runner
from assay.orchestrator.execution.scheduler import Capacity
from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context


class Inline:
    """Runs stages here; a stage that kills its process ends the driver."""

    def run(self, plan: Plan, context: Context, options: Options, listener: Listener, store: Store) -> Summary:
        """Execute what is missing; see `Executor`."""
        capacity = Capacity(1, {"CPU": 1.0, "GPU": 1.0})
        scheduler = new_scheduler(plan, store, capacity, options)
        ledger = Ledger(plan, store, scheduler, listener)
        runner = resolve_runner(options.runner)
        while not scheduler.finished:
            trial = scheduler.release()
            if trial is None:
                ledger.check()
                continue
            for stage in trial.stages:
                listener.on_start(stage)
                ledger.settle(stage, attempt(runner, stage, context))
                if ledger.halted:
                    ledger.check()
            lost = next((stage.key for stage in trial.stages if not ledger.settled(stage.key)), None)
            ledger.retire(trial, lost, "reported done without a record")
        return ledger.close()
