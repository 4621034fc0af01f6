"""Neuron pruning: remove whole neurons, those with the smallest weights first.

Paper: the pruning attack on null embedding (Li, Wenger, Shan, Zhao, Zheng, "Piracy Resistant Watermarks for Deep Neural
    Networks", https://arxiv.org/abs/1910.01226)
Access: weights; no data.
Differs from the paper: the paper speaks of neurons but cites a work on single weights, which is attack `prune`.
    Neurons are ranked by the mean of their incoming magnitudes, because sums would rank wide kernels last. Channels
    into which several layers add stay unless `streams` is set. Entries of a word vector are no neurons.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.channels import Group, cut
from assay.attacks.parts.neurons import Scope, prune_neurons
from assay.tasks.lab import Lab


class Config(AttackConfig):
    """Settings of neuron pruning."""

    ratio: float = Field(0.5, ge=0, le=1)  # share of the neurons that go; the paper draws the whole curve
    scope: Scope = "global"  # what is ranked together; see `Scope`
    streams: bool = False  # prune also the channels into which several layers add (residual streams)
    compact: bool = False  # cut the neurons out instead of zeroing them


class NeuronPrune(Attack[Config]):
    """Zero or cut out the neurons of smallest weights."""

    key = "neuron-prune"
    title = "Neuron pruning"
    source = "Li et al. (null embedding), 2019"
    access = "weights"
    cheap = True
    identity: ClassVar = {"ratio": 0.0}
    Config = Config

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the pruned copy; its curve `pruned` holds the share of neurons gone from each layer, in order.

        Raises:
            UnsupportedModel: the network has no hidden neurons that can be told apart.
        """
        model, config = victim.module(), self.config
        pruned = prune_neurons(model, config.ratio, config.scope, streams=config.streams)
        for place, (group, units) in enumerate(pruned):
            lab.curve("pruned", place, share=len(units) / group.channels)
        if not config.compact:
            return Outcome(model)
        whole = [group.name for group, _ in pruned if not _can_be_cut(model, group)]
        # A layer keeps one channel, zeroed like the rest: one without any does not run.
        cut(model, [(group, units[: group.channels - 1]) for group, units in pruned if group.name not in whole])
        return Outcome(model, structure="changed", notes=[f"{name}: zeroed, not cut out" for name in whole])


def _can_be_cut(model: nn.Module, group: Group) -> bool:
    """Return whether cutting zeroed channels out changes nothing: not where an activation lifts them from zero."""
    recurrent = any(isinstance(model.get_submodule(name), nn.RNNBase) for name in group.layers("producer"))
    return group.keeps_zero and not recurrent
