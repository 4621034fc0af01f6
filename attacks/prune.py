"""Magnitude pruning: delete the smallest weights, without any data.

Paper: L1 unstructured pruning of the robustness tables of USP, FCW, ING and GRD (after Han et al., NeurIPS 2015,
    https://arxiv.org/abs/1506.02626); variants of SoK, https://arxiv.org/abs/2108.04974, and DeepIPR,
    https://arxiv.org/abs/1909.07830
Access: weights; no data.
Differs from the paper: ties go to the earlier entry, which no source states; ING prunes and then trains, which is
    another attack.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from attacks.base import Attack, AttackConfig, Outcome, Victim
from attacks.parts.graph import logit_layer
from tasks.data import Party
from tasks.lab import Lab

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


class Config(AttackConfig):
    """Settings of pruning."""

    ratio: float = Field(0.8, ge=0, le=1)  # share of the entries that become zero
    # global, layer: weights of dense and convolution layers, ranked together or each alone. For comparison only:
    # wrt: every floating entry of the state dict whose name lacks "bn", each alone, rounded up (SoK's toolkit);
    # all: all parameters together, batch norm included (DeepIPR's script).
    scope: Literal["global", "layer", "wrt", "all"] = "global"
    skip_last: bool = False  # spare the layer that gives the logits (FCW's baseline code); scopes global and layer


def zero_smallest(tensors: list[Tensor], count: int) -> None:
    """Set the `count` entries of smallest magnitude over all tensors together to zero, in place.

    Ties go to the lower (tensor, flat index), so that larger counts zero supersets.
    """
    if not tensors:
        return
    order = torch.cat([tensor.flatten().abs() for tensor in tensors]).argsort(stable=True)
    gone = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    gone[order[:count]] = True
    for tensor, mask in zip(tensors, gone.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.masked_fill_(mask.view_as(tensor), 0)


class Prune(Attack):
    """Zero the weights of smallest magnitude."""

    key = "prune"
    title = "Magnitude pruning"
    source = "Han et al., NeurIPS 2015; tables of USP, FCW, ING and GRD"
    needs = "weights"
    cheap = True
    identity: ClassVar = {"ratio": 0.0}
    Config = Config

    def run(self, victim: Victim, data: Party, lab: Lab) -> Outcome:
        """Return the pruned copy; its curve `sparsity` holds the share of zeros of each pruned tensor, in order."""
        model = victim.module()
        tensors = self._tensors(model)
        ratio = Fraction(str(self.config.ratio))  # exact: 0.29 of 100 entries are 29
        rounded = math.ceil if self.config.scope == "wrt" else math.floor
        together = self.config.scope in ("global", "all")
        with torch.no_grad():
            for pool in [tensors] if together else [[tensor] for tensor in tensors]:
                zero_smallest(pool, rounded(ratio * sum(tensor.numel() for tensor in pool)))
        for place, tensor in enumerate(tensors):
            lab.curve("sparsity", place, share=float((tensor == 0).double().mean()))
        return Outcome(model)

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        if self.config.scope == "all":
            return list(model.parameters())
        if self.config.scope == "wrt":
            entries = model.state_dict().items()
            return [value for name, value in entries if "bn" not in name and value.is_floating_point()]
        last = logit_layer(model) if self.config.skip_last else None
        layers = [m for name, m in model.named_modules() if isinstance(m, _WEIGHTED) and name != last]
        return [layer.weight for layer in layers]
