"""The bench on which contracts are checked: tiny tasks, models trained once and shared, and labs that watch.

Everything runs on the bundled digits, on one device, with one thread; `full` tasks train long enough for a mark to
hold, `short` ones only as long as it takes to compare two runs bit for bit.
"""

from __future__ import annotations

import copy
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from assay.methods.base import Method
from assay.methods.embedding import Mark, embed
from assay.orchestrator.planning.configs import configured
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.work.environment import settle_kernels
from assay.tasks.calibration import Calibration
from assay.tasks.data.sources import DATASETS
from assay.tasks.data.splits import Labelled, Splits
from assay.tasks.errors import AssayError
from assay.tasks.lab import Lab
from assay.tasks.networks.architectures import ARCHITECTURES, kind_of
from assay.tasks.streams import stream
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.recipe import Batch, Recipe, Terms, Wrapped
from assay.tasks.training.trainer import Trained

SEED = 0
CALIBRATION = Calibration(references=2, processed=0, keys=10)
_FEW = {"references": 2, "processed": 0}  # of methods that embed with unmarked models of their own
_SHORT = {"samples": 480, "test_samples": 100, "epochs": 3, "batch_size": 48}
_BUNDLED = ("digits", "phrases")
_FIRST = ("cnn-mini", "lenet5", "resnet8", "mlp-800x2")  # small networks first
_T = TypeVar("_T")


class ContractBroken(AssayError):
    """A promise that a plugin does not keep; the text says which line of the plugin to look at, and what to do."""


class NotTested(AssayError):
    """A check that has no meaning for this plugin; the text says why."""


class Interrupted(BaseException):
    """A simulated kill; not an `Exception`, so that no plugin catches it."""


def laptop(cls: type[Any], **changes: Any) -> Any:
    """Return a plugin with its laptop settings and some changes, built as from a grid file."""
    few = {name: value for name, value in _FEW.items() if name in cls.Config.model_fields}
    return configured(cls, {**cls.laptop, **few, **changes})


def task_for(method: Method[Any]) -> Task:
    """Return the first task on bundled data that a method supports, images before texts, with the laptop schedule.

    Raises:
        ContractBroken: it supports none.
    """
    reasons = []
    names = (*_FIRST, *(name for name in ARCHITECTURES if name not in _FIRST))
    for dataset, model in itertools.product(_BUNDLED, names):
        if DATASETS[dataset].kind != kind_of(model):
            continue
        task = resolve_task(f"{dataset}-{model}", "laptop", {})
        reason = method.supports(task)
        if reason is None:
            return task
        reasons.append(f"{dataset}-{model}: {reason}")
    raise ContractBroken(f"supports() refuses every architecture on {' and '.join(_BUNDLED)} ({'; '.join(reasons)})")


def shortened(task: Task, **changes: Any) -> Task:
    """Return a task on the same architecture that trains for three epochs of six steps."""
    return resolve_task(task.key, "laptop", {**_SHORT, **changes})


# --- global random state ---------------------------------------------------------------------------------------------


def global_state() -> list[Any]:
    """Return the states of the global generators of torch, NumPy and Python, as a comparable tree."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global generator is what is watched)
    return [
        torch.get_rng_state(),
        _gpu_states(),
        [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        random.getstate(),
    ]


def _gpu_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


@contextmanager
def scrambled(number: int, *, watch: bool = False) -> Iterator[None]:
    """Run a block with the global generators seeded by `number`, and put them back.

    Args:
        number: seed of the state that the block finds.
        watch: insist that the block itself leaves the state as it found it; for a second run of the same code, since
            a first one may import modules that draw.

    Raises:
        ContractBroken: the block drew from a global generator and left it changed.
    """
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate(), _gpu_states()  # noqa: NPY002
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)
    before = global_state()
    try:
        yield
        moved = difference(before, global_state()) if watch else None
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])
        if kept[3]:
            torch.cuda.set_rng_state_all(kept[3])
    if moved:
        raise ContractBroken("draws from a global generator; draw with generator=lab.stream(...) instead")


def difference(one: Any, other: Any, place: str = "") -> str | None:
    """Return where two trees differ first (bit for bit, types included), or None."""
    where = place or "the value"
    if type(one) is not type(other):
        return f"{where}: {type(one).__name__} against {type(other).__name__}"
    if isinstance(one, Tensor):
        if one.device != other.device:
            return f"{where}: on {one.device} against {other.device}"
        if one.dtype != other.dtype or one.shape != other.shape:
            return f"{where}: {one.dtype} {tuple(one.shape)} against {other.dtype} {tuple(other.shape)}"
        same = (one == other) | ((one != one) & (other != other))
        return None if bool(same.all()) else f"{where}: {int((~same).sum())} of {same.numel()} values"
    if isinstance(one, dict):
        if list(one) != list(other):
            return f"{where}: keys {list(one)} against {list(other)}"
        return _first(difference(one[key], other[key], f"{place}/{key}") for key in one)
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{where}: {len(one)} against {len(other)} items"
        return _first(difference(a, b, f"{place}/{i}") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    return None if one == other or (one != one and other != other) else f"{where}: {one!r} against {other!r}"


def on_cpu(tree: Any) -> Any:
    """Return a tree with its tensors on the CPU."""
    if isinstance(tree, Tensor):
        return tree.cpu()
    if isinstance(tree, dict):
        return {key: on_cpu(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(on_cpu, tree))
    return tree


def _first(found: Iterator[str | None]) -> str | None:
    return next((text for text in found if text), None)


# --- labs that watch -------------------------------------------------------------------------------------------------


class _Watched(Wrapped):
    """A recipe behind which the real one does everything; notes what was drawn and prepared, and global draws."""

    def __init__(self, inner: Recipe, drawn: list[tuple[Tensor, Tensor]], prepared: list[nn.Module]) -> None:
        super().__init__(inner)
        self.drawn, self.prepared = drawn, prepared
        self.dropout = False

    @contextmanager
    def own(self, part: str) -> Iterator[None]:
        """Insist that a part of the recipe leaves the global generators alone."""
        before = global_state()
        yield
        if difference(before, global_state()):
            raise ContractBroken(
                f"Recipe.{part} draws from a global generator, whose state dropout shares with the unmarked model; "
                "draw with generator=lab.stream(...)"
            )

    def prepare_model(self, model: nn.Module) -> nn.Module:
        with self.own("prepare_model"):
            ready = super().prepare_model(model)
        self.prepared.append(copy.deepcopy(ready))
        self.dropout = any("dropout" in type(module).__name__.lower() for module in ready.modules())
        return ready

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        with self.own("before_epoch"):
            super().before_epoch(model, epoch)

    def mix(self, batch: Batch, step: int) -> Batch:
        self.drawn.append((batch.index.clone(), batch.labels.clone()))
        with self.own("mix"):
            return super().mix(batch, step)

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        with nullcontext() if self.dropout else self.own("loss"):  # dropout itself draws from the global generator
            return super().loss(model, batch)

    def on_gradients(self, model: nn.Module) -> None:
        with self.own("on_gradients"):
            super().on_gradients(model)

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        with nullcontext() if self.dropout else self.own("after_step"):
            super().after_step(model, batch)


@dataclass
class BenchLab(Lab):
    """A lab that records what training drew, and that can be killed after the second epoch of every training run.

    Attributes:
        drawn: per training run, the positions and labels of the clean samples of each step.
        prepared: copies of the networks as `prepare_model` left them.
        kill: whether to interrupt.
        killed: names of the training runs that were interrupted already.
    """

    drawn: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    prepared: list[nn.Module] = field(default_factory=list)
    kill: bool = False
    killed: set[str] = field(default_factory=set)

    def fit(self, model: nn.Module, data: Any, recipe: Recipe | None = None, *args: Any, **options: Any) -> Trained:
        """Train as any lab does, watching."""
        name = options.get("name", "train")
        if "|key-" in self.plugin:  # each key's lab is another one
            name = f"{self.plugin} {name}"
        if name in self.drawn:
            raise ContractBroken(
                f"trains twice under name={name!r}: the second run would resume the first's checkpoint"
            )
        self.drawn[name] = []
        watched = _Watched(recipe or Recipe(), self.drawn[name], self.prepared)

        def stop(epoch: int, model: nn.Module, means: dict[str, float]) -> None:
            if self.kill and epoch == 1 and name not in self.killed:
                self.killed.add(name)
                raise Interrupted(name)

        options["observers"] = (*options.get("observers", ()), stop)
        return super().fit(model, data, watched, *args, **options)


def restrict(lab: Lab, unmarked: tuple[str, ...], datasets: tuple[str, ...] = ()) -> None:
    """Let a lab hand out only what the plugin declares, as a sweep does."""
    give_model, give_data = lab.unmarked, lab.other

    def model(role: str) -> nn.Module:
        if role not in unmarked:
            raise ContractBroken(
                f"takes the unmarked model {role!r}; name it in needs(), whose `unmarked` is {unmarked}"
            )
        return give_model(role)

    def data(key: str) -> tuple[Labelled, Labelled]:
        if key not in datasets:
            raise ContractBroken(f"takes the data set {key!r}; name it in needs(), whose `datasets` are {datasets}")
        return give_data(key)

    lab.unmarked, lab.other = model, data


class Workbench:
    """Tasks, unmarked models and marked models, each made once; a context manager, whose end removes its folder.

    Args:
        registry: the methods that attacks are tried on.
        device: `cpu` or `cuda`.
    """

    def __init__(self, registry: Registry, device: str = "cpu") -> None:
        self.registry = registry
        self.device = torch.device(device)
        settle_kernels(device)
        self._made: dict[Any, Any] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="assay-check-")

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def once(self, name: Any, make: Callable[[], _T]) -> _T:
        """Return what `make` returned the first time for this name; a failure is remembered too."""
        if name not in self._made:
            try:
                self._made[name] = make()
            except Exception as error:
                self._made[name] = error
        found: Any = self._made[name]
        if isinstance(found, Exception):
            raise found
        result: _T = found
        return result

    def scratch(self) -> Path:
        """Return a new empty folder."""
        return Path(tempfile.mkdtemp(dir=self._folder.name))

    def splits(self, task: Task) -> Splits:
        """Return the task's data."""
        return self.once(("splits", task), lambda: task.data(None, SEED, self.device))

    def _stand_in(self, key: str) -> tuple[Labelled, Labelled]:
        """Return noise in the shape of a data set, training and test part: contracts need no data on this machine."""
        info, draws = DATASETS[key], stream("contracts", key)

        def part(count: int) -> Labelled:
            inputs = torch.randint(0, 256, (count, *info.shape), generator=draws, dtype=torch.uint8)
            return Labelled(inputs, torch.arange(count) % info.classes).to(self.device)

        return part(40 * info.classes), part(10 * info.classes)

    def lab(self, plugin: str, task: Task, seed: int = SEED, **options: Any) -> BenchLab:
        """Return a lab for one stage of `plugin` on `task`."""
        return BenchLab(
            task=task,
            data=options.pop("data", None) or self.splits(task).owner,
            role=options.pop("role", "owner"),
            calibration=CALIBRATION,
            plugin=plugin,
            seed=seed,
            device=self.device,
            scratch=options.pop("scratch", None) or self.scratch(),
            train_seed=f"train|{seed}",
            unmarked=lambda role: copy.deepcopy(self.unmarked(task, role)[0]),
            other=self._stand_in,
            **options,
        )

    def unmarked(self, task: Task, role: str) -> tuple[nn.Module, BenchLab]:
        """Return an unmarked model of the owner by role, and the lab in which it was trained."""

        def train() -> tuple[nn.Module, BenchLab]:
            lab = self.lab("clean", task)
            if role != "clean":
                lab.train_seed = f"{role}|{lab.train_seed}"
            return lab.fit(task.build(lab.train_seed), lab.data.train).model, lab

        return self.once(("unmarked", task, role), train)

    def embed(self, cls: type[Method[Any]], task: Task, **options: Any) -> tuple[Mark, BenchLab]:
        """Embed by a method's laptop settings; a mark that misses the gate is kept. Not cached."""
        method: Method[Any] = laptop(cls, allow_weak=options.pop("allow_weak", True))
        lab = self.lab(cls.key, task, **options)
        needed = method.needs(task)
        restrict(lab, needed.unmarked, needed.datasets)
        return embed(method, lab), lab

    def task(self, cls: type[Method[Any]]) -> Task:
        """Return the task on which a method's marks are read."""
        return self.once(("task", cls), lambda: task_for(laptop(cls)))

    def short_task(self, cls: type[Method[Any]]) -> Task:
        """Return the task on which a method's runs are compared."""
        return shortened(self.task(cls))

    def marked(self, cls: type[Method[Any]]) -> Mark:
        """Return a model that carries the method's mark well."""
        task = self.task(cls)
        return copy.deepcopy(self.once(("marked", cls), lambda: self.embed(cls, task, allow_weak=False)[0]))

    def short_mark(self, cls: type[Method[Any]]) -> tuple[Mark, BenchLab]:
        """Return a briefly trained mark, and the lab in which it was embedded under scrambled global state 1."""

        def make() -> tuple[Mark, BenchLab]:
            with scrambled(1):
                return self.embed(cls, self.short_task(cls))

        return self.once(("short", cls), make)
