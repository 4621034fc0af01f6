"""What a stage spends: sample passes, queries; hardware-neutral, so costs compare across machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn


@dataclass
class Meter:
    """Counts of sample passes and answered queries.

    Attributes:
        forward_samples: samples that went through a watched network.
        backward_samples: those of them whose pass recorded gradients.
        steps: optimiser steps.
        queries: answers drawn from a victim or suspect as an oracle.
    """

    forward_samples: int = 0
    backward_samples: int = 0
    steps: int = 0
    queries: int = 0

    @contextmanager
    def watch(self, *models: nn.Module) -> Iterator[None]:
        """Count every call of the given networks inside the block."""

        def count(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
            samples = len(args[0])
            self.forward_samples += samples
            if torch.is_grad_enabled():
                self.backward_samples += samples

        handles = [model.register_forward_hook(count) for model in models]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, other: Meter) -> None:
        """Add another meter's counts to this one."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    @property
    def work(self) -> int:
        """Hardware-neutral work: forward passes plus twice the backward passes."""
        return self.forward_samples + 2 * self.backward_samples
