"""What a method may vary of training, as one typed object with neutral defaults, and what a step works on."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.tasks.training.schedule import Schedule

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

    The defaults are plain supervised training with mean cross-entropy. Randomness comes from named streams
    (`lab.stream`), never from torch's global generator, whose state dropout shares with the unmarked model.

    Attributes:
        notes: remarks for the record, made while the recipe is at work.

    Example: twenty noise images with their labels behind every batch.
        >>> class Append(Recipe):
        ...     def __init__(self, images, labels):
        ...         super().__init__()
        ...         self.images, self.labels = images, labels
        ...     def mix(self, batch, step):
        ...         return batch.append(self.images, self.labels)
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Change layers before the optimiser exists; return the network to train (`finish` gives a plain one back)."""
        return model

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Return what the main optimiser owns; must be parameters of `model`."""
        return (p for p in model.parameters() if p.requires_grad)

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Refresh triggers, masks, temperatures or targets; `epoch` counts from 0."""

    def mix(self, batch: Batch, step: int) -> Batch:
        """Add or replace samples; `step` counts from 0 within the epoch. The clean order stays as drawn.

        Args:
            batch: on the device of the model, augmented; its clean samples must stay first and in order.
            step: of the epoch.
        """
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return named scalar terms; their sum is minimised and each becomes a curve.

        Args:
            model: in training mode; `model(batch.inputs)` are logits (B, K).
            batch: what `mix` returned.

        Example: a term of its own beside the task's.
            >>> def loss(self, model, batch):
            ...     return {**super().loss(model, batch), "mark": model.head.weight.square().mean()}
        """
        return {"task": F.cross_entropy(model(batch.inputs), batch.labels)}

    def on_gradients(self, model: nn.Module) -> None:
        """Project, mask or clip gradients between backward and optimiser step."""

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Update auxiliary networks or restore masked weights after the optimiser step."""

    def step(self, state: State, batch: Batch) -> Terms:
        """Run one whole step; override only when no part above fits. Returns the terms detached, on the device."""
        with state.autocast():
            terms = self.loss(state.model, batch)
        done = state.descend(terms)
        self.after_step(state.model, batch)
        return done

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the plain network to release, after training; here the secret is completed in place, too.

        Raises:
            NotEmbedded: the owner's mark misses a gate of its own.
        """
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return all that must survive a restart at an epoch's end (tensors and plain values)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class Wrapped(Recipe):
    """Another recipe, part by part; subclasses change one of them."""

    def __init__(self, inner: Recipe) -> None:
        """Wrap `inner`, whose notes it shares."""
        super().__init__()
        self.inner, self.notes = inner, inner.notes

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """As the method does."""
        return self.inner.prepare_model(model)

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """As the method does."""
        return self.inner.parameters(model)

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """As the method does."""
        self.inner.before_epoch(model, epoch)

    def mix(self, batch: Batch, step: int) -> Batch:
        """As the method does."""
        return self.inner.mix(batch, step)

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """As the method does."""
        return self.inner.loss(model, batch)

    def on_gradients(self, model: nn.Module) -> None:
        """As the method does."""
        self.inner.on_gradients(model)

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """As the method does."""
        self.inner.after_step(model, batch)

    def step(self, state: State, batch: Batch) -> Terms:
        """As the method does; a step of its own still descends through this recipe's `on_gradients`."""
        return super().step(state, batch) if type(self.inner).step is Recipe.step else self.inner.step(state, batch)

    def finish(self, model: nn.Module) -> nn.Module:
        """As the method does."""
        return self.inner.finish(model)

    def state_dict(self) -> dict[str, Any]:
        """As the method does."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the method does."""
        self.inner.load_state_dict(state)
