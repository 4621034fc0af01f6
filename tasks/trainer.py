"""The one training loop. A method varies it through a `Recipe`; nothing else writes.

prepare_model -> optimiser over parameters
for epoch:  before_epoch
    for batch:  mix -> [step: loss -> backward -> on_gradients -> optimiser step -> after_step]
    validation, observers, rolling checkpoint
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.augment import Batches
from tasks.checkpoint import load_tree, save_tree
from tasks.data import Labelled, to_model_input
from tasks.meter import Meter
from tasks.schedule import Schedule
from tasks.streams import stream_seed

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        inputs: model inputs (B, ...): images float32 in pixel space [0, 1], or token ids.
        labels: class indices (B,).
        index: positions of the clean samples in the training set (clean,).
        clean: how many leading samples are the clean part, in the order in which they were drawn.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    clean: int

    def append(self, inputs: Tensor, labels: Tensor) -> Batch:
        """Return this batch with more samples behind it; the clean part stays as drawn."""
        return replace(self, inputs=torch.cat([self.inputs, inputs]), labels=torch.cat([self.labels, labels]))


@dataclass
class State:
    """What a step may use: the model, its optimiser, the recipe that owns the step, and the precision."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    schedule: Schedule
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.precision == "bf16")

    def descend(self, terms: Terms) -> Terms:
        """Minimise the sum of the terms by one optimiser step; return them detached."""
        self.optimizer.zero_grad(set_to_none=True)
        total = sum(terms.values())
        assert isinstance(total, Tensor)
        total.backward()
        self.recipe.on_gradients(self.model)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}


class Recipe:
    """What a method may vary of training. Every part has one owner and a neutral default.

    The defaults are plain supervised training with mean cross-entropy.
    """

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Change layers before the optimiser exists; return the network to train."""
        return model

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Return what the main optimiser owns; must be parameters of `model`."""
        return (p for p in model.parameters() if p.requires_grad)

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Refresh triggers, masks, temperatures or targets; `epoch` counts from 0."""

    def mix(self, batch: Batch, step: int) -> Batch:
        """Add or replace samples; `step` counts from 0 within the epoch. The clean order stays as drawn."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return named scalar terms; their sum is minimised and each becomes a curve."""
        return {"task": F.cross_entropy(model(batch.inputs), batch.labels)}

    def on_gradients(self, model: nn.Module) -> None:
        """Project, mask or clip gradients between backward and optimiser step."""

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Update auxiliary networks or restore masked weights after the optimiser step."""

    def step(self, state: State, batch: Batch) -> Terms:
        """Run one whole step; override only when no part above fits."""
        with state.autocast():
            terms = self.loss(state.model, batch)
        done = state.descend(terms)
        self.after_step(state.model, batch)
        return done

    def state_dict(self) -> dict[str, Any]:
        """Return all that must survive a restart at an epoch's end (tensors and plain values)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class Observer(Protocol):
    """Sees every epoch's end; never writes. Returning True stops training."""

    def __call__(self, epoch: int, model: nn.Module, means: dict[str, float]) -> bool | None:
        """Look at epoch `epoch` (from 0), the network and the epoch's means."""


@dataclass(frozen=True)
class Rolling:
    """Where and how often to keep a rolling checkpoint (at epoch ends)."""

    path: Path
    every_s: float = 30.0


@dataclass
class Trained:
    """The result of `fit`.

    Attributes:
        model: the trained network (as `prepare_model` left it), in eval mode.
        history: one dict per epoch: `epoch`, `lr`, the mean of each loss term, `val_accuracy` if validated.
        chosen_epoch: the epoch (from 1) whose weights `model` holds.
        diverged: whether training stopped because a loss was no longer finite.
    """

    model: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    chosen_epoch: int = 0
    diverged: bool = False


def evaluate(model: nn.Module, data: Labelled, batch_size: int = 1000) -> float:
    """Return the share of `data` that `model` (eval mode, restored after) classifies right; 0 if there is none."""
    if not len(data):
        return 0.0
    predicted = predict(model, data.inputs, batch_size).argmax(1)
    return float((predicted == data.labels).float().mean())


def predict(model: nn.Module, inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """Return logits (N, K) for stored inputs, in eval mode without gradients; the mode is restored."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(to_model_input(chunk)).float() for chunk in inputs.split(batch_size)])
    model.train(mode)
    return logits


def build_optimizer(parameters: Iterable[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimiser that a schedule names, over the given parameters."""
    own, lr, decay = list(parameters), schedule.lr, schedule.weight_decay
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(own, lr, schedule.momentum, weight_decay=decay, nesterov=schedule.nesterov, fused=True)
    if schedule.optimizer == "adadelta":  # the ingrain paper's constants
        return torch.optim.Adadelta(own, lr, rho=0.95, eps=1e-8, weight_decay=decay)
    kind = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.AdamW
    return kind(own, lr, weight_decay=decay, fused=True)


def training_mode(model: nn.Module) -> None:
    """Put the network in train mode, frozen modules back in eval so that their running statistics do not drift."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            module.eval()


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


class _Loop:
    """The state of one call of `fit`: what a rolling checkpoint saves and restores."""

    def __init__(self, state: State, rolling: Rolling | None, meter: Meter) -> None:
        self.state = state
        self.rolling = rolling
        self.meter = meter
        self.result = Trained(state.model)
        self.best: dict[str, Tensor] | None = None
        self.best_accuracy = -1.0
        self.epoch = 0  # epochs finished
        self.saved_at = time.monotonic()

    def save(self, force: bool = False) -> None:
        if self.rolling is None or not (force or time.monotonic() - self.saved_at >= self.rolling.every_s):
            return
        tree = {
            "epoch": self.epoch,
            "model": self.state.model.state_dict(),
            "optimizer": self.state.optimizer.state_dict(),
            "recipe": self.state.recipe.state_dict(),
            "history": self.result.history,
            "chosen": self.result.chosen_epoch,
            "diverged": self.result.diverged,
            "best": self.best,
            "best_accuracy": self.best_accuracy,
            "meter": self.meter.as_dict(),
        }
        save_tree(self.rolling.path, tree)
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        if self.rolling is None or not self.rolling.path.exists():
            return
        tree = load_tree(self.rolling.path, self.state.device)
        self.state.model.load_state_dict(tree["model"])
        self.state.optimizer.load_state_dict(tree["optimizer"])
        self.state.recipe.load_state_dict(tree["recipe"])
        self.result.history = tree["history"]
        self.result.chosen_epoch = tree["chosen"]
        self.result.diverged = tree["diverged"]
        self.best, self.best_accuracy = tree["best"], tree["best_accuracy"]
        self.epoch = tree["epoch"]
        self.meter.add(Meter(**tree["meter"]))

    def run_epoch(self, batches: Batches) -> dict[str, float]:
        state, epoch = self.state, self.epoch
        lr = state.schedule.lr_at(epoch)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        training_mode(state.model)
        lonely = len(batches.labels) % batches.batch_size == 1 and _has_batch_norm(state.model)
        steps = len(batches) - int(lonely)  # batch norm cannot normalise a single sample
        torch.manual_seed(stream_seed(batches.seed, "dropout", epoch))
        batches.start_epoch(epoch)
        state.recipe.before_epoch(state.model, epoch)
        sums: Terms = {}
        for number in range(steps):
            inputs, labels, index = batches.get(number)
            if state.schedule.channels_last and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            batch = state.recipe.mix(Batch(inputs, labels, index, len(labels)), number)
            for name, term in state.recipe.step(state, batch).items():
                sums[name] = sums[name] + term if name in sums else term.clone()
        self.meter.steps += steps
        # The only host synchronisation of the epoch.
        means = {name: float(total) / max(steps, 1) for name, total in sums.items()}
        return {"epoch": epoch + 1, "lr": lr, **means}

    def choose(self, validation: Labelled, means: dict[str, float]) -> None:
        """Keep the state of the best epoch so far by validation accuracy, the earliest on ties."""
        accuracy = evaluate(self.state.model, validation)
        means["val_accuracy"] = accuracy
        if accuracy > self.best_accuracy:
            self.best_accuracy = accuracy
            self.best = copy.deepcopy(self.state.model.state_dict())
            self.result.chosen_epoch = self.epoch


def fit(
    model: nn.Module,
    data: Labelled,
    recipe: Recipe,
    schedule: Schedule,
    *,
    seed: str,
    validation: Labelled | None = None,
    select: Literal["last", "val_best"] = "last",
    observers: Sequence[Observer] = (),
    resume: Rolling | None = None,
    meter: Meter | None = None,
) -> Trained:
    """Train `model` in place on `data`, which lies on the model's device.

    Args:
        model: a network in plain form; `recipe.prepare_model` may change it.
        data: training samples; their order in epoch e depends on `seed` and e alone.
        recipe: what the method varies; `Recipe()` is plain cross-entropy.
        schedule: optimiser, learning rate, batches, epochs, augmentation, precision.
        seed: name of the random streams (`order`, `augment`, `dropout`).
        validation: samples for `select="val_best"` and the `val_accuracy` curve; never the test set.
        select: keep the last epoch, or the one with the highest validation accuracy (epoch 0 excluded).
        observers: called after each epoch; read only; True stops.
        resume: rolling checkpoint; if the file exists, training continues from it, bit for bit.
        meter: where sample passes are counted.

    Raises:
        ValueError: the recipe gives the optimiser parameters that are not the model's.
    """
    device = data.labels.device
    model = recipe.prepare_model(model).to(device)
    if schedule.channels_last:
        model = model.to(memory_format=torch.channels_last)
    owned = list(recipe.parameters(model))
    if foreign := len({id(p) for p in owned} - {id(p) for p in model.parameters()}):
        raise ValueError(f"{type(recipe).__name__}.parameters: {foreign} parameters are not the model's")
    state = State(model, build_optimizer(owned, schedule), recipe, schedule, device)
    loop = _Loop(state, resume, Meter())
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), loop.meter.watch(model):
        loop.restore()
        batches = Batches(data.inputs, data.labels, schedule, seed)
        while loop.epoch < schedule.epochs and not loop.result.diverged and len(data):
            means = loop.run_epoch(batches)
            loop.epoch += 1
            if not all(map(_finite, means.values())):
                loop.result.diverged = True
            if validation is not None:
                loop.choose(validation, means)
            loop.result.history.append(means)
            # Every observer sees every epoch; any of them may ask to stop.
            stop = any([observer(loop.epoch - 1, model, means) for observer in observers])  # noqa: C419
            if stop:
                break
            loop.save()
    result = loop.result
    if select == "val_best" and loop.best is not None:
        model.load_state_dict(loop.best)
    else:
        result.chosen_epoch = loop.epoch
    if schedule.channels_last:
        model = model.to(memory_format=torch.contiguous_format)
    result.model = model.eval()
    if meter is not None:
        meter.add(loop.meter)
    return result


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
