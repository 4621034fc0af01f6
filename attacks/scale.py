"""Scaling: incoming weights of a neuron times δ > 0, outgoing ones by 1/δ; the function stays, the weights do not.

Paper: the rescaling attack of the greedy-residuals paper (Liu, Weng, Zhu, ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html)
Access: weights; no data.
Differs from the paper: the paper's values of δ are not legible. Law `log-uniform` draws a factor for each channel,
    because averages over mixed channels survive a constant factor. Batch norm is scaled together with the layer before
    it or after it. Channels that pass ReLU6, a sigmoid or tanh are left alone: these are not positively homogeneous.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.channels import Group, no_carrier, scale, targeted
from assay.attacks.parts.graph import scaling_groups
from assay.methods.base import Method
from assay.tasks.lab import Lab
from assay.tasks.task import Task


class Config(AttackConfig):
    """Settings of the scaling."""

    law: Literal["constant", "log-uniform"] = "constant"  # one factor for all channels, or one drawn for each
    factor: float = Field(2.0, gt=0)  # δ of the constant law
    low: float = Field(0.1, gt=0)  # the range of the log-uniform law
    high: float = Field(10.0, gt=0)
    # all; carrier: the layers that the method is known to use; carrier-rows: the channels that those layers produce,
    # not the ones that they read; or layers' names joined by "+"
    targets: str = "all"
    # auto: all that follow. plain: between layers without batch norm. bn_stats: what a batch norm reads: the weights
    # before it and its running statistics. bn_affine: what it produces: its gamma and beta and the weights after it.
    variant: Literal["auto", "plain", "bn_affine", "bn_stats"] = "auto"

    @model_validator(mode="after")
    def _range(self) -> Config:
        if self.low > self.high:
            raise ValueError(f"low: expected at most high = {self.high}, got {self.low}")
        return self


def way(model: nn.Module, group: Group) -> Literal["plain", "bn_affine", "bn_stats"]:
    """Return how a group is scaled, which depends on the layers that read and produce it."""
    if any(member.tensor == "running_var" for member in group.members):
        return "bn_stats"
    produced = [model.get_submodule(name) for name in group.layers("producer")]
    return "bn_affine" if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in produced) else "plain"


class Scale(Attack[Config]):
    """Rescale the channels of a network without changing its function."""

    key = "scale"
    title = "Neuron scaling"
    source = "Liu, Weng, Zhu (greedy residuals), ICML 2021"
    access = "weights"
    cheap = True
    identity: ClassVar = {}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is no layer to scale, or None."""
        return no_carrier(self.config.targets, task, method)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the scaled copy; its curve `factors` holds the least and greatest factor of each group, in order.

        Raises:
            UnsupportedModel: no group of channels can be scaled where targets and variant ask for it.
        """
        model, config = victim.module(), self.config
        groups = [group for group in scaling_groups(model) if config.variant in ("auto", way(model, group))]
        for place, group in enumerate(targeted(groups, config.targets, victim.task, victim.method, "scale")):
            used = scale(model, group, self._factors(group, lab))
            lab.curve("factors", place, least=float(used.min()), greatest=float(used.max()))
        return Outcome(model)

    def _factors(self, group: Group, lab: Lab) -> Tensor:
        if self.config.law == "constant":
            return torch.full((group.channels,), self.config.factor, dtype=torch.float64)
        draws = torch.rand(group.channels, generator=lab.stream("select", group.name), dtype=torch.float64)
        low, high = math.log(self.config.low), math.log(self.config.high)
        return (low + (high - low) * draws).exp()
