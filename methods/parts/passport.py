"""Passport layers: batch norm whose scale and bias follow from secret tensors through the convolution before it.

For a convolution with weight W and a passport p of its input's shape, `scale(W, p) = mean over positions of W * p`, one
number per output channel (Fan et al. 2019). It is linear in W, so it equals the inner product of W with one fixed
patch per passport; a training step thus costs no convolution of passports.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.methods.suspect import Oracle
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import CapacityError, UnsupportedModel


def text_bits(text: str) -> Tensor:
    """Return a text's UTF-8 bits as int8 of -1 and +1, most significant bit of each byte first."""
    bits = [(byte >> shift) & 1 for byte in text.encode() for shift in range(7, -1, -1)]
    return torch.tensor(bits, dtype=torch.int8) * 2 - 1


def signature(text: str, total: int, generator: torch.Generator) -> Tensor:
    """Return `total` bits of -1 and +1 (int8): the text's, then random ones.

    Raises:
        CapacityError: the text needs more bits.
    """
    fixed = text_bits(text)
    if len(fixed) > total:
        raise CapacityError(f"the signature needs {len(fixed)} channels, the passport layers have {total}")
    drawn = torch.randint(0, 2, (total - len(fixed),), generator=generator, dtype=torch.int8) * 2 - 1
    return torch.cat([fixed, drawn])


@dataclass(frozen=True)
class PassportLayer:
    """One passport layer, as the secret holds it.

    Attributes:
        conv, norm: plain names of the two modules.
        kernel: shape of the convolution's weight.
        geometry: its `stride`, `padding`, `dilation` and `groups`.
        scale_passport, bias_passport: secret tensors (1, C, H, W).
        bits: wanted signs of the scale, int8 of -1 and +1 (C_out,).
    """

    conv: str
    norm: str
    kernel: Sequence[int]
    geometry: dict[str, Any]
    scale_passport: Tensor
    bias_passport: Tensor
    bits: Tensor

    def tree(self) -> dict[str, Any]:
        """Return the fields as a plain tree."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def response(self, weight: Tensor, passport: Tensor) -> Tensor:
        """Return the mean over positions of `weight * passport` (C_out,)."""
        return F.conv2d(passport, weight, None, **self.geometry).mean((0, 2, 3))

    def _patch(self, passport: Tensor) -> Tensor:
        with torch.enable_grad():
            weight = torch.zeros(list(self.kernel), dtype=passport.dtype, device=passport.device, requires_grad=True)
            (patch,) = torch.autograd.grad(self.response(weight, passport).sum(), weight)
        return patch

    @cached_property
    def patches(self) -> tuple[Tensor, Tensor]:
        """What W is multiplied with to give scale and bias, each in the shape of W."""
        return self._patch(self.scale_passport), self._patch(self.bias_passport)

    def affine(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and bias (C_out,) that the passports give through `weight`, with a gradient into it."""
        scale, bias = (patch.to(weight) for patch in self.patches)
        return (weight * scale).sum((1, 2, 3)), (weight * bias).sum((1, 2, 3))

    def forged(self, weight: Tensor, scale: Tensor, bias: Tensor) -> PassportLayer:
        """Return the layer with the smallest passports whose scale and bias come closest to the given ones (C_out,).

        The bits become the signs of the scale that the forged passport gives, so they match by construction.
        """
        blank = torch.zeros_like(self.scale_passport, dtype=torch.float64)
        exact = weight.double().to(blank.device)
        jacobian = torch.autograd.functional.jacobian(lambda passport: self.response(exact, passport), blank)
        inverse = torch.linalg.pinv(jacobian.flatten(1))
        for_scale, for_bias = ((inverse @ target.to(inverse)).view_as(blank).float() for target in (scale, bias))
        reached = self.response(weight.to(blank.device), for_scale)
        bits = torch.where(reached < 0, -1, 1).to(torch.int8)
        return PassportLayer(self.conv, self.norm, self.kernel, self.geometry, for_scale, for_bias, bits)

    def to(self, device: torch.device) -> PassportLayer:
        """Return the same layer on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("scale_passport", "bias_passport", "bits")}
        return PassportLayer(**{**self.tree(), **moved})


def layers_of(secret: Mapping[str, Any]) -> list[PassportLayer]:
    """Return the passport layers that a secret's entry `layers` holds as plain trees."""
    return [PassportLayer(**layer) for layer in secret["layers"]]


def sign_loss(scale: Tensor, bits: Tensor, alpha: float, margin: float, decay: float) -> Tensor:
    """Return `alpha sum_c max(margin - b_c gamma_c, 0) + decay sum_c gamma_c²` of one layer's scale (C,)."""
    return alpha * (margin - bits.to(scale) * scale).clamp_min(0).sum() + decay * scale.square().sum()


def private_affine(model: nn.Module, layers: Iterable[PassportLayer]) -> dict[str, Tensor]:
    """Return, by parameter name, the batch-norm scales and biases that the passports give through the model."""
    affine: dict[str, Tensor] = {}
    for layer in layers:
        scale, bias = layer.affine(model.get_parameter(f"{layer.conv}.weight"))
        affine |= {f"{layer.norm}.weight": scale, f"{layer.norm}.bias": bias}
    return affine


def materialise(model: nn.Module, layers: Iterable[PassportLayer]) -> None:
    """Write the passports' scales and biases into the model's batch-norm parameters, in place."""
    with torch.no_grad():
        for name, value in private_affine(model, layers).items():
            model.get_parameter(name).copy_(value)


def fidelity_gap(model: nn.Module, layers: Iterable[PassportLayer], data: Labelled) -> float:
    """Return the accuracy through the passports less the public accuracy on `data`; 0 without data.

    Raises:
        UnsupportedModel: the model does not take these inputs.
    """
    if not len(data):
        return 0.0
    private = copy.deepcopy(model)
    materialise(private, layers)
    data = data.to(next(model.parameters()).device)
    answers = (Oracle(network, "labels", "passports").labels(data.inputs) for network in (private, model))
    through, public = (float((answer == data.labels).float().mean()) for answer in answers)
    return through - public


def matched_signs(weights: Mapping[str, Tensor], layers: Iterable[PassportLayer], *, shipped: bool) -> Tensor:
    """Return per channel of all layers whether the scale's sign is the wanted one; a scale of 0 never is.

    Args:
        weights: a suspect's tensors by plain name.
        layers: the owner's passport layers.
        shipped: read batch norm's own scale, which the suspect may have tuned, instead of recomputing it.

    Returns:
        bool (sum of C_out,), on the CPU.

    Raises:
        UnsupportedModel: the suspect lacks a layer or has it in another shape.
    """
    matches = []
    for layer in layers:
        weight, scale = weights.get(f"{layer.conv}.weight"), weights.get(f"{layer.norm}.weight")
        if weight is None or scale is None or list(weight.shape) != list(layer.kernel) or len(scale) != len(layer.bits):
            raise UnsupportedModel(f"the suspect has no {layer.conv} and {layer.norm} with kernel {list(layer.kernel)}")
        signs = torch.sign(scale if shipped else layer.affine(weight)[0])
        matches.append(signs.cpu() == layer.bits.cpu())
    return torch.cat(matches)
