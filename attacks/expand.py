"""Low-rank expansion: convolutions become sequences of smaller ones, so the layer that carries a mark is gone.

Paper: the expansion attack of Yang, Dang, Chang, "Effectiveness of Distillation Attack and Countermeasure on Neural
    Network Watermarking" (ingrain), https://arxiv.org/abs/1906.06046; schemes of Jaderberg et al., BMVC 2014,
    https://arxiv.org/abs/1405.3866, and of Zhang et al., TPAMI 2016, https://arxiv.org/abs/1505.06798
Access: weights; the channel-data scheme and the refreshed batch norm use the attacker's inputs, no labels.
Differs from the paper: the paper names two schemes and a speed-up of 2.5 to 3, but neither ranks nor layers. Ranks
    here give each layer that speed-up. Of Zhang et al. only the linear case is implemented.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.low_rank import (
    Factors,
    Scheme,
    channel_factors,
    full_rank,
    rank_for,
    recompose,
    spatial_factors,
)
from assay.methods.base import Method
from assay.tasks.data.splits import in_chunks, to_model_input
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter
from assay.tasks.training.norms import refresh_statistics

Responses = tuple[Tensor, Tensor]


class Config(AttackConfig):
    """Settings of the expansion."""

    # spatial: a column, then a row; channel: fewer filters, then 1x1, from the weights' singular vectors; channel-data:
    # the same from the responses' principal components; both: channel, its filters then spatial.
    scheme: Literal["spatial", "channel", "channel-data", "both"] = "spatial"
    speedup: float = Field(2.5, ge=1)  # of each layer, in multiplications at stride 1; the paper says 2.5 to 3
    rank: Literal["speedup", "full"] = "speedup"  # full: the function stays
    # all: every eligible layer; several: those that the speed-up makes smaller, the costliest first, until the whole
    # network is that much faster. Eligible are ungrouped convolutions above 1x1 but the first convolution.
    layers: Literal["all", "several"] = "all"
    inputs: int = Field(500, ge=2)  # how many of the attacker's inputs are used, if it holds any
    refresh: bool = True  # draw batch norm's statistics anew from them, unless the rank is full


def eligible(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that can be expanded, by name: ungrouped, above 1×1, zero-padded, not the first one."""
    every = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    return {
        name: layer
        for name, layer in every[1:]
        if isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and math.prod(layer.kernel_size) > 1
    }


@lru_cache(maxsize=64)
def _reason(task: Task) -> str | None:
    return None if eligible(task.build("expand")) else f"{task.model} has no convolution that could be expanded"


class Expand(Attack[Config]):
    """Replace convolutions by low-rank sequences."""

    key = "expand"
    title = "Low-rank expansion"
    source = "Yang, Dang, Chang (ingrain); Jaderberg et al., Zhang et al."
    access = "weights"
    cheap = True
    identity: ClassVar = {"rank": "full"}
    laptop: ClassVar = {"inputs": 200}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is nothing to expand, or None."""
        if self.config.scheme == "channel-data" and self.config.split == "none":
            return "scheme 'channel-data' reads the layers' responses, and split mode 'none' leaves no inputs"
        return _reason(task)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the expanded copy; its report holds multiplications and parameters relative to the victim's.

        The probe sees it before and after batch norm is refreshed.
        """
        data = lab.data
        model, inputs = victim.module(), data.train.inputs[: self.config.inputs]
        before = cost(model, victim.task)
        names = self._chosen(model, before)
        measured = responses(model, names, inputs, lab.meter) if self.config.scheme == "channel-data" else {}
        for name in names:
            model.set_submodule(name, self._factors(eligible(model)[name], measured.get(name)))
        after = cost(model, victim.task)
        lab.probe(0, model)
        if self.config.refresh and self.config.rank != "full" and len(inputs) > 1:
            refresh_statistics(model, inputs, lab.meter)
            lab.probe(1, model)
        report = {
            "layers": float(len(names)),
            "multiplications": sum(after.values()) / sum(before.values()),
            "parameters": _parameters(model) / _parameters(victim.module()),
        }
        return Outcome(model, restored=restored(model), structure="changed", report=report)

    def _chosen(self, model: nn.Module, multiplications: dict[str, int]) -> list[str]:
        layers = eligible(model)
        if self.config.layers == "all":
            return list(layers)
        gains = {name: multiplications[name] for name, layer in layers.items() if self._is_smaller(layer)}
        chosen: list[str] = []
        left: float = sum(multiplications.values())
        goal = left / self.config.speedup
        for name in sorted(gains, key=lambda name: -gains[name]):
            if left <= goal * (1 + 1e-9):
                break
            chosen.append(name)
            left -= gains[name] - gains[name] / self.config.speedup
        return chosen

    def _is_smaller(self, layer: nn.Conv2d) -> bool:
        scheme: Scheme = "spatial" if self.config.scheme == "spatial" else "channel"
        return rank_for(layer, scheme, self.config.speedup) < full_rank(layer, scheme)

    def _factors(self, layer: nn.Conv2d, measured: Responses | None) -> Factors:
        def rank(layer: nn.Conv2d, scheme: Scheme, speedup: float) -> int:
            return full_rank(layer, scheme) if self.config.rank == "full" else rank_for(layer, scheme, speedup)

        speedup = self.config.speedup
        if self.config.scheme == "spatial":
            return spatial_factors(layer, rank(layer, "spatial", speedup))
        if self.config.scheme == "both":  # Zhang et al., section 3.4: each step takes the root of the speed-up
            few, mixed = channel_factors(layer, rank(layer, "channel", math.sqrt(speedup))).convolutions()
            column, row = spatial_factors(few, rank(few, "spatial", math.sqrt(speedup)))
            return Factors((column, row, mixed), layer)
        return channel_factors(layer, rank(layer, "channel", speedup), measured)


def cost(model: nn.Module, task: Task) -> dict[str, int]:
    """Return the multiplications of each convolution and dense layer for one input, by name."""
    found: dict[str, int] = {}

    def count(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(layer: Any, _inputs: Any, output: Tensor) -> None:
            found[name] = layer.weight.numel() * math.prod(output.shape[2:])

        return hook

    weighted = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, weighted)]
    handles = [layer.register_forward_hook(count(name)) for name, layer in layers]
    parameter = next(model.parameters())
    with torch.no_grad():
        model(torch.zeros(1, *task.shape, dtype=parameter.dtype, device=parameter.device))
    for handle in handles:
        handle.remove()
    return found


def responses(model: nn.Module, names: Sequence[str], inputs: Tensor, meter: Meter) -> dict[str, Responses]:
    """Return mean (N,) and covariance (N, N) of each layer's outputs over all inputs and positions, float64."""
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def gather(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(_layer: Any, _inputs: Any, output: Tensor) -> None:
            rows = output.double().movedim(1, -1).flatten(0, -2)
            count, total, square = sums.get(name, (0, 0, 0))
            sums[name] = (count + len(rows), total + rows.sum(0), square + rows.T @ rows)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(gather(name)) for name in names]
    meter.touch(inputs)
    with torch.no_grad(), meter.watch(model):
        for chunk in in_chunks(inputs):
            model(to_model_input(chunk))
    for handle in handles:
        handle.remove()
    means = {name: total / count for name, (count, total, _) in sums.items()}
    return {
        name: (means[name], square / count - means[name].outer(means[name]))
        for name, (count, _, square) in sums.items()
    }


def restored(model: nn.Module) -> nn.Module:
    """Return a copy in which every sequence is multiplied out to the convolution that it stands for."""
    whole = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, Factors):
            whole.set_submodule(name, recompose(layer))
    return whole


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
