"""Shipped grids parse, and between them they hold the cells that the claims ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assay.orchestrator.planning.catalogue import shipped_grids
from assay.orchestrator.planning.configs import configured
from assay.orchestrator.planning.grid import Grid, parse
from assay.orchestrator.planning.planner import check_grid
from assay.orchestrator.planning.registry import Registry
from assay.results.claims import CLAIMS, Cells
from assay.results.example import make_row

REGISTRY = Registry()
GRIDS = sorted(shipped_grids())
ABSENT = {"cap", "lsb", "zhang"}  # methods that claims name and nobody has written


@pytest.mark.parametrize("name", GRIDS)
def test_a_shipped_grid_is_valid(name: str) -> None:
    check_grid(parse(name, REGISTRY), REGISTRY)


def config(plugins: Any, key: str, params: dict[str, Any]) -> str:
    made = configured(plugins[key], {**plugins[key].laptop, **params})
    return json.dumps(made.config.model_dump(mode="json"))


def cells_of(grid: Grid) -> list[dict[str, Any]]:
    return [
        make_row(
            cell_key=f"{grid.name}-{t.key}-{m}-{a}-{seed}",
            task=t.key,
            method=m.key,
            method_config=config(REGISTRY.methods, m.key, m.params),
            attack=a.key,
            attack_config=config(REGISTRY.attacks, a.key, a.params),
            victim_seed=seed,
        )
        for t in grid.tasks
        for m in grid.methods
        for a in grid.attacks
        for seed in grid.seeds
        if all(not entry.tasks or t.key in entry.tasks for entry in (m, a))
    ]


@pytest.fixture(scope="module")
def shipped() -> Cells:
    grids = [parse(name, REGISTRY) for name in GRIDS if name.startswith("claims-")]
    return Cells([row for grid in grids for row in cells_of(grid)])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_the_grids_hold_the_cells_of_a_claim(claim: Any, shipped: Cells) -> None:
    for part in (*claim.tests, *claim.controls):
        for figure in part.value.figures():
            if all(choice.method in ABSENT for choice in figure.choices):
                continue
            for task in claim.on if part.tasks is None else part.tasks:
                missing = figure.measure(shipped, task).missing
                assert all("was not measured" in why for why in missing), f"{task}: {missing}"


def test_claims_state_parameters_that_exist() -> None:
    for claim in CLAIMS:
        for part in (*claim.tests, *claim.controls):
            for choice in (choice for figure in part.value.figures() for choice in figure.choices):
                named: tuple[tuple[Any, str | None, Any], ...] = (
                    (REGISTRY.methods, choice.method, choice.config),
                    (REGISTRY.attacks, choice.attack, choice.attack_config),
                )
                for plugins, key, stated in named:
                    if key not in {None, *ABSENT}:
                        configured(plugins[key], stated, f"{claim.id}: {choice.label}")
