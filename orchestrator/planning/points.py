"""The points of a grid's axes with all that keys and rows need of them: plugins, chains of attacks, tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from assay.attacks.base import Attack
from assay.methods.base import Method
from assay.orchestrator.keys import canonical
from assay.orchestrator.planning import cost
from assay.tasks.calibration import Calibration
from assay.tasks.data.splits import lacks
from assay.tasks.task import Task


@dataclass(frozen=True)
class Plugin:
    """A configured method or attack with what keys and rows need of it."""

    plugin: Any
    key: str
    identity: dict[str, Any]
    config: str
    tasks: frozenset[str] = frozenset()  # that the grid wants it for; empty: all

    @staticmethod
    def of(plugin: Method[Any] | Attack[Any], source: str = "", tasks: Iterable[str] = ()) -> Plugin:
        """Return a plugin with its identity; `source` is the state of the file that it comes from, if it does."""
        config = plugin.config.model_dump(mode="json")
        identity = {"key": plugin.key, "version": plugin.version, "config": config}
        if source:  # of a plugin that comes from a file: an edited one is another plugin
            identity["source"] = source
        return Plugin(plugin, plugin.key, identity, canonical(config), frozenset(tasks))

    @property
    def source(self) -> str:
        """The state of the plugin's file; empty for installed code."""
        return str(self.identity.get("source", ""))

    def joined(self, other: Any) -> Any:
        """Return the plugin for the tasks of both entries that name it."""
        everywhere = not self.tasks or not other.tasks
        return replace(self, tasks=frozenset() if everywhere else self.tasks | other.tasks)


@dataclass(frozen=True)
class Attacks:
    """One attack, or several, each on the surrogate of the one before."""

    links: tuple[Plugin, ...]
    tasks: frozenset[str] = frozenset()

    @property
    def identity(self) -> dict[str, Any]:
        """What keys contain of it."""
        if len(self.links) == 1:
            return self.links[0].identity
        return {"chain": [link.identity for link in self.links]}

    def columns(self) -> dict[str, Any]:
        """Return the columns of a row that say which attack it was."""
        splits = dict.fromkeys(link.plugin.config.split for link in self.links)
        config = self.links[0].identity["config"]
        if len(self.links) > 1:
            config = {
                str(place): {**link.identity["config"], "version": link.plugin.version}
                for place, link in enumerate(self.links, start=1)
            }
        kinds = {link.plugin.kind for link in self.links}
        return {
            "attack": " > ".join(link.key for link in self.links),
            "attack_config": canonical(config),
            "attack_version": self.links[-1].plugin.version,
            "attack_source": "+".join(dict.fromkeys(link.source for link in self.links if link.source)),
            "split": "+".join(splits),
            "kind": "ambiguity" if "ambiguity" in kinds else self.links[-1].plugin.kind,
        }

    def joined(self, other: Attacks) -> Attacks:
        """Return the attack for the tasks of both entries that name it."""
        everywhere = not self.tasks or not other.tasks
        return replace(self, tasks=frozenset() if everywhere else self.tasks | other.tasks)

    def unfit(self, task: Task, method: Plugin) -> str | None:
        """Return why the attack does not apply, be it for lack of the data that its split mode promises."""
        for place, link in enumerate(self.links):
            if link.plugin.uses_data and (why := lacks(link.plugin.config.split, task.attacker_share)):
                return why
            if reason := link.plugin.supports(task, method.plugin):
                return str(reason)
            last = place == len(self.links) - 1
            if len(self.links) > 1 and (link.plugin.kind == "verification" or (not last and not leaves(link.plugin))):
                return f"{link.key} ({link.plugin.kind}) leaves no model, so it cannot be a link of a chain"
        return None


def leaves(attack: Attack[Any]) -> bool:
    """Return whether an attack leaves a network that another one can attack."""
    return attack.kind in ("removal", "ambiguity")


class TaskFacts:
    """What keys and estimates need of a task, computed once."""

    def __init__(self, task: Task, calibration: Calibration, data: str, device: str) -> None:
        self.task = task
        self.data = data
        self.roles = calibration.roles
        self.calibration = calibration.model_dump(mode="json")
        whole = task.model_dump(mode="json")
        self.text = canonical(whole)
        self.identity = {"task": whole, "data": data}
        whole_set = (task.info.counts or (10_000, 0))[0]
        self.owner = 0.8 * min(task.samples or whole_set, whole_set)
        self.size = cost.size(task.dataset, task.model)
        if device == "cpu":
            self.resource = "cpu"
        else:
            many = self.size.parameters
            self.resource = "gpu.small" if many < 1e6 else "gpu.medium" if many < 2e7 else "gpu.large"


def wanted(plugin: Plugin | Attacks, task: Task) -> bool:
    """Return whether the grid wants a plugin for a task."""
    return not plugin.tasks or task.key in plugin.tasks


def merged(made: Iterable[Any]) -> list[Any]:
    """Return plugins without doubles, in order; one that is named twice is for the tasks of both entries."""
    found: dict[str, Any] = {}
    for plugin in made:
        key = canonical(plugin.identity)
        found[key] = found[key].joined(plugin) if key in found else plugin
    return list(found.values())


def unique(tasks: Iterator[tuple[Task, Calibration]]) -> list[tuple[Task, Calibration]]:
    """Return tasks without doubles, in order."""
    found: dict[str, tuple[Task, Calibration]] = {}
    for task, calibration in tasks:
        key = canonical([task.model_dump(mode="json"), calibration.model_dump(mode="json")])
        found.setdefault(key, (task, calibration))
    return list(found.values())
