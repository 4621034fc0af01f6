"""The scheduler on random graphs with random failures and deaths, and its packing on hand-made ones."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.orchestrator.execution.scheduler import Capacity, Scheduler, Stuck, Trial
from assay.orchestrator.keys import content_key
from assay.orchestrator.planning.plan import Cell, Plan, Stage

NEEDS = {"cpu": {"CPU": 1.0}, "gpu.small": {"CPU": 1.0, "GPU": 0.25}, "gpu.large": {"CPU": 1.0, "GPU": 1.0}}


def stage(name: str, *parents: str, seconds: float = 1.0, cheap: bool = False, resource: str = "cpu") -> Stage:
    keys = tuple(content_key(parent) for parent in parents)
    return Stage(content_key(name), "attack" if parents else "clean", {}, keys, seconds, cheap, name, resource)


def plan_of(*stages: Stage) -> Plan:
    inner = {parent for each in stages for parent in each.parents}
    leaves = [each.key for each in stages if each.key not in inner]
    cells = [Cell(key, {}, chain=(key,)) for key in leaves]
    return Plan("p", "smoke", cells, {each.key: each for each in stages})


def scheduler_of(plan: Plan, workers: int = 2, gpus: float = 1.0, **options: object) -> Scheduler:
    committed = options.pop("committed", ())
    return Scheduler(plan, committed, Capacity(workers, {"CPU": workers, "GPU": gpus}), NEEDS, **options)  # type: ignore[arg-type]


def names(trial: Trial | None) -> list[str]:
    assert trial is not None
    return [each.label for each in trial.stages]


@st.composite
def graphs(draw: st.DrawFn) -> Plan:
    size = draw(st.integers(1, 25))
    stages = []
    for number in range(size):
        parents = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        stages.append(
            stage(
                str(number),
                *(str(parent) for parent in sorted(parents)),
                seconds=draw(st.sampled_from([0.1, 1.0, 20.0, 100.0])),
                cheap=draw(st.booleans()),
                resource=draw(st.sampled_from(sorted(NEEDS))),
            )
        )
    return plan_of(*stages)


class World:
    """Workers that finish, fail or die by chance; checks what the scheduler hands out."""

    def __init__(self, scheduler: Scheduler, committed: set[str], chance: random.Random) -> None:
        self.scheduler, self.chance = scheduler, chance
        self.ends: dict[str, str] = dict.fromkeys(committed, "committed")
        self.deaths: Counter[str] = Counter()
        self.alive: list[tuple[Trial, int]] = []  # and the position of the stage at work

    def release(self) -> None:
        while (trial := self.scheduler.release()) is not None:
            assert all(self.ends.get(parent) == "committed" for each in trial.stages for parent in each.parents)
            assert len({each.resource for each in trial.stages}) == 1
            assert self.scheduler.pack or len(trial.stages) == 1
            self.alive.append((trial, 0))
            assert len(self.alive) <= self.scheduler.capacity.workers
            assert sum(NEEDS[other.resource].get("GPU", 0.0) for other, _ in self.alive) <= 1.0

    def step(self) -> None:
        trial, position = self.alive.pop(self.chance.randrange(len(self.alive)))
        key = trial.stages[position].key
        assert key not in self.ends, "ran again after its end"
        fate = self.chance.random()
        if fate < 0.15:
            self.deaths[key] += 1
            culprit = self.scheduler.retire(trial, key)
            assert (culprit == key) == (self.deaths[key] == self.scheduler.max_deaths)
            if culprit:
                self.fail(culprit)
        elif fate < 0.2:
            assert self.scheduler.retire(trial, None) is None, "it died before it began"
        else:
            self.fail(key) if fate < 0.3 else self.commit(key)
            if position + 1 < len(trial.stages):
                self.alive.append((trial, position + 1))
            else:
                assert self.scheduler.retire(trial) is None

    def commit(self, key: str) -> None:
        self.scheduler.commit(key)
        self.ends[key] = "committed"

    def fail(self, key: str) -> None:
        self.ends[key] = "failed"
        for blocked in self.scheduler.fail(key, "no"):
            assert blocked not in self.ends
            self.ends[blocked] = "blocked"


@given(graphs(), st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_every_stage_ends_once_after_its_parents(plan: Plan, workers: int, pack: bool, chance: random.Random) -> None:
    had = {key for key in plan.stages if chance.random() < 0.2}
    scheduler = scheduler_of(plan, workers, pack=pack, pack_s=30.0, max_deaths=3, committed=had)
    world = World(scheduler, had, chance)
    while not scheduler.finished:
        world.release()
        scheduler.check()
        assert world.alive, "the watchdog would have raised"
        world.step()
    assert scheduler.state == {key: world.ends[key] for key in plan.missing(had)}
    for key, end in world.ends.items():
        parents = [world.ends.get(parent) for parent in plan.stages[key].parents]
        assert (end == "blocked") <= any(parent in ("failed", "blocked") for parent in parents)


def test_the_longest_critical_path_goes_first() -> None:
    stages = [stage("short"), stage("long", seconds=2.0), stage("root"), stage("child", "root", seconds=50.0)]
    scheduler = scheduler_of(plan_of(*stages), workers=4, pack=False)
    assert [names(scheduler.release()) for _ in range(3)] == [["root"], ["long"], ["short"]]


def test_a_gpu_stage_goes_before_a_cpu_stage_with_a_longer_path() -> None:
    plan = plan_of(stage("cpu", seconds=100.0), stage("gpu", resource="gpu.large"))
    assert names(scheduler_of(plan, workers=1).release()) == ["gpu"]


def test_fractions_of_a_gpu_are_never_exceeded() -> None:
    stages = [stage(f"g{number}", seconds=100.0, resource="gpu.small") for number in range(6)]
    scheduler = scheduler_of(plan_of(*stages), workers=8)
    trials = [scheduler.release() for _ in range(5)]
    assert [trial is not None for trial in trials] == [True] * 4 + [False]


def test_cheap_stages_of_one_parent_travel_together() -> None:
    roots = [stage("a"), stage("b")]
    leaves = [stage(f"{parent}{n}", parent, seconds=0.5, cheap=True) for n in range(8) for parent in "ab"]
    plan = plan_of(*roots, *leaves)
    scheduler = scheduler_of(plan, workers=1, committed={root.key for root in roots})
    only = names(scheduler.release())
    assert len(only) == 16
    assert only == sorted(only, key=lambda name: name[0]), "all of one parent before the next"


def finish(scheduler: Scheduler, trial: Trial) -> None:
    for each in trial.stages:
        scheduler.commit(each.key)
    scheduler.retire(trial)


def test_work_is_spread_over_idle_workers_before_it_is_packed() -> None:
    plan = plan_of(*(stage(f"s{number}", cheap=True) for number in range(4)))
    scheduler = scheduler_of(plan, workers=4)
    assert [len(names(scheduler.release())) for _ in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("seconds", "options", "count"),
    [
        (10.0, {}, 6), (6.1, {}, 9),  # of 60 s unless told otherwise
        (7.0, {"pack_s": 56.0}, 8), (7.0, {"pack_s": 55.9}, 7), (7.0, {"pack_s": 1.0}, 1), (0.01, {}, 32),
        (7.0, {"pack": False}, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cheap", [False, True])
def test_a_trial_never_holds_more_than_its_seconds(
    seconds: float, options: dict[str, Any], count: int, cheap: bool
) -> None:
    leaves = [stage(f"s{number}", "root", seconds=seconds, cheap=cheap) for number in range(500)]
    scheduler = scheduler_of(plan_of(stage("root"), *leaves), committed={content_key("root")}, workers=1, **options)
    assert len(names(scheduler.release())) == count


@pytest.mark.parametrize(
    ("workers", "resources", "resource", "count"),
    [
        (8, {"CPU": 2}, "cpu", 8), (2, {"CPU": 8}, "cpu", 8), (8, {"CPU": 8, "GPU": 1}, "gpu.small", 4),
        (8, {"CPU": 8, "GPU": 0.5}, "gpu.small", 8), (8, {"CPU": 8, "GPU": 1}, "gpu.large", 30),
    ],
)  # fmt: skip
def test_half_a_fair_share_of_what_is_ready_travels_at_once(
    workers: int, resources: dict[str, float], resource: str, count: int
) -> None:
    """Of 32 stages of 1 s; the only slot there is takes as many as fit into its seconds."""
    needs = {**NEEDS, "cpu": {"CPU": 1.0, "GPU": 0.0}}
    plan = plan_of(*(stage(f"s{number}", resource=resource) for number in range(32)))
    first = Scheduler(plan, (), Capacity(workers, resources), needs, pack_s=30.0).release()
    assert len(names(first)) == count


def test_a_share_is_of_what_is_still_ready() -> None:
    plan = plan_of(*(stage(f"s{number}") for number in range(32)))
    scheduler = scheduler_of(plan, workers=2)
    first, second = scheduler.release(), scheduler.release()
    assert first is not None
    assert [len(names(trial)) for trial in (first, second)] == [8, 6]  # 24 s are left, then 18
    scheduler.commit(first.stages[0].key)
    assert scheduler.retire(first, died_at=first.stages[1].key) is None
    assert len(names(scheduler.release())) == 6  # 18 s and 7 that came back, a fourth of 25


def test_a_stage_that_ends_while_it_is_ready_is_ready_no_more() -> None:
    plan = plan_of(*(stage(f"s{number}") for number in range(32)))
    scheduler = scheduler_of(plan, workers=2)
    for key in list(plan.stages)[:16]:
        scheduler.commit(key)
    assert len(names(scheduler.release())) == 4


def test_siblings_are_of_the_parent_with_the_fewest_children_and_of_one_class() -> None:
    model, null = stage("model"), stage("null")
    own = [stage(f"own{n}", "null", "model", seconds=0.7, cheap=True) for n in range(3)]
    gpu = stage("gpu", "model", "null", seconds=0.5, cheap=True, resource="gpu.small")
    other = [stage(f"other{n}", "null", seconds=0.6, cheap=True) for n in range(3)]
    plan = plan_of(model, null, *other, *own, gpu)
    scheduler = scheduler_of(plan, workers=1, gpus=0.0, committed={model.key, null.key})
    assert names(scheduler.release())[:3] == ["own0", "own2", "own1"]


def test_a_dear_stage_travels_with_the_next_ones_and_not_with_siblings() -> None:
    roots = [stage("a"), stage("b")]
    leaves = [stage("a0", "a", seconds=5.0), stage("b0", "b", seconds=4.0), stage("a1", "a", seconds=3.0, cheap=True)]
    plan = plan_of(*roots, *leaves)
    scheduler = scheduler_of(plan, workers=1, committed={root.key for root in roots})
    assert names(scheduler.release()) == ["a0", "b0", "a1"]


def test_only_cheap_siblings_go_before_their_turn() -> None:
    roots = [stage("a"), stage("b")]
    leaves = [stage("a0", "a", seconds=5.0, cheap=True), stage("a1", "a", seconds=3.0), stage("b0", "b", seconds=4.0)]
    scheduler = scheduler_of(plan_of(*roots, *leaves), workers=1, committed={root.key for root in roots})
    assert names(scheduler.release()) == ["a0", "b0", "a1"]


def test_a_stage_may_kill_five_workers_unless_told_otherwise() -> None:
    only = stage("a")
    scheduler = scheduler_of(plan_of(only))
    ends = [scheduler.retire(trial, died_at=only.key) for _ in range(5) if (trial := scheduler.release())]
    assert ends == [None] * 4 + [only.key]


def test_trials_are_numbered() -> None:
    scheduler = scheduler_of(plan_of(stage("a"), stage("b")), pack=False)
    assert [trial.name for trial in (scheduler.release(), scheduler.release()) if trial] == ["00001", "00002"]


def test_what_a_failure_blocks_says_by_what() -> None:
    plan = plan_of(stage("root"), stage("child", "root"), stage("leaf", "child"), stage("other"))
    scheduler = scheduler_of(plan, pack=False)
    trial = scheduler.release()
    assert names(trial) == ["root"]
    blocked = scheduler.fail(content_key("root"), "no disk")
    assert blocked == [content_key("child"), content_key("leaf")]
    assert scheduler.reasons == {content_key("root"): "no disk", **dict.fromkeys(blocked, "blocked by root: no disk")}
    assert scheduler.state[content_key("other")] == "ready"
    for end in (scheduler.commit, lambda key: scheduler.fail(key, "again")):
        for key in (content_key("root"), *blocked):
            with pytest.raises(ValueError, match=f"^stage {key[:12]} is (failed|blocked) already, cannot become"):
                end(key)


def test_a_sweep_is_finished_when_its_last_trial_has_ended_too() -> None:
    scheduler = scheduler_of(plan_of(stage("a")))
    trial = scheduler.release()
    assert trial is not None
    scheduler.check()
    scheduler.commit(trial.stages[0].key)
    assert not scheduler.finished
    scheduler.retire(trial)
    assert scheduler.finished
    scheduler.check()


def test_what_was_there_before_is_known_and_is_of_the_plan() -> None:
    root, leaf = stage("root"), stage("leaf", "root")
    scheduler = scheduler_of(plan_of(root, leaf), committed={root.key, content_key("of another sweep")})
    assert scheduler.had == {root.key}
    assert scheduler.state == {leaf.key: "ready"}


def test_a_stage_fails_after_killing_its_worker_too_often_and_its_company_runs_on() -> None:
    stages = [stage(f"s{number}", seconds=0.1) for number in range(5)]
    scheduler = scheduler_of(plan_of(*stages), workers=1, max_deaths=2)
    first = scheduler.release()
    assert first is not None
    scheduler.commit(first.stages[0].key)
    assert scheduler.retire(first, died_at=first.stages[1].key) is None
    second = scheduler.release()
    assert second is not None
    assert {each.key for each in second.stages} == {each.key for each in first.stages[1:]}
    assert scheduler.retire(second, died_at=first.stages[1].key) == first.stages[1].key


def test_nothing_is_done_for_cells_that_are_committed() -> None:
    root, leaf = stage("root"), stage("leaf", "root")
    assert scheduler_of(plan_of(root, leaf), committed={leaf.key}).finished


def test_the_watchdog_names_what_waits_for_what() -> None:
    first, second = stage("first", "second"), stage("second", "first")  # a cycle, that no planner makes
    leaf = stage("leaf", "first")
    plan = plan_of(first, second, leaf)
    plan.__dict__["critical"] = dict.fromkeys(plan.stages, 1.0)
    scheduler = scheduler_of(plan)
    assert scheduler.release() is None
    with pytest.raises(Stuck) as why:
        scheduler.check()
    assert str(why.value) == (
        "3 stages are left and none can start: "
        f"first [waiting] waits for {second.key[:8]} (waiting); second [waiting] waits for {first.key[:8]} (waiting); "
        f"leaf [waiting] waits for {first.key[:8]} (waiting)"
    )


def test_a_class_that_fits_nowhere_is_reported() -> None:
    scheduler = scheduler_of(plan_of(stage("s", resource="gpu.large")), gpus=0.0)
    assert scheduler.infeasible() == {"gpu.large": "1 GPU of 0"}
    plan = plan_of(stage("a", resource="gpu.small"), stage("b"))
    for resources, lacking in (({"CPU": 1}, {"gpu.small": "0.25 GPU of 0"}), ({"CPU": 1, "GPU": 0.25}, {}), ({"GPU": 1},
        {"gpu.small": "1 CPU of 0", "cpu": "1 CPU of 0"})):  # fmt: skip
        assert Scheduler(plan, (), Capacity(2, resources), NEEDS).infeasible() == lacking
    assert scheduler_of(plan_of(stage("s")), gpus=0.0).infeasible() == {}, "no stage asks for a GPU"


def test_a_class_that_the_capacity_does_not_name_never_starts() -> None:
    plan = plan_of(stage("g", resource="gpu.small"), stage("c"))
    scheduler = Scheduler(plan, (), Capacity(4, {"CPU": 4}), NEEDS)
    assert names(scheduler.release()) == ["c"]
    assert scheduler.release() is None


def test_ten_thousand_stages_are_released_quickly() -> None:
    roots = [stage(f"r{number}", seconds=10.0) for number in range(100)]
    leaves = [stage(f"l{number}", f"r{number % 100}", seconds=0.1, cheap=True) for number in range(9_900)]
    scheduler = scheduler_of(plan_of(*roots, *leaves), workers=8)
    trials = 0
    while (trial := scheduler.release()) is not None:
        trials += 1
        finish(scheduler, trial)
    assert scheduler.finished
    assert trials < 1_000
