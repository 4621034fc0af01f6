"""What one stage at work has at hand: its identity, store, data, parents, plugins, clock; loaded when asked for."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from assay.attacks.base import Attack
from assay.methods.base import Method, Secret
from assay.methods.suspect import Access
from assay.orchestrator.keys import canonical
from assay.orchestrator.planning.classes import unpack_classes
from assay.orchestrator.planning.configs import configured
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.planning.registry import Registry, fingerprint
from assay.orchestrator.records import AttackRecord
from assay.orchestrator.store import Store
from assay.orchestrator.work.memory import PeakMemory
from assay.tasks.calibration import Calibration
from assay.tasks.data.other import shares_images, untouched
from assay.tasks.data.sources import DATASETS, load
from assay.tasks.data.splits import Labelled, Party, Splits, split
from assay.tasks.errors import AssayError, UnsupportedModel
from assay.tasks.lab import Lab, Role
from assay.tasks.streams import global_stream
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter
from assay.tasks.training.trainer import predict


@dataclass(frozen=True)
class Context:
    """Where and on what a stage runs; none of it is part of a key, but for the kind of device and the threads.

    Attributes:
        out: the sweep's folder; the store lies in `<out>/store`.
        data_root: folder of the data sets, None for `$ASSAY_DATA`.
        plugins: paths of plugin files.
        classes: methods and attacks that stand in no file, from `planning.classes.pack_classes`.
        device: `cpu` or `cuda`.
        threads: torch threads of a stage on the CPU; more than one changes the order of sums, so it is in the key.
        checkpoint_s: seconds between rolling checkpoints.
    """

    out: str
    data_root: str | None = None
    plugins: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int = 1
    checkpoint_s: float = 30.0
    classes: bytes = b""


class Clock:
    """Wall time and peak memory of the work itself; evaluation pauses both.

    Attributes:
        total: seconds so far.
        peak_mib: the most memory so far (`orchestrator.work.memory`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total = 0.0
        self.peak_mib = 0.0
        self._memory = PeakMemory(device)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        self._memory.reset()
        start = self._now()
        try:
            yield
        finally:
            self.total += self._now() - start
            self._note_peak()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out of a surrounding `running` block."""
        start = self._now()
        self._note_peak()
        try:
            yield
        finally:
            self._memory.reset()
            self.total -= self._now() - start

    def _note_peak(self) -> None:
        self.peak_mib = max(self.peak_mib, self._memory.mib())


class Bench:
    """One stage at work: its store, data, parents and plugins, loaded when asked for."""

    def __init__(self, stage: Stage, context: Context) -> None:
        self.stage = stage
        self.identity = stage.identity
        self.context = context
        self.store = Store(Path(context.out) / "store")
        self.device = torch.device(context.device)
        files = tuple((plugin, fingerprint(Path(plugin))) for plugin in context.plugins)
        self.registry = _registry(files, context.classes)
        self.task = Task.model_validate_json(canonical(self.identity["task"]))
        self.clock = Clock(self.device)

    def other(self, key: str) -> tuple[Labelled, Labelled]:
        """Training and test part of a further data set that the stage declares, complete, on the device.

        For the task's own data set, return only training images outside `task.samples`, and an empty test set.
        """
        declared = self.identity.get("other", {})
        if key not in declared:
            raise AssayError(f"the stage declares no data set {key!r} (declared: {', '.join(declared) or 'none'})")
        if key == self.task.dataset:
            # The victim's own data set: the owner's images are in it, and the test set.
            rest = untouched(key, Path(self.context.data_root) if self.context.data_root else None, self.task.samples)
            return rest.to(self.device), rest.take(slice(0, 0)).to(self.device)
        if shares_images(key, self.task.dataset):
            raise AssayError(f"{key} holds images of {self.task.dataset}, the owner's among them: no attack gets it")
        return _other(key, self.context.data_root, self.context.device)

    @property
    def splits(self) -> Splits:
        """The data of the stage's victim seed, on the device."""
        task = self.task
        source = (task.dataset, task.samples, task.test_samples, task.attacker_share)
        return _splits(source, self.context.data_root, self.identity["seed"], self.context.device)

    def method(self) -> Method[Any]:
        """The stage's method with its configuration, no secret."""
        own = self._own("method")
        return configured(self.registry.methods[own["key"]], own["config"])

    def attack(self) -> Attack[Any]:
        """The stage's attack with its configuration."""
        own = self._own("attack")
        return configured(self.registry.attacks[own["key"]], own["config"])

    def _own(self, what: Literal["method", "attack"]) -> dict[str, Any]:
        """What the identity says of the method or attack; a plugin file must still be the one that was planned."""
        own: dict[str, Any] = self.identity[what]
        place = self.registry.place(what, own["key"])
        if Path(place) in self.registry.plugins and self.registry.source(what, own["key"]) != own.get("source"):
            raise AssayError(f"{place} was edited after the sweep began; run the same command again")
        return own

    def network(self, key: str) -> nn.Module:
        """A committed parent's network, eval mode, on the device; shared by this process's stages: only to look at.

        Cheap attacks on one victim come one after the other, and loading it would cost more than they do.
        """
        return _network(self.store.root, key, self.task.dataset, self.task.model, self.device)

    def served(self, key: str) -> nn.Module:
        """What outsiders query of a committed mark: the network, or what its method makes of its answers."""
        method = self.method()
        plain = type(method).served is Method.served  # spares reading the secret
        return self.network(key) if plain else method.served(self.network(key), self.secret(key)).eval()

    def secret(self, key: str) -> Secret:
        """The owner's secret of a committed mark."""
        return self.store.tree(key, "secret")

    def victim(self, access: Access) -> nn.Module:
        """The attacked model as the attack's access shows it: the network itself, what is served, or a surrogate."""
        key = self.identity["embed"]
        if (parent := self.identity.get("after")) is not None:
            return self.surrogate(parent)
        return self.network(key) if access == "weights" else self.served(key)

    def surrogate(self, key: str) -> nn.Module:
        """The network that a committed attack left, for the next link of a chain.

        Raises:
            UnsupportedModel: no store can rebuild its architecture, or the attack did not apply.
        """
        record = AttackRecord.model_validate(self.store.record(key)["result"])
        attack = self.store.record(key)["identity"]["attack"]["key"]
        if record.not_applicable:
            raise UnsupportedModel(f"{attack}, before it in the chain, does not apply: {record.not_applicable}")
        if record.architecture is None:
            raise UnsupportedModel(f"{attack} leaves an architecture that is not stored; put it last in the chain")
        return _network(self.store.root, key, self.task.dataset, record.architecture, self.device)

    @property
    def architecture(self) -> str:
        """The architecture of what is attacked: the task's, or that of the surrogate of an earlier link of a chain."""
        parent = self.identity.get("after")
        return str(self.store.record(parent)["result"]["architecture"]) if parent else self.task.model

    def answers(self, key: str) -> torch.Tensor:
        """Classes (N,) that a committed mark, as it is served, gives the test set."""
        return _answers(self, key)

    def lab(self, plugin: str, seed: int, train_seed: str, role: Role, data: Party) -> Lab:
        """What the plugin may use: the data of the party at work, and what the stage declares."""
        parents = self.identity.get("unmarked", {})

        def unmarked(role: str) -> nn.Module:
            if role not in parents:
                raise AssayError(
                    f"{plugin} declares no unmarked model {role!r} (declared: {', '.join(parents) or 'none'})"
                )
            return copy.deepcopy(self.network(parents[role]))

        return Lab(
            task=self.task,
            data=data,
            role=role,
            calibration=Calibration(**self.identity.get("calibration", {})),
            plugin=plugin,
            seed=seed,
            device=self.device,
            scratch=self.store.scratch(self.stage.key),
            train_seed=train_seed,
            unmarked=unmarked,
            other=self.other,
            checkpoint_s=self.context.checkpoint_s,
        )

    def costs(self, meter: Meter) -> dict[str, float]:
        """The cost record of the work measured by the clock."""
        threads = 1 if self.device.type == "cuda" else self.context.threads
        spent = {"wall_s": self.clock.total, "device_s": self.clock.total * threads, "peak_mem_mb": self.clock.peak_mib}
        return {**spent, **meter.costs()}


@lru_cache(maxsize=4)
def _registry(plugins: tuple[tuple[str, str], ...], classes: bytes) -> Registry:
    """Return the registry of plugin files, each with its fingerprint: an edited file is another one."""
    return Registry([Path(plugin) for plugin, _ in plugins], unpack_classes(classes))


@lru_cache(maxsize=4)
def _network(root: Path, key: str, dataset: str, architecture: str, device: torch.device) -> nn.Module:
    with global_stream("loading"):  # initial weights are drawn and overwritten; nobody else's stream moves
        model = Task(dataset=dataset, model=architecture).architecture(architecture)
    model.load_state_dict(Store(root).model(key))
    return model.to(device).eval()


_known_answers: dict[tuple[str, str], torch.Tensor] = {}


def _answers(bench: Bench, key: str) -> torch.Tensor:
    place = (str(bench.store.root), key)
    if place not in _known_answers:
        if len(_known_answers) >= 8:
            _known_answers.clear()
        _known_answers[place] = predict(bench.served(key), bench.splits.test.inputs).argmax(1)
    return _known_answers[place]


@lru_cache(maxsize=2)
def _other(key: str, data_root: str | None, device: str) -> tuple[Labelled, Labelled]:
    train, test = load(key, Path(data_root) if data_root else None, None, None)
    return train.to(torch.device(device)), test.to(torch.device(device))


@lru_cache(maxsize=4)
def _splits(source: tuple[str, int | None, int | None, float], data_root: str | None, seed: int, device: str) -> Splits:
    dataset, samples, test_samples, share = source
    train, test = load(dataset, Path(data_root) if data_root else None, samples, test_samples)
    return split(train, test, seed, DATASETS[dataset].vocabulary, share).to(torch.device(device))
