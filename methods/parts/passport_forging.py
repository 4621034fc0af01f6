"""What a forger of passports trains on an unchanged network: free scales and biases, or passports near the owner's.

Source: the scripts `passport_attack_2` and `_3` of https://github.com/kamwoh/DeepIPR (Fan, Ng, Chan, NeurIPS 2019).
Differs: the network stands still, its running statistics included, because the claim is about the network as it is
used. The hinge of embedding holds the claimed signs; the scripts let them drift.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from assay.methods.parts.passport import PassportLayer
from assay.tasks.training.recipe import Batch, Recipe, Terms

_NOISE = 1e-3  # standard deviation by which near-by passports leave the owner's at first
_NORM = 2.0  # bound on the norm of the near-by passports' gradient

SignLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of one layer's scale (C,) on the wanted signs (C,)."""


def flipped(signs: Tensor, share: float, draws: torch.Generator) -> Tensor:
    """Return signs (n,) of -1 and +1, int8, of which ⌊share n⌋ are turned, drawn at random from all layers."""
    turned = torch.randperm(len(signs), generator=draws)[: math.floor(Fraction(str(share)) * len(signs))]
    changed = signs.clone()
    changed[turned] *= -1
    return changed


def signs_of(scales: Sequence[Tensor]) -> Tensor:
    """Return the signs of several layers' scales, int8 (sum of C,) on the CPU; 0 counts as +1."""
    return torch.where(torch.cat([scale.detach().flatten().cpu() for scale in scales]) < 0, -1, 1).to(torch.int8)


def claiming(layers: Sequence[PassportLayer], bits: Tensor) -> list[PassportLayer]:
    """Return the layers with other wanted signs (sum of C,)."""
    parts = bits.split([len(layer.bits) for layer in layers])
    return [replace(layer, bits=part.clone()) for layer, part in zip(layers, parts, strict=True)]


class Claim(nn.Module, ABC):
    """A network that stands still, read through scales and biases that a forger is free to choose.

    Attributes:
        layers: the passport layers, with the claimed signs.
    """

    def __init__(self, network: nn.Module, layers: Sequence[PassportLayer]) -> None:
        super().__init__()
        self.network, self.layers = network.requires_grad_(False), list(layers)

    @abstractmethod
    def affine(self) -> list[tuple[Tensor, Tensor]]:
        """Return scale and bias (C,) of every layer."""

    def loss(self) -> Terms:
        """Return further terms."""
        return {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits for model inputs."""
        changed: dict[str, Tensor] = {}
        for layer, (scale, bias) in zip(self.layers, self.affine(), strict=True):
            changed |= {f"{layer.norm}.weight": scale, f"{layer.norm}.bias": bias}
        answered: Tensor = functional_call(self.network, changed, (inputs,))
        return answered


class FreeAffine(Claim):
    """Reverse engineering: scale and bias themselves train, from random sizes under the claimed signs and from 0."""

    def __init__(self, network: nn.Module, layers: Sequence[PassportLayer], draws: torch.Generator) -> None:
        super().__init__(network, layers)
        sizes = [torch.rand(len(layer.bits), generator=draws) for layer in layers]
        pairs = zip(layers, sizes, strict=True)
        self.scales = nn.ParameterList([nn.Parameter(size * layer.bits.cpu()) for layer, size in pairs])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros_like(size)) for size in sizes])

    def affine(self) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters."""
        return list(zip(self.scales, self.biases, strict=True))

    def forged(self) -> list[PassportLayer]:
        """Return passports that give scale and bias as closely as the convolutions allow; the signs are as claimed."""
        found = []
        for layer, (scale, bias) in zip(self.layers, self.affine(), strict=True):
            weight = self.network.get_parameter(f"{layer.conv}.weight")
            found.append(replace(layer.forged(weight, scale.detach(), bias.detach()), bits=layer.bits))
        return found


class NearPassports(Claim):
    """Near-by forging: the owner's passports train, away from where they were."""

    def __init__(self, network: nn.Module, layers: Sequence[PassportLayer], draws: torch.Generator) -> None:
        super().__init__(network, layers)
        originals = [part for layer in layers for part in (layer.scale_passport, layer.bias_passport)]
        noise = [_NOISE * torch.randn(part.shape, generator=draws) for part in originals]
        pairs = zip(originals, noise, strict=True)
        self.passports = nn.ParameterList([nn.Parameter(part.detach().cpu() + more) for part, more in pairs])
        for number, part in enumerate(originals):
            self.register_buffer(f"original_{number}", part.detach().clone())

    def affine(self) -> list[tuple[Tensor, Tensor]]:
        """Return what the passports give through the network's convolutions."""
        found = []
        for layer, scale, bias in zip(self.layers, self.passports[::2], self.passports[1::2], strict=True):
            weight = self.network.get_parameter(f"{layer.conv}.weight")
            found.append((layer.response(weight, scale), layer.response(weight, bias)))
        return found

    def distances(self) -> Tensor:
        """Return the mean squared distance of every passport from the owner's."""
        originals = [self.get_buffer(f"original_{number}") for number in range(len(self.passports))]
        return torch.stack([F.mse_loss(a, b) for a, b in zip(self.passports, originals, strict=True)])

    def loss(self) -> Terms:
        """Return the sum of the inverse distances."""
        return {"near": (1 / self.distances()).sum()}

    def forged(self) -> list[PassportLayer]:
        """Return the trained passports; the signs are as claimed."""
        trained = [part.detach().cpu().contiguous() for part in self.passports]
        return [
            replace(layer, scale_passport=scale, bias_passport=bias)
            for layer, scale, bias in zip(self.layers, trained[::2], trained[1::2], strict=True)
        ]


class ForgingRecipe(Recipe):
    """Cross-entropy through the claim, with the hinge on the claimed signs; the network is in eval mode throughout."""

    def __init__(self, sign_loss: SignLoss) -> None:
        super().__init__()
        self.sign_loss = sign_loss

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Keep the running statistics: they are the victim's."""
        model.eval()

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the terms."""
        assert isinstance(model, Claim)
        signs = [
            self.sign_loss(scale, layer.bits) for layer, (scale, _) in zip(model.layers, model.affine(), strict=True)
        ]
        return {**super().loss(model, batch), "sign": torch.stack(signs).sum(), **model.loss()}

    def on_gradients(self, model: nn.Module) -> None:
        """Bound near-by passports' gradient, which is huge at the start."""
        if isinstance(model, NearPassports):
            nn.utils.clip_grad_norm_(model.passports, _NORM)
