"""Permutation: reorder neurons, so that marks that are read by position are misread; the function stays.

Paper: the neuron permutation attack of the greedy-residuals paper (Liu, Weng, Zhu, ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html); "feature permutation" of Lukas et al. (SoK), S&P 2022,
    https://arxiv.org/abs/2108.04974
Access: weights; no data.
Differs from the paper: the layers that read the moved channels are permuted too. The paper does not mention this, but
    its threat model demands it. `carrier` moves the columns of the marked layer as well, because a mark averaged over
    rows does not depend on their order. `carrier-rows` moves only its kernels, as the paper's table does.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.channels import no_carrier, permute, targeted
from assay.attacks.parts.graph import channel_groups
from assay.methods.base import Method
from assay.tasks.lab import Lab
from assay.tasks.task import Task


class Config(AttackConfig):
    """Settings of the permutation."""

    # all; carrier: the layers that the method is known to use; carrier-rows: the channels that those layers produce,
    # not the ones that they read; or layers' names joined by "+"
    targets: str = "all"
    n_nodes: Annotated[int, Field(ge=2)] | Literal["all"] = "all"  # how many channels of a group change places


def draw_order(channels: int, n_nodes: int | Literal["all"], generator: torch.Generator) -> Tensor:
    """Return a permutation of 0 … channels-1 (channels,): uniform, or one that moves exactly `n_nodes` channels.

    Raises:
        ValueError: fewer channels than `n_nodes`.
    """
    if n_nodes == "all":
        return torch.randperm(channels, generator=generator)
    if not 2 <= n_nodes <= channels:
        raise ValueError(f"n_nodes: expected 2 ... {channels}, got {n_nodes}")
    order = torch.arange(channels)
    chosen = torch.randperm(channels, generator=generator)[:n_nodes]
    # Uniform among the permutations without fixed points, by rejection: about e draws.
    while True:
        moved = torch.randperm(n_nodes, generator=generator)
        if not (moved == torch.arange(n_nodes)).any():
            order[chosen] = chosen[moved]
            return order


class Permute(Attack[Config]):
    """Reorder the channels of a network without changing its function."""

    key = "permute"
    title = "Neuron permutation"
    source = "Liu, Weng, Zhu (greedy residuals), ICML 2021"
    access = "weights"
    cheap = True
    identity: ClassVar = {}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is no layer to permute, or None."""
        return no_carrier(self.config.targets, task, method)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the permuted copy.

        Raises:
            UnsupportedModel: no group of channels can be permuted where the targets ask for it.
        """
        model = victim.module()
        notes: list[str] = []
        groups = channel_groups(model)
        for group in targeted(groups, self.config.targets, victim.task, victim.method, "permute"):
            if self.config.n_nodes != "all" and group.channels < self.config.n_nodes:
                notes.append(
                    f"{group.name}: {group.channels} channels, fewer than {self.config.n_nodes}; left as it is"
                )
                continue
            permute(model, group, draw_order(group.channels, self.config.n_nodes, lab.stream("select", group.name)))
        return Outcome(model, notes=notes)
