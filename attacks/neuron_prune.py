"""Neuron pruning: remove whole neurons, those with the smallest weights first.

Paper: the pruning attack on null embedding (Li, Wenger, Shan, Zhao, Zheng, "Piracy Resistant Watermarks for Deep Neural
    Networks", https://arxiv.org/abs/1910.01226)
Access: weights; no data.
Differs from the paper: it speaks of neurons but cites a work on single weights (that is `prune`); neurons are ranked by
    the mean, not the sum, of their incoming magnitudes, since sums would rank wide kernels last; channels that several
    layers add into stay unless `streams` is set, and a word vector's entries are no neurons.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attacks.base import Attack, AttackConfig, Outcome, Victim
from attacks.parts.channels import Group, cut, silence
from attacks.parts.graph import channel_groups
from tasks.data import Party
from tasks.errors import UnsupportedModel
from tasks.lab import Lab


class Config(AttackConfig):
    """Settings of neuron pruning."""

    ratio: float = Field(0.5, ge=0, le=1)  # share of the neurons that go; the paper draws the whole curve
    # global: all neurons of the network are ranked together; layer: the same share of each layer, which keeps one.
    scope: Literal["global", "layer"] = "global"
    streams: bool = False  # prune also the channels into which several layers add (residual streams)
    compact: bool = False  # cut the neurons out instead of zeroing them


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


def chosen(scores: list[Tensor], ratio: float, scope: Literal["global", "layer"]) -> list[Tensor]:
    """Return the units to prune of each group, ascending; ties go to the earlier unit, so that larger ratios nest.

    Args:
        scores: of each group's units (channels,).
        ratio: the share of them, in decimal: 0.29 of 100 units are 29. Rounded down.
        scope: see `Config`.
    """
    share = Fraction(str(ratio))
    if scope == "layer":
        counts = [min(math.floor(share * len(score)), len(score) - 1) for score in scores]
        return [score.argsort(stable=True)[:count].sort()[0] for score, count in zip(scores, counts, strict=True)]
    order = torch.cat(scores).argsort(stable=True)
    gone = torch.zeros(len(order), dtype=torch.bool)
    gone[order[: math.floor(share * len(order))]] = True
    return [part.nonzero().flatten() for part in gone.split([len(score) for score in scores])]


class NeuronPrune(Attack):
    """Zero or cut out the neurons of smallest weights."""

    key = "neuron-prune"
    title = "Neuron pruning"
    source = "Li et al. (null embedding), 2019"
    needs = "weights"
    cheap = True
    identity: ClassVar = {"ratio": 0.0}
    Config = Config

    def run(self, victim: Victim, data: Party, lab: Lab) -> Outcome:
        """Return the pruned copy; its curve `pruned` holds the share of neurons gone from each layer, in order.

        Raises:
            UnsupportedModel: the network has no hidden neurons that can be told apart.
        """
        model, config = victim.module(), self.config
        groups = [group for group in channel_groups(model) if self._is_unit(model, group)]
        if not groups:
            raise UnsupportedModel(f"{type(model).__name__} has no hidden neurons outside frozen or shared channels")
        picked = chosen([magnitudes(model, group) for group in groups], config.ratio, config.scope)
        for place, (group, units) in enumerate(zip(groups, picked, strict=True)):
            silence(model, group, units)
            lab.curve("pruned", place, share=len(units) / group.channels)
        if not config.compact:
            return Outcome(model)
        whole = [group.name for group in groups if not _can_be_cut(model, group)]
        # A layer keeps one channel, zeroed like the rest: one without any does not run.
        pairs = zip(groups, picked, strict=True)
        cut(model, [(group, units[: group.channels - 1]) for group, units in pairs if group.name not in whole])
        return Outcome(model, structure="changed", notes=[f"{name}: zeroed, not cut out" for name in whole])

    def _is_unit(self, model: nn.Module, group: Group) -> bool:
        words = any(isinstance(model.get_submodule(name), nn.Embedding) for name in group.layers("producer"))
        return not words and (self.config.streams or not group.is_stream)


def _can_be_cut(model: nn.Module, group: Group) -> bool:
    """Return whether cutting zeroed channels out changes nothing: not where an activation lifts them from zero."""
    recurrent = any(isinstance(model.get_submodule(name), nn.RNNBase) for name in group.layers("producer"))
    return group.keeps_zero and not recurrent
