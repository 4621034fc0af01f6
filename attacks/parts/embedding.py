"""Embedding by an attacker: the method's own procedure, with its training varied or watched from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from assay.tasks.data.splits import Labelled
from assay.tasks.lab import Lab
from assay.tasks.training.recipe import Batch, Recipe, State, Terms
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Observer, Trained


class Wrapped(Recipe):
    """Another recipe, part by part; subclasses change one of them."""

    def __init__(self, inner: Recipe) -> None:
        """Wrap `inner`."""
        self.inner = inner

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

    def state_dict(self) -> dict[str, Any]:
        """As the method does."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the method does."""
        self.inner.load_state_dict(state)


class Clipped(Wrapped):
    """Another recipe whose gradients are clipped at a global norm, after what the method does with them."""

    def __init__(self, inner: Recipe, norm: float) -> None:
        """Wrap `inner`; `norm` is the largest global norm of a gradient."""
        super().__init__(inner)
        self.norm = norm

    def on_gradients(self, model: nn.Module) -> None:
        """Clip what the method leaves."""
        self.inner.on_gradients(model)
        nn.utils.clip_grad_norm_((p for p in model.parameters() if p.grad is not None), self.norm)


@dataclass
class EmbeddingLab(Lab):
    """A lab whose main training run (`train`) is varied and watched; others (detectors and such) are as they are.

    Attributes:
        inner: the lab with which it shares everything, and which trains.
        wrap: returns what the main run trains by, given the method's recipe.
        watch: sees every epoch of the main run.
    """

    inner: Lab | None = None
    wrap: Callable[[Recipe], Recipe] = field(default=lambda recipe: recipe)
    watch: tuple[Observer, ...] = ()

    @staticmethod
    def of(lab: Lab, **changes: Any) -> EmbeddingLab:
        """Return a lab around `lab`; `changes` are `wrap` and `watch`."""
        shared = {each.name: getattr(lab, each.name) for each in fields(Lab) if each.init}
        return EmbeddingLab(**shared, inner=lab, **changes)

    def fit(
        self,
        model: nn.Module,
        data: Labelled,
        recipe: Recipe | None = None,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> Trained:
        """Train as `Lab.fit`."""
        assert self.inner is not None
        if options.get("name", "train") == "train":
            recipe = self.wrap(recipe or Recipe())
            options["observers"] = [*options.get("observers", ()), *self.watch]
        return self.inner.fit(model, data, recipe, schedule, **options)
