"""From a grid to a plan: resolve every entry with its defaults, drop doubles, key stages and cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from assay.attacks.base import Attack
from assay.methods.base import PROCESSES, Method
from assay.orchestrator.keys import SCHEMA, canonical, content_key
from assay.orchestrator.planning import cost
from assay.orchestrator.planning.calibration import ELSEWHERE
from assay.orchestrator.planning.configs import configured
from assay.orchestrator.planning.grid import Entry, Grid
from assay.orchestrator.planning.plan import Cell, Plan, Stage, StageKind
from assay.orchestrator.planning.registry import Registry
from assay.tasks import VERSION
from assay.tasks.data.sources import fingerprint
from assay.tasks.data.splits import SplitMode, lacks
from assay.tasks.errors import BadInput
from assay.tasks.task import Task, profiles, resolve_task
from assay.tasks.training.numerics import settle

# Whose split and reference models calibrate a method for all owners of a task; its null keys are nobody's.
_CALIBRATION_SEED = 0


@dataclass(frozen=True)
class _Plugin:
    """A configured method or attack with what keys and rows need of it."""

    plugin: Any
    key: str
    identity: dict[str, Any]
    config: str
    tasks: frozenset[str] = frozenset()  # that the grid wants it for; empty: all

    @staticmethod
    def of(plugin: Method | Attack, tasks: Iterable[str] = ()) -> _Plugin:
        config = plugin.config.model_dump(mode="json")
        identity = {"key": plugin.key, "version": plugin.version, "config": config}
        return _Plugin(plugin, plugin.key, identity, canonical(config), frozenset(tasks))

    def joined(self, other: _Plugin) -> _Plugin:
        """Return the plugin for the tasks of both entries that name it."""
        everywhere = not self.tasks or not other.tasks
        return replace(self, tasks=frozenset() if everywhere else self.tasks | other.tasks)

    def wanted(self, task: Task) -> bool:
        return not self.tasks or task.key in self.tasks


def build_plan(grid: Grid, registry: Registry, data_root: Path | None, device: str = "cpu", threads: int = 1) -> Plan:
    """Expand a grid into cells and the stages they share.

    Raises:
        BadInput: a parameter that its plugin refuses, or a grid without any cell.
        MissingData: a data set that is not on this machine.
    """
    return _Planner(grid, registry, data_root, device, threads).build()


def check_grid(grid: Grid, registry: Registry) -> None:
    """Check all that a grid says without looking at any data; for a sweep whose data lie elsewhere.

    Raises:
        BadInput: as `build_plan`.
    """
    _Planner(grid, registry, None, "cpu", 1)


class _Planner:
    def __init__(self, grid: Grid, registry: Registry, data_root: Path | None, device: str, threads: int) -> None:
        self.grid = grid
        self.data_root = data_root
        self.device = device
        # One thread is the rule; more change the order of sums, hence bits, so they are part of the key.
        self.numerics = (
            {"device": device} if threads == 1 or device == "cuda" else {"device": device, "threads": threads}
        )
        base = grid.profile if grid.profile in profiles() else "laptop"
        tasks = (
            resolve_task(e.key, base, {**grid.train, **_sizes(grid.calibration | e.calibration), **e.params}, e.where)
            for e in grid.tasks
        )
        self.tasks = _unique(t.but(schedule=settle(t.schedule, torch.device(device)).model_dump()) for t in tasks)
        self.methods = self._plugins(grid.methods, registry.methods, base)
        self.attacks = self._plugins(grid.attacks, registry.attacks, base)
        self.clean = _Plugin.of(configured(registry.methods["clean"], {}))
        self.processes = self._plugins([Entry(key, {}, "") for key in PROCESSES], registry.attacks, base)
        self.stages: dict[str, Stage] = {}

    @staticmethod
    def _plugins(entries: list[Entry], registry: Any, base: str) -> list[_Plugin]:
        found: dict[str, _Plugin] = {}
        for entry in entries:
            cls = registry[entry.key]
            params = {**(cls.laptop if base != "paper" else {}), **entry.params}
            made = _Plugin.of(configured(cls, params, f"{entry.where}: {entry.key}"), entry.tasks)
            key = canonical(made.identity)
            found[key] = found[key].joined(made) if key in found else made
        return list(found.values())

    def build(self) -> Plan:
        cells = {cell.key: cell for cell in self._cells()}
        if not cells:
            raise BadInput(
                f"{self.grid.name}: no cells; `only` keeps every method or every attack from the grid's tasks"
            )
        return Plan(self.grid.name, self.grid.profile, list(cells.values()), self.stages)

    def _cells(self) -> Iterator[Cell]:
        for task in self.tasks:
            facts = _TaskFacts(task, fingerprint(task.dataset, self.data_root), self.device)
            attacks = [attack for attack in self.attacks if attack.wanted(task)]
            for method in self.methods:
                if not method.wanted(task):
                    continue
                unfit = method.plugin.supports(task)
                pairs = [(attack, unfit or _unfit(attack, method, task)) for attack in attacks]
                for seed in self.grid.seeds:
                    yield from self._row_of_cells(facts, method, pairs, seed)

    def _row_of_cells(
        self, facts: _TaskFacts, method: _Plugin, pairs: list[tuple[_Plugin, str | None]], seed: int
    ) -> Iterator[Cell]:
        embed = None
        for attack, unfit in pairs:
            if not unfit and embed is None:
                embed = self._embed(facts, method, seed)
            for attack_seed in self.grid.attack_seeds:
                point = {**facts.identity, "seed": seed, "method": method.identity, "attack": attack.identity}
                stage = None if unfit or embed is None else self._attack(facts, method, embed, attack, attack_seed)
                yield Cell(
                    key=content_key({**point, "attack_seed": attack_seed, "numerics": self.numerics}),
                    task=facts.task.key,
                    dataset=facts.task.dataset,
                    model=facts.task.model,
                    profile=self.grid.profile,
                    split=attack.identity["config"].get("split", "none"),
                    method=method.key,
                    method_config=method.config,
                    attack=attack.key,
                    attack_config=attack.config,
                    victim_seed=seed,
                    attack_seed=attack_seed,
                    clean_key=embed.identity["unmarked"]["clean"] if stage and embed else None,
                    embed_key=embed.key if stage and embed else None,
                    attack_key=stage.key if stage else None,
                    reason=unfit or "",
                )

    def _add(  # the one place that makes a stage
        self, kind: StageKind, identity: dict[str, Any], parents: tuple[str, ...], label: str, facts: _TaskFacts, *,
        passes: float, cheap: bool = False,
    ) -> Stage:  # fmt: skip
        identity = {"schema": SCHEMA, "stage": kind, "numerics": self.numerics, **identity}
        key = content_key(identity)
        if key not in self.stages:
            seconds = cost.seconds(passes, facts.size.flops, self.device)
            self.stages[key] = Stage(key, kind, identity, parents, seconds, cheap, label, facts.resource)
        return self.stages[key]

    def _scratch(self, facts: _TaskFacts, seed: int, split: str) -> Stage:
        """What the attacker reaches on its own data without any victim: the measure of a pointless attack."""
        identity = {
            "task": facts.training,
            "data": facts.data,
            "seed": seed,
            "train_seed": f"train|{seed}|scratch",
            "trainer": VERSION,
            "attacker": split,
        }
        label = f"clean scratch {split} | {facts.task.key} | seed {seed}"
        return self._add("clean", identity, (), label, facts, passes=0.75 * facts.owner * facts.task.schedule.epochs)

    def _calibrate(self, facts: _TaskFacts, method: _Plugin) -> Stage:
        task, seed = facts.task, _CALIBRATION_SEED
        wanted = dict.fromkeys((*method.plugin.unmarked(task), *method.plugin.nulls(task)))
        roles = {role: self._clean(facts, seed, role).key for role in wanted}
        identity = {**facts.identity, "seed": seed, "method": method.identity, "unmarked": roles}
        passes = 100.0 * task.calibration_keys * task.references
        label = f"calibrate {method.key} | {task.key}"
        return self._add("calibrate", identity, tuple(roles.values()), label, facts, passes=passes)

    def _clean(self, facts: _TaskFacts, seed: int, role: str) -> Stage:
        if "|" in role:
            return self._processed(facts, seed, role)
        train_seed = f"train|{seed}" if role == "clean" else f"train|{seed}|{role}"
        identity = {
            "task": facts.training,
            "data": facts.data,
            "seed": seed,
            "train_seed": train_seed,
            "trainer": VERSION,
        }
        passes = 3.0 * facts.owner * facts.task.schedule.epochs
        label = f"clean {role} | {facts.task.key} | seed {seed}"
        return self._add("clean", identity, (), label, facts, passes=passes)

    def _processed(self, facts: _TaskFacts, seed: int, role: str) -> Stage:
        """An unmarked model that somebody attacked: what a mark reads as by chance is not the same on those."""
        reference, _, process = role.partition("|")
        parent = self._clean(facts, seed, reference)
        attack = next(plugin for plugin in self.processes if plugin.key == process)
        # Whatever an attacker of this task holds; the owner's own data do for whom no split is promised.
        modes: tuple[SplitMode, ...] = ("disjoint20", "sok", "same")
        split = next(mode for mode in modes if not lacks(mode, facts.task.attacker_share))
        attack = _Plugin.of(type(attack.plugin)(attack.plugin.config.but(split=split)))
        identity = {
            "task": facts.training,
            "data": facts.data,
            "seed": seed,
            "train_seed": f"train|{seed}|{role}",
            "processed": parent.key,
            "method": self.clean.identity,
            "attack": attack.identity,
        }
        passes = 0.0 if attack.plugin.cheap else 0.75 * facts.owner * facts.task.schedule.epochs
        label = f"clean {reference} {process} | {facts.task.key} | seed {seed}"
        return self._add("clean", identity, (parent.key,), label, facts, passes=passes)

    def _embed(self, facts: _TaskFacts, method: _Plugin, seed: int) -> Stage:
        roles = {role: self._clean(facts, seed, role).key for role in method.plugin.unmarked(facts.task)}
        identity = {**facts.identity, "seed": seed, "method": method.identity, "unmarked": roles}
        passes = 3.0 * facts.owner * method.plugin.schedule(facts.task).epochs
        label = f"embed {method.key} | {facts.task.key} | seed {seed}"
        return self._add("embed", identity, tuple(roles.values()), label, facts, passes=passes)

    def _attack(self, facts: _TaskFacts, method: _Plugin, embed: Stage, attack: _Plugin, attack_seed: int) -> Stage:
        own = {name: embed.identity[name] for name in ("task", "data", "seed", "method")}
        identity = {**own, "attack": attack.identity, "attack_seed": attack_seed, "embed": embed.key}
        more, parents = self._given(facts, method, embed, attack)
        if attack.plugin.twin and method.key != self.clean.key:
            unmarked = self._embed(facts, self.clean, embed.identity["seed"])
            more["twin"] = self._attack(facts, self.clean, unmarked, attack, attack_seed).key
            parents.append(more["twin"])
        identity |= more
        epochs = attack.identity["config"].get("epochs") or facts.task.schedule.epochs
        passes = 0.0 if attack.plugin.cheap else 3.0 * facts.owner / 4 * epochs
        label = f"attack {attack.key} | {own['method']['key']} | {facts.task.key} | seed {own['seed']}"
        if attack_seed:
            label += f".{attack_seed}"
        return self._add(
            "attack", identity, tuple(dict.fromkeys((embed.key, *parents))), label, facts,
            passes=passes, cheap=attack.plugin.cheap,
        )  # fmt: skip

    def _given(
        self, facts: _TaskFacts, method: _Plugin, embed: Stage, attack: _Plugin
    ) -> tuple[dict[str, Any], list[str]]:
        """Return what an attack and its judge have beyond the victim: entries of the identity, parents behind them."""
        given: dict[str, Any] = {}
        parents: list[str] = []
        seed = embed.identity["seed"]
        if method.plugin.shares_null():
            given["calibrate"] = self._calibrate(facts, method).key
            parents.append(given["calibrate"])
        split, leaves_a_model = attack.plugin.config.split, attack.plugin.kind in ("removal", "ambiguity")
        if attack.plugin.needs_data and leaves_a_model and split not in ("none", "ood"):
            given["scratch"] = self._scratch(facts, seed, split).key
            parents.append(given["scratch"])
        if others := attack.plugin.datasets(facts.task):
            given["other"] = {key: fingerprint(key, self.data_root) for key in others}
        if roles := attack.plugin.unmarked(facts.task, method.plugin):
            given["unmarked"] = {role: self._clean(facts, seed, role).key for role in roles}
            parents += given["unmarked"].values()
        if attack.plugin.config.beside_unmarked and leaves_a_model and method.plugin.access != "nothing":
            given["beside"] = embed.identity["unmarked"]["clean"]
            parents.append(given["beside"])
        if count := attack.plugin.peers(facts.task):
            # Victims of one block of seeds are each other's peers, whatever other seeds the grid asks for.
            first = seed - seed % count
            given["peers"] = [self._embed(facts, method, peer).key for peer in range(first, first + count)]
            parents += given["peers"]
        return given, parents


def _unfit(attack: _Plugin, method: _Plugin, task: Task) -> str | None:
    """Return why an attack does not apply, be it for lack of the data that its split mode promises."""
    if attack.plugin.needs_data and (why := lacks(attack.plugin.config.split, task.attacker_share)):
        return why
    reason: str | None = attack.plugin.supports(task, method.plugin)
    return reason


class _TaskFacts:
    """What keys and estimates need of a task, computed once."""

    def __init__(self, task: Task, data: str, device: str) -> None:
        self.task = task
        self.data = data
        whole = task.model_dump(mode="json")
        # An unmarked model does not depend on how many of its kind calibrate a threshold.
        self.training = {k: v for k, v in whole.items() if k not in ("references", "processed", "calibration_keys")}
        self.identity = {"task": whole, "data": data}
        whole_set = (task.info.counts or (10_000, 0))[0]
        self.owner = 0.8 * min(task.samples or whole_set, whole_set)
        self.size = cost.size(task.dataset, task.model)
        if device == "cpu":
            self.resource = "cpu"
        else:
            many = self.size.parameters
            self.resource = "gpu.small" if many < 1e6 else "gpu.medium" if many < 2e7 else "gpu.large"


def _sizes(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a calibration under the names that a task gives them."""
    return {name: calibration[field] for name, field in ELSEWHERE.items() if field in calibration}


def _unique(tasks: Iterator[Task]) -> list[Task]:
    found: dict[str, Task] = {}
    for task in tasks:
        found.setdefault(canonical(task.model_dump(mode="json")), task)
    return list(found.values())
