"""The one training loop. A method varies it through a `Recipe` (`tasks.training.recipe`); nothing else writes.

prepare_model -> optimiser over parameters
for epoch:  before_epoch
    for batch:  mix -> [step: loss -> backward -> on_gradients -> optimiser step -> after_step]
    validation, observers, rolling checkpoint
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from assay.tasks.data.splits import Labelled, for_answers, in_chunks
from assay.tasks.streams import seed_global
from assay.tasks.training.augment import Batches
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.meter import Meter
from assay.tasks.training.norms import has_batch_norm
from assay.tasks.training.numerics import settle
from assay.tasks.training.recipe import Batch, Recipe, State, Terms
from assay.tasks.training.schedule import Schedule

__all__ = [
    "Batch",
    "Observer",
    "Recipe",
    "Rolling",
    "State",
    "Terms",
    "Trained",
    "build_optimizer",
    "evaluate",
    "fit",
    "predict",
    "training_mode",
]


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
        diverged: whether a loss (training then stops) or a weight is no longer finite.
    """

    model: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    chosen_epoch: int = 0
    diverged: bool = False


def evaluate(model: nn.Module, data: Labelled) -> float:
    """Return the share of `data` that `model` (eval mode, restored after) classifies right; 0 if there is none."""
    if not len(data):
        return 0.0
    predicted = predict(model, data.inputs).argmax(1)
    return float((predicted == data.labels).float().mean())


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits (N, K) for stored inputs, in eval mode without gradients; the mode is restored."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(for_answers(chunk)).float() for chunk in in_chunks(inputs)])
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


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded optimiser state the memory layout of its parameters, as fused kernels and bitwise equality need."""
    for parameter, own in optimizer.state.items():
        for name, value in own.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class _Loop:
    """The state of one call of `fit`: what a rolling checkpoint saves and restores."""

    def __init__(self, state: State, rolling: Rolling | None, meter: Meter, seed: str) -> None:
        self.state = state
        self.rolling = rolling
        self.meter = meter
        self.seed = seed
        self.result = Trained(state.model)
        self.best: dict[str, Tensor] | None = None
        self.best_accuracy = -1.0
        self.epoch = 0  # epochs finished
        self.stopped = False  # an observer asked for it
        self.saved_at = time.monotonic()
        self.identity = self._identify() if rolling else ""

    def _identify(self) -> str:
        """Return a digest of what is trained and how: another run's checkpoint is never continued."""
        recipe = self.state.recipe
        words = [self.seed, type(recipe).__qualname__, self.state.schedule.model_dump_json()]
        digest = hashlib.sha256("|".join(words).encode())
        for name, value in self.state.model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def finished(self) -> bool:
        return self.stopped or self.result.diverged or self.epoch >= self.state.schedule.epochs

    def save(self) -> None:
        """Write the rolling checkpoint if it is due: after a while, and at the end, so that no finished run is lost."""
        if self.rolling is None:
            return
        if not self.finished and time.monotonic() - self.saved_at < self.rolling.every_s:
            return
        tree = {
            "identity": self.identity,
            "epoch": self.epoch,
            "stopped": self.stopped,
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
        """Continue from the rolling checkpoint, if there is a readable one of this very run."""
        if self.rolling is None or not self.rolling.path.exists():
            return
        try:
            tree = load_tree(self.rolling.path, self.state.device)
        except SafetensorError:  # cut short by a power failure: train again
            return
        if tree["identity"] != self.identity:
            return
        self.state.model.load_state_dict(tree["model"])
        self.state.optimizer.load_state_dict(tree["optimizer"])
        _match_layout(self.state.optimizer)
        self.state.recipe.load_state_dict(tree["recipe"])
        self.result.history = tree["history"]
        self.result.chosen_epoch = tree["chosen"]
        self.result.diverged = tree["diverged"]
        self.best, self.best_accuracy = tree["best"], tree["best_accuracy"]
        self.epoch, self.stopped = tree["epoch"], tree["stopped"]
        self.meter.add(Meter(**tree["meter"]))

    def run_epoch(self, batches: Batches) -> dict[str, float]:
        state, epoch = self.state, self.epoch
        self._set_lr(lr := state.schedule.lr_at(epoch))
        training_mode(state.model)
        lonely = len(batches.labels) % batches.batch_size == 1 and has_batch_norm(state.model)
        steps = len(batches) - int(lonely)  # batch norm cannot normalise a single sample
        seed_global(state.device, batches.seed, "dropout", epoch)
        batches.start_epoch(epoch)
        state.recipe.before_epoch(state.model, epoch)
        sums: Terms = {}
        for number in range(steps):
            if state.schedule.by_step:
                self._set_lr(state.schedule.lr_at(epoch, number / steps))
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

    def _set_lr(self, lr: float) -> None:
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr

    def choose(self, validation: Labelled, means: dict[str, float]) -> None:
        """Keep the state of the best epoch so far by validation accuracy, the earliest on ties."""
        accuracy = evaluate(self.state.model, validation)
        means["val_accuracy"] = accuracy
        if accuracy > self.best_accuracy:
            self.best_accuracy = accuracy
            self.best = copy.deepcopy(self.state.model.state_dict())
            self.result.chosen_epoch = self.epoch


def _note(meter: Meter | None, *parts: Labelled | None) -> None:
    for part in parts:
        if meter is not None and part is not None:
            meter.touch(part.inputs)


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
        validation: samples for `select="val_best"` and the `val_accuracy` curve; never the test set. None or empty:
            no curve, and the last epoch is kept.
        select: keep the last epoch, or the one with the highest validation accuracy (epoch 0 excluded).
        observers: called after each epoch; read only; True stops.
        resume: rolling checkpoint; if the file holds this very run, training continues from it, bit for bit.
        meter: where sample passes are counted.

    Raises:
        ValueError: the recipe gives the optimiser parameters that are not the model's.
    """
    device = data.labels.device
    schedule = settle(schedule, device)
    model = recipe.prepare_model(model).to(device)
    if schedule.channels_last:
        model = model.to(memory_format=torch.channels_last)
    owned = list(recipe.parameters(model))
    if foreign := len({id(p) for p in owned} - {id(p) for p in model.parameters()}):
        raise ValueError(f"{type(recipe).__name__}.parameters: {foreign} parameters are not the model's")
    state = State(model, build_optimizer(owned, schedule), recipe, schedule, device)
    loop = _Loop(state, resume, Meter(), seed)
    if schedule.compile:
        model.compile()  # in place: parameters keep their names
    judged = validation if validation is not None and len(validation) else None
    _note(meter if schedule.epochs else None, data, judged)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        loop.restore()
        batches = Batches(data.inputs, data.labels, schedule, seed)
        while not loop.finished and len(data):
            with loop.meter.watch(model):
                means = loop.run_epoch(batches)
                loop.epoch += 1
                loop.result.diverged = not all(map(math.isfinite, means.values()))
                if judged is not None:
                    loop.choose(judged, means)
            loop.result.history.append(means)
            # Every observer sees every epoch; any of them may ask to stop.
            loop.stopped = any([observer(loop.epoch - 1, model, means) for observer in observers])  # noqa: C419
            loop.save()
    result = loop.result
    if select == "val_best" and loop.best is not None:
        model.load_state_dict(loop.best)
    else:
        result.chosen_epoch = loop.epoch
    model._compiled_call_impl = None  # what follows, such as verification, is too short for compiling
    if schedule.channels_last:
        model = model.to(memory_format=torch.contiguous_format)
    # The last step's loss may be finite and its update not.
    result.diverged = result.diverged or not all(bool(p.isfinite().all()) for p in owned)
    result.model = model.eval()
    if meter is not None:
        meter.add(loop.meter)
    return result
