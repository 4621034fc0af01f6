"""Estimates: operations as torch counts them, and durations that follow what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from assay.orchestrator.command.values import plan_values
from assay.orchestrator.planning.cost import corrected, example, seconds, size
from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.store import Store
from assay.tasks.data.sources import DATASETS
from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.architectures import ARCHITECTURES, kind_of
from assay.tasks.task import Task

REGISTRY = Registry()
# One data set of each kind and input size that the papers use; the first that a network takes is measured.
SHOWN = ("cifar10", "mnist", "youtube_faces", "trec")


def shown(model: str) -> Task:
    for dataset in SHOWN:
        task = Task(dataset=dataset, model=model)
        if dataset in DATASETS and DATASETS[dataset].kind == kind_of(model):
            try:
                task.architecture(model)
            except UnsupportedModel:
                continue
            return task
    raise AssertionError(f"none of {SHOWN} fits {model}")


@pytest.mark.parametrize("model", sorted(ARCHITECTURES))
def test_operations_are_those_that_torch_counts(model: str) -> None:
    task = shown(model)
    # On the meta device an LSTM is matrix products, which torch can count; on the CPU it is one call into oneDNN.
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = task.architecture(model).eval()
        network(example(task, 2))
    measured = size(task.dataset, model)
    assert measured.flops == pytest.approx(counter.get_total_flops() / 2, rel=0.03)
    assert measured.flops > 0
    assert measured.parameters == sum(p.numel() for p in network.parameters())


def test_training_longer_costs_in_proportion() -> None:
    base = seconds(0, 1e6, "cpu")
    once, twice = (seconds(passes, 1e6, "cpu") - base for passes in (1e5, 2e5))
    assert twice == pytest.approx(2 * once)
    assert seconds(1e5, 1e6, "cuda") < seconds(1e5, 1e6, "cpu")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    grid = {
        "tasks": ["digits-lenet5"], "methods": ["clean", "uchida"], "attacks": ["none", "fine-tune", "prune"],
        "seeds": 2, "profile": "smoke",
    }  # fmt: skip
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid), "utf-8")
    return build_plan(parse(str(path), REGISTRY), REGISTRY, None)


def finish(store: Store, stage: Stage, wall_s: float) -> None:
    store.commit(stage.key, {"costs": {"wall_s": wall_s}})


def of(plan: Plan, kind: str, plugin: str | None = None) -> list[Stage]:
    def named(stage: Stage) -> Any:
        return (stage.identity.get("attack") or stage.identity.get("method") or {}).get("key")

    return [stage for stage in plan.stages.values() if stage.kind == kind and plugin in (None, named(stage))]


def test_without_measurements_estimates_stay(plan: Plan, tmp_path: Path) -> None:
    same, measured = corrected(plan, Store(tmp_path / "store"), set())
    assert measured == 0
    assert [stage.seconds for stage in same.stages.values()] == [stage.seconds for stage in plan.stages.values()]


def test_estimates_follow_the_nearest_measurement(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    tuned, _ = of(plan, "attack", "fine-tune")[:2]
    clean = of(plan, "clean")[0]
    finish(store, tuned, 7 * tuned.seconds)
    finish(store, clean, 2 * clean.seconds)
    better, measured = corrected(plan, store, {tuned.key, clean.key})
    assert measured == 2

    def factor(stages: list[Stage]) -> set[float]:
        return {round(better.stages[stage.key].seconds / stage.seconds, 6) for stage in stages}

    assert factor(of(plan, "attack", "fine-tune")) == {7.0}
    assert factor(of(plan, "clean")) == {2.0}
    # No pruning was measured: its kind's factor. No embedding either: everything's, between the two.
    assert factor(of(plan, "attack", "prune")) == {7.0}
    (overall,) = factor(of(plan, "embed"))
    assert 2 < overall < 7


def test_a_damaged_record_is_no_measurement(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    clean = of(plan, "clean")[0]
    finish(store, clean, 5.0)
    (store.folder(clean.key) / "record.json").write_text("{", "utf-8")
    assert corrected(plan, store, {clean.key})[1] == 0


def test_a_plan_says_what_its_estimate_rests_on(plan: Plan, tmp_path: Path) -> None:
    before = plan_values(plan, tmp_path)["estimate"]
    store = Store(tmp_path / "store")
    for stage in of(plan, "clean"):
        finish(store, stage, 100 * stage.seconds)
    after = plan_values(plan, tmp_path)["estimate"]
    assert before["measured_stages"] == 0
    assert after["measured_stages"] > 0
    assert after["longest_path_seconds"] > before["longest_path_seconds"]
