"""What a stage spends: sample passes, queries, samples; hardware-neutral, so costs compare across machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_AT_ONCE = 512  # samples whose bytes are multiplied together
_COUNTS = ("forward_samples", "backward_samples", "steps", "queries")


@dataclass
class Meter:
    """Counts of sample passes and answered queries, and which samples were used.

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
    _touched: set[int] = field(default_factory=set, init=False, repr=False)

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

    def touch(self, inputs: Tensor) -> None:
        """Note samples (N, ...) as used, in the form in which they are stored, before any augmentation.

        They are told apart by a 64-bit fingerprint of their bytes, so it does not matter how often, in which order or
        in which part of a data set a sample is met, nor whether a stage was interrupted and noted it twice. `lab.fit`
        notes what it is given.
        """
        if not len(inputs):
            return
        rows = inputs.detach().contiguous().flatten(1).view(torch.uint8)
        draws = torch.Generator().manual_seed(0)
        weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=draws).to(rows.device)
        for chunk in rows.split(_AT_ONCE):
            self._touched.update((chunk.long() * weights).sum(1).tolist())  # modulo 2**64

    @property
    def unique_samples(self) -> int:
        """How many different samples were used."""
        return len(self._touched)

    def add(self, other: Meter) -> None:
        """Add another meter's counts to this one; samples that both used count once."""
        for name, count in other.as_dict().items():
            setattr(self, name, getattr(self, name) + count)
        self._touched |= other._touched

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name: what a checkpoint keeps."""
        return {name: getattr(self, name) for name in _COUNTS}

    def costs(self) -> dict[str, int]:
        """Return the counts and the number of different samples by name: what a stage's record says."""
        return {**self.as_dict(), "unique_samples": self.unique_samples}

    @property
    def work(self) -> int:
        """Hardware-neutral work: forward passes plus twice the backward passes."""
        return self.forward_samples + 2 * self.backward_samples
