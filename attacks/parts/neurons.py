"""Zeroing the neurons of smallest weights, in place: shared by the attacks that prune, with or without training."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from assay.attacks.parts.channels import Group, silence
from assay.attacks.parts.graph import channel_groups
from assay.tasks.errors import UnsupportedModel

Scope = Literal["global", "layer"]
"""global: all neurons of the network are ranked together; layer: the same share of each layer, which keeps one."""


def magnitudes(model: nn.Module, group: Group) -> Tensor:
    """Return the mean |w| of each unit's incoming weights (channels,), float64 on the CPU."""
    everyone = torch.arange(group.channels)
    total, count = torch.zeros(group.channels, dtype=torch.float64), 0
    for member in group.members:
        weight = member.of(model).detach()
        if member.role == "producer" and weight.dim() > 1:
            rows = weight.double().abs().cpu().movedim(member.axis, 0)[member.positions(everyone)]
            total += rows.flatten(1).sum(1)
            count += rows[0].numel()
    return total / count


def chosen(scores: list[Tensor], ratio: float, scope: Scope) -> list[Tensor]:
    """Return the units to prune of each group, ascending; ties go to the earlier unit, so that larger ratios nest.

    Args:
        scores: of each group's units (channels,).
        ratio: the share of them, in decimal: 0.29 of 100 units are 29. Rounded down.
        scope: see `Scope`.
    """
    share = Fraction(str(ratio))
    if scope == "layer":
        counts = [min(math.floor(share * len(score)), len(score) - 1) for score in scores]
        return [score.argsort(stable=True)[:count].sort()[0] for score, count in zip(scores, counts, strict=True)]
    order = torch.cat(scores).argsort(stable=True)
    gone = torch.zeros(len(order), dtype=torch.bool)
    gone[order[: math.floor(share * len(order))]] = True
    return [part.nonzero().flatten() for part in gone.split([len(score) for score in scores])]


def prune_neurons(model: nn.Module, ratio: float, scope: Scope, *, streams: bool = False) -> list[tuple[Group, Tensor]]:
    """Zero the share `ratio` of the hidden neurons, in place; return the groups and the units gone from each.

    Args:
        model: a network in plain form.
        ratio: in [0, 1], meant in decimal.
        scope: what is ranked together.
        streams: prune also the channels into which several layers add (residual streams).

    Raises:
        UnsupportedModel: the network has no hidden neurons that can be told apart.
    """
    groups = [group for group in channel_groups(model) if _is_unit(model, group) and (streams or not group.is_stream)]
    if not groups:
        raise UnsupportedModel(f"{type(model).__name__} has no hidden neurons outside frozen or shared channels")
    picked = chosen([magnitudes(model, group) for group in groups], ratio, scope)
    for group, units in zip(groups, picked, strict=True):
        silence(model, group, units)
    return list(zip(groups, picked, strict=True))


def _is_unit(model: nn.Module, group: Group) -> bool:
    """Return whether a group's channels are neurons; a word vector's entries are none."""
    return not any(isinstance(model.get_submodule(name), nn.Embedding) for name in group.layers("producer"))
