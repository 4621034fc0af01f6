"""From a grid to a plan: resolve every entry with its defaults, drop doubles, key stages and cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assay.attacks.base import Attack, Needs
from assay.orchestrator.keys import SCHEMA, canonical, content_key
from assay.orchestrator.planning import cost
from assay.orchestrator.planning.configs import configured
from assay.orchestrator.planning.grid import Entry, Grid
from assay.orchestrator.planning.plan import Cell, Plan, Stage, StageKind
from assay.orchestrator.planning.points import Attacks, Plugin, TaskFacts, leaves, merged, unique, wanted
from assay.orchestrator.planning.registry import Registry
from assay.tasks import VERSION
from assay.tasks.calibration import PROCESSES, Calibration, resolve_calibration
from assay.tasks.data.sources import fingerprint
from assay.tasks.data.splits import SplitMode, lacks
from assay.tasks.errors import BadInput
from assay.tasks.task import Task, profiles, resolve_task
from assay.tasks.training.numerics import settle

_SHARED_SEED = 0
"""Seed of the split and of the references behind a null that all owners of a task share."""


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
        self.registry = registry
        self.data_root = data_root
        self.device = device
        # One thread is the rule; more change the order of sums, hence bits, so they are part of the key.
        self.numerics = (
            {"device": device} if threads == 1 or device == "cuda" else {"device": device, "threads": threads}
        )
        base = grid.profile if grid.profile in profiles() else "laptop"
        self.tasks = unique(self._task(entry, base) for entry in grid.tasks)
        self.methods = merged(self._plugin("method", entry, base) for entry in grid.methods)
        self.attacks = merged(self._attacks(entry, base) for entry in grid.attacks)
        self.clean = Plugin.of(configured(registry.methods["clean"], {}))
        self.processes = {key: self._plugin("attack", Entry(key, {}, ""), base) for key in PROCESSES}
        self.stages: dict[str, Stage] = {}

    # --- what the grid names ---------------------------------------------------------------------------------------

    def _task(self, entry: Entry, base: str) -> tuple[Task, Calibration]:
        task = resolve_task(entry.key, base, {**self.grid.train, **entry.params}, f"{entry.where}: ")
        task = task.but(schedule=settle(task.schedule, torch.device(self.device)).model_dump())
        return task, resolve_calibration(base, {**self.grid.calibration, **entry.calibration}, entry.where)

    def _plugin(self, what: Any, entry: Entry, base: str) -> Plugin:
        cls = (self.registry.methods if what == "method" else self.registry.attacks)[entry.key]
        params = {**(cls.laptop if base != "paper" else {}), **entry.params}
        made = configured(cls, params, f"{entry.where}: {entry.key}")
        return Plugin.of(made, self.registry.source(what, entry.key), entry.tasks)

    def _attacks(self, entry: Entry, base: str) -> Attacks:
        links = tuple(self._plugin("attack", link, base) for link in entry.links or (entry,))
        return Attacks(links, frozenset(entry.tasks))

    # --- cells -----------------------------------------------------------------------------------------------------

    def build(self) -> Plan:
        cells = {cell.key: cell for cell in self._cells()}
        if not cells:
            raise BadInput(
                f"{self.grid.name}: no cells; `only` keeps every method or every attack from the grid's tasks"
            )
        return Plan(self.grid.name, self.grid.profile, list(cells.values()), self.stages)

    def _cells(self) -> Iterator[Cell]:
        for task, calibration in self.tasks:
            facts = TaskFacts(task, calibration, fingerprint(task.dataset, self.data_root), self.device)
            attacks = [attack for attack in self.attacks if wanted(attack, task)]
            for method in self.methods:
                if not wanted(method, task):
                    continue
                unfit = method.plugin.supports(task)
                pairs = [(attack, unfit or attack.unfit(task, method)) for attack in attacks]
                for seed in self.grid.seeds:
                    yield from self._row_of_cells(facts, method, pairs, seed)

    def _row_of_cells(
        self, facts: TaskFacts, method: Plugin, pairs: list[tuple[Attacks, str | None]], seed: int
    ) -> Iterator[Cell]:
        embed, null = None, None
        for attack, unfit in pairs:
            if not unfit and embed is None:
                embed = self._embed(facts, method, seed)
                null = self._null(facts, method, embed)
            for attack_seed in self.grid.attack_seeds:
                point = {**facts.identity, "seed": seed, "method": method.identity, "attack": attack.identity}
                point |= {"calibration": facts.calibration, "attack_seed": attack_seed, "numerics": self.numerics}
                made = not unfit and embed is not None
                yield Cell(
                    key=content_key(point),
                    point=self._columns(facts, method, attack, seed, attack_seed),
                    clean_key=embed.identity["unmarked"]["clean"] if made and embed else None,
                    embed_key=embed.key if made and embed else None,
                    chain=self._chain(facts, method, embed, attack, attack_seed) if made and embed else (),
                    null_key=null.key if made and null else None,
                    reason=unfit or "",
                )

    def _columns(
        self, facts: TaskFacts, method: Plugin, attack: Attacks, seed: int, attack_seed: int
    ) -> dict[str, Any]:
        """Return the columns of a row that say what was asked for."""
        return {
            "task": facts.task.key,
            "task_config": facts.text,
            "calibration_config": canonical(facts.calibration),
            "dataset": facts.task.dataset,
            "model": facts.task.model,
            "profile": self.grid.profile,
            "data": facts.data,
            "numerics": canonical(self.numerics),
            "method": method.key,
            "method_config": method.config,
            "method_version": method.plugin.version,
            "method_source": method.source,
            "family": method.plugin.family if method.plugin.access != "nothing" else "none",
            **attack.columns(),
            "victim_seed": seed,
            "attack_seed": attack_seed,
        }

    # --- stages ----------------------------------------------------------------------------------------------------

    def _add(  # the one place that makes a stage
        self, kind: StageKind, identity: dict[str, Any], parents: Iterable[str], label: str, facts: TaskFacts, *,
        passes: float, cheap: bool = False, keep: bool = False,
    ) -> Stage:  # fmt: skip
        identity = {"schema": SCHEMA, "stage": kind, "numerics": self.numerics, **identity}
        key = content_key(identity)
        if key not in self.stages:
            seconds = cost.seconds(passes, facts.size.flops, self.device)
            distinct = tuple(dict.fromkeys(parents))
            self.stages[key] = Stage(key, kind, identity, distinct, seconds, cheap, label, facts.resource)
        if keep and not self.stages[key].keep:
            self.stages[key] = replace(self.stages[key], keep=True)
        return self.stages[key]

    def _scratch(self, facts: TaskFacts, seed: int, split: str) -> Stage:
        """What the attacker reaches on its own data without any victim: the measure of a pointless attack."""
        identity = {
            **facts.identity, "seed": seed, "train_seed": f"train|{seed}|scratch", "trainer": VERSION,
            "attacker": split,
        }  # fmt: skip
        label = f"clean scratch {split} | {facts.task.key} | seed {seed}"
        return self._add("clean", identity, (), label, facts, passes=0.75 * facts.owner * facts.task.schedule.epochs)

    def _null(self, facts: TaskFacts, method: Plugin, embed: Stage) -> Stage | None:
        """Readings of never-embedded keys: once for all owners of a method on a task, or once for each owner."""
        if method.plugin.access == "nothing":
            return None
        own = not method.plugin.shares_null
        seed = embed.identity["seed"] if own else _SHARED_SEED
        needed = method.plugin.needs(facts.task)
        roles = self._roles(facts, seed, (*needed.unmarked, *facts.roles))
        identity = {
            **facts.identity, "seed": seed, "method": method.identity, "calibration": facts.calibration,
            "unmarked": roles, **self._other(needed.datasets), **({"embed": embed.key} if own else {}),
        }  # fmt: skip
        label = f"calibrate {method.key} | {facts.task.key}" + (f" | seed {seed}" if own else "")
        passes = 100.0 * facts.calibration["keys"] * len(facts.roles)
        parents = (*roles.values(), *([embed.key] if own else []))
        return self._add("calibrate", identity, parents, label, facts, passes=passes)

    def _roles(self, facts: TaskFacts, seed: int, roles: Iterable[str]) -> dict[str, str]:
        return {role: self._clean(facts, seed, role).key for role in dict.fromkeys(roles)}

    def _other(self, datasets: Iterable[str]) -> dict[str, Any]:
        found = {key: fingerprint(key, self.data_root) for key in datasets}
        return {"other": found} if found else {}

    def _clean(self, facts: TaskFacts, seed: int, role: str) -> Stage:
        if "|" in role:
            return self._processed(facts, seed, role)
        train_seed = f"train|{seed}" if role == "clean" else f"train|{seed}|{role}"
        identity = {**facts.identity, "seed": seed, "train_seed": train_seed, "trainer": VERSION}
        passes = 3.0 * facts.owner * facts.task.schedule.epochs
        label = f"clean {role} | {facts.task.key} | seed {seed}"
        return self._add("clean", identity, (), label, facts, passes=passes)

    def _processed(self, facts: TaskFacts, seed: int, role: str) -> Stage:
        """An unmarked model that somebody attacked: what a mark reads as by chance is not the same on those."""
        reference, _, process = role.partition("|")
        parent = self._clean(facts, seed, reference)
        attack = self.processes[process].plugin
        # Whatever an attacker of this task holds; the owner's own data where no split is promised.
        modes: tuple[SplitMode, ...] = ("disjoint20", "sok", "same")
        split = next(mode for mode in modes if not lacks(mode, facts.task.attacker_share))
        made = Plugin.of(type(attack)(attack.config.but(split=split)))
        identity = {
            **facts.identity, "seed": seed, "train_seed": f"train|{seed}|{role}", "processed": parent.key,
            "method": self.clean.identity, "attack": made.identity,
        }  # fmt: skip
        passes = 0.0 if attack.cheap else 0.75 * facts.owner * facts.task.schedule.epochs
        label = f"clean {reference} {process} | {facts.task.key} | seed {seed}"
        return self._add("clean", identity, (parent.key,), label, facts, passes=passes)

    def _embed(self, facts: TaskFacts, method: Plugin, seed: int) -> Stage:
        needed = method.plugin.needs(facts.task)
        roles = self._roles(facts, seed, needed.unmarked)
        identity = {**facts.identity, "seed": seed, "method": method.identity, "unmarked": roles}
        identity |= self._other(needed.datasets)
        passes = 3.0 * facts.owner * method.plugin.schedule(facts.task).epochs if method.plugin.embeds else 0.0
        label = f"embed {method.key} | {facts.task.key} | seed {seed}"
        return self._add("embed", identity, roles.values(), label, facts, passes=passes)

    def _chain(
        self, facts: TaskFacts, method: Plugin, embed: Stage, attack: Attacks, attack_seed: int
    ) -> tuple[str, ...]:
        """Return the stages of a cell's attack: one, or one for each link, each keeping what the next one attacks."""
        made: list[Stage] = []
        for link in attack.links:
            after = made[-1] if made else None
            keep = len(made) < len(attack.links) - 1
            made.append(self._attack(facts, method, embed, link, attack_seed, after=after, keep=keep))
        return tuple(stage.key for stage in made)

    def _attack(
        self, facts: TaskFacts, method: Plugin, embed: Stage, attack: Plugin, attack_seed: int, *,
        after: Stage | None = None, keep: bool = False,
    ) -> Stage:  # fmt: skip
        own = {name: embed.identity[name] for name in ("task", "data", "seed", "method")}
        identity = {**own, "attack": attack.identity, "attack_seed": attack_seed, "embed": embed.key}
        parents = [embed.key]
        if after is not None:
            identity |= {"after": after.key, "link": after.identity.get("link", 0) + 1}
            parents.append(after.key)
        needed = attack.plugin.needs(facts.task, method.plugin)
        more, others = self._given(facts, method, embed, attack.plugin, needed)
        if needed.twin and method.key != self.clean.key and after is None:
            unmarked = self._embed(facts, self.clean, embed.identity["seed"])
            more["twin"] = self._attack(facts, self.clean, unmarked, attack, attack_seed).key
            others.append(more["twin"])
        epochs = attack.identity["config"].get("epochs") or facts.task.schedule.epochs
        passes = 0.0 if attack.plugin.cheap else 3.0 * facts.owner / 4 * epochs
        label = f"attack {attack.key} | {own['method']['key']} | {facts.task.key} | seed {own['seed']}"
        label += f".{attack_seed}" if attack_seed else ""
        label += f" | after {after.identity['attack']['key']}" if after is not None else ""
        return self._add(
            "attack", {**identity, **more}, (*parents, *others), label, facts,
            passes=passes, cheap=attack.plugin.cheap, keep=keep,
        )  # fmt: skip

    def _given(
        self, facts: TaskFacts, method: Plugin, embed: Stage, attack: Attack[Any], needed: Needs
    ) -> tuple[dict[str, Any], list[str]]:
        """Return what attack and evaluator have beyond the victim: entries of the identity, parents behind them."""
        given: dict[str, Any] = self._other(needed.datasets)
        parents: list[str] = []
        seed = embed.identity["seed"]
        if needed.data and leaves(attack) and attack.config.split not in ("none", "ood"):
            given["scratch"] = self._scratch(facts, seed, attack.config.split).key
            parents.append(given["scratch"])
        if needed.unmarked:
            given["unmarked"] = self._roles(facts, seed, needed.unmarked)
            parents += given["unmarked"].values()
        if attack.config.beside_unmarked and leaves(attack) and method.plugin.access != "nothing":
            given["beside"] = embed.identity["unmarked"]["clean"]
            parents.append(given["beside"])
        owners = [embed]
        if needed.peers:
            # Victims of one block of seeds are each other's peers, whatever other seeds the grid asks for.
            first = seed - seed % needed.peers
            owners = [self._embed(facts, method, peer) for peer in range(first, first + needed.peers)]
            given["peers"] = [owner.key for owner in owners]
            parents += given["peers"]
        if attack.kind == "verification":
            # Its errors are counted at the default thresholds while it runs: a p-value may cost a thousand readings.
            nulls = {owner.key: self._null(facts, method, owner) for owner in owners}
            given["nulls"] = {key: null.key for key, null in nulls.items() if null is not None}
            parents += given["nulls"].values()
        return given, parents
