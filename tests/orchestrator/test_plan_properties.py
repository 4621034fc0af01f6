"""Keys under any way of writing a grid: order, nesting and splitting change none, the calibration only the null's."""

from __future__ import annotations

import itertools
import random
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.orchestrator.planning.grid import parse_text
from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.results.schema import COLUMNS

REGISTRY = Registry()
ASKED = [column.name for column in COLUMNS if column.part == "asked"]
# Points of an axis, each written alone: key and parameters.
Point = tuple[str, tuple[tuple[str, Any], ...]]
METHODS: list[Point] = [
    ("clean", ()),
    ("adi", ()),
    *(("uchida", (("bits", bits), ("strength", strength))) for bits in (16, 32) for strength in (0.1, 1.0)),
]
ATTACKS: list[Point] = [
    ("none", ()),
    *(("prune", (("ratio", ratio),)) for ratio in (0.2, 0.8)),
    *(("fine-tune", (("epochs", epochs), ("split", split))) for epochs in (1, 2) for split in ("disjoint20", "same")),
    ("overwrite", ()),
]
TASKS = ["digits-lenet5", "digits-cnn-mini"]


def some(of: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(of), min_size=1, max_size=len(of), unique=True)


CHAINS = st.lists(st.lists(st.sampled_from(ATTACKS), min_size=2, max_size=3), max_size=2)
CALIBRATIONS = st.fixed_dictionaries(
    {"references": st.integers(1, 4), "keys": st.integers(10, 30), "processed": st.integers(0, 1)}
)
GRIDS = st.fixed_dictionaries(
    {
        "tasks": some(TASKS),
        "methods": some(METHODS),
        "attacks": some(ATTACKS),
        "chains": CHAINS,
        "seeds": some([0, 1, 5]),
        "attack_seeds": some([0, 2]),
        "calibration": CALIBRATIONS,
        "epochs": st.integers(1, 3),
    }
)
Grid = dict[str, Any]


def plan_of(written: Grid) -> Plan:
    text = yaml.safe_dump({"name": "any", "profile": "smoke", **written}, sort_keys=False)
    return build_plan(parse_text("grid", text, REGISTRY), REGISTRY, None)


def alone(point: Point) -> Any:
    key, params = point
    return {key: dict(params)} if params else key


def flat(grid: Grid) -> Grid:
    """Every point as an entry of its own, in the order given."""
    chains = [{"chain": [alone(link) for link in links]} for links in grid["chains"]]
    return {
        "tasks": grid["tasks"],
        "methods": [alone(point) for point in grid["methods"]],
        "attacks": [*(alone(point) for point in grid["attacks"]), *chains],
        "seeds": grid["seeds"],
        "attack_seeds": grid["attack_seeds"],
        "calibration": grid["calibration"],
        "train": {"epochs": grid["epochs"]},
    }


def shuffled(grid: Grid, draws: random.Random) -> Grid:
    """The same grid in another order, several entries in one mapping, and some doubled."""
    whole = flat(grid)
    for axis in ("methods", "attacks"):
        entries = [*whole[axis], draws.choice(whole[axis])]
        draws.shuffle(entries)
        joined: list[Any] = []
        for entry in entries:
            pairs = {entry: None} if isinstance(entry, str) else entry
            if (
                joined
                and isinstance(joined[-1], dict)
                and not joined[-1].keys() & pairs.keys()
                and draws.random() < 0.5
            ):
                joined[-1] |= pairs
            else:
                joined.append(dict(pairs) if draws.random() < 0.5 or not isinstance(entry, str) else entry)
        whole[axis] = joined
    for axis in ("tasks", "seeds", "attack_seeds"):
        whole[axis] = draws.sample(whole[axis], len(whole[axis]))
    return dict(draws.sample(list(whole.items()), len(whole)))


def same(one: Plan, *others: Plan) -> None:
    assert {cell.key for cell in one.cells} == {cell.key for plan in others for cell in plan.cells}
    assert set(one.stages) == {key for plan in others for key in plan.stages}


def kinds(plan: Plan, *names: str) -> set[str]:
    return {stage.key for stage in plan.stages.values() if stage.kind in names}


@settings(max_examples=30, deadline=None)
@given(GRIDS, st.randoms(use_true_random=False))
def test_order_nesting_and_doubles_change_no_key(grid: Grid, draws: random.Random) -> None:
    same(plan_of(flat(grid)), plan_of(shuffled(grid, draws)))


@settings(max_examples=20, deadline=None)
@given(GRIDS)
def test_a_list_of_values_is_an_axis(grid: Grid) -> None:
    """The points of a product, written as lists under each parameter."""
    axes: dict[str, list[Any]] = {"bits": [16, 32], "strength": [0.1, 1.0]}
    product = [("uchida", tuple(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    whole = flat({**grid, "methods": product})
    same(plan_of(whole), plan_of({**whole, "methods": [{"uchida": axes}]}))


@settings(max_examples=20, deadline=None)
@given(GRIDS, st.sampled_from(["tasks", "methods", "attacks", "seeds", "attack_seeds"]))
def test_splitting_along_any_axis_changes_no_key(grid: Grid, axis: str) -> None:
    whole = flat(grid)
    same(plan_of(whole), *(plan_of({**whole, axis: [entry]}) for entry in whole[axis]))


@settings(max_examples=30, deadline=None)
@given(GRIDS, CALIBRATIONS)
def test_the_calibration_enters_no_models_key(grid: Grid, other: dict[str, int]) -> None:
    one, two = plan_of(flat(grid)), plan_of(flat({**grid, "calibration": other}))
    assert kinds(one, "embed", "attack") == kinds(two, "embed", "attack")
    for plan in (one, two):
        for stage in plan.stages.values():
            assert ("calibration" in stage.identity) == (stage.kind == "calibrate")
            assert stage.kind == "calibrate" or not kinds(plan, "calibrate") & set(stage.parents)
    if all(other[name] >= grid["calibration"][name] for name in ("references", "processed")):
        assert kinds(one, "clean") <= kinds(two, "clean")
    assert (kinds(one, "calibrate") == kinds(two, "calibrate")) == (
        other == grid["calibration"] or not kinds(one, "calibrate")
    )


@settings(max_examples=30, deadline=None)
@given(GRIDS, CALIBRATIONS, st.integers(1, 3))
def test_two_cells_differ_in_what_their_rows_say_was_asked(grid: Grid, other: dict[str, int], epochs: int) -> None:
    grids = [grid, {**grid, "calibration": other}, {**grid, "epochs": epochs}]
    cells = {cell.key: cell for written in grids for cell in plan_of(flat(written)).cells}
    assert all(set(cell.point) == set(ASKED) for cell in cells.values())
    told = {tuple(cell.point[name] for name in ASKED) for cell in cells.values()}
    assert len(told) == len(cells)
