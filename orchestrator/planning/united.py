"""Several grids as one sweep: their cells are united, stages that they share are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from assay.orchestrator.planning.grid import Grid
from assay.orchestrator.planning.plan import Plan, Stage
from assay.tasks.errors import BadInput


def unite(grids: Sequence[Grid], plans: Sequence[Plan]) -> tuple[Grid, Plan]:
    """Return grids and their plans as one; a single grid is returned as it is.

    The united grid stands for all in the sweep's record: its name holds every name, its source every text; its axes are
    those of the first.

    Raises:
        BadInput: the grids are under different profiles.
    """
    first = grids[0]
    if len(grids) == 1:
        return first, plans[0]
    for grid in grids:
        if grid.profile != first.profile:
            raise BadInput(
                f"{first.name} is under the profile {first.profile}, {grid.name} under {grid.profile}; "
                "give one for all: --profile"
            )
    name = "+".join(dict.fromkeys(grid.name for grid in grids))
    source = "---\n".join(grid.source if grid.source.endswith("\n") else f"{grid.source}\n" for grid in grids)
    cells = {cell.key: cell for plan in plans for cell in plan.cells}
    # Parents stay before children: each plan has them so, and a stage that is there already has its parents there.
    stages: dict[str, Stage] = {}
    for stage in (stage for plan in plans for stage in plan.stages.values()):
        known = stages.setdefault(stage.key, stage)
        if stage.keep and not known.keep:  # a chain of one grid goes on from what an attack of another one leaves
            stages[stage.key] = replace(known, keep=True)
    return replace(first, name=name, source=source), Plan(name, first.profile, list(cells.values()), stages)
