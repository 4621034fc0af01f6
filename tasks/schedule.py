"""A training schedule as data: optimiser, learning rate and its drops, batch, epochs, augmentation, numerics."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of every configuration: frozen, strict, no unknown keys; the only place that states a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def but(self, **changes: Any) -> Any:
        """Return a validated copy with some fields changed."""
        return type(self).model_validate({**self.model_dump(), **changes})


class Schedule(Frozen):
    """How a network is trained; each field changes results, so all of them are part of a stage's key."""

    epochs: int = Field(8, ge=0)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "adadelta"] = "adam"
    lr: float = Field(1e-3, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd only
    nesterov: bool = False  # sgd only
    weight_decay: float = Field(0.0, ge=0)
    drops: tuple[float, ...] = ()  # shares of the epochs after which the rate falls, in (0, 1)
    drop_factor: float = Field(0.1, gt=0, le=1)
    augment: Literal["none", "crop", "crop-flip"] = "none"  # crop: random shift by at most 4 pixels
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of `epoch`, counted from 0."""
        passed = sum(epoch >= round(share * self.epochs) for share in self.drops)
        return self.lr * float(self.drop_factor**passed)

    @property
    def last_lr(self) -> float:
        """The learning rate of the last epoch."""
        return self.lr_at(max(self.epochs - 1, 0))
