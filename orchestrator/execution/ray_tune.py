"""The executor on Ray Tune, as far as it must be known before Ray is imported; `tune_driver` is the rest."""

from __future__ import annotations

import os

from assay.orchestrator.execution.executor import Listener, Options, Summary
from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context


class RayTune:
    """Runs stages as trials of Ray Tune, on this machine or on a cluster."""

    def run(self, plan: Plan, context: Context, options: Options, listener: Listener, store: Store) -> Summary:
        """Execute what is missing; see `Executor`."""
        if options.address is None:
            # Ray's servers bind to all interfaces but on systems without its clusters; read when Ray is imported.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        from assay.orchestrator.execution.tune_driver import run_tune  # Ray takes seconds to import

        return run_tune(plan, context, options, listener, store)
