"""Projection regulariser: signs of secret projections of one layer's averaged filters spell a message.

Paper: Uchida, Nagai, Sakazawa, Satoh, "Embedding Watermarks into Deep Neural Networks", ICMR 2017,
    https://arxiv.org/abs/1701.04082
Access: weights. Protected is one layer of the released network; the message is lost where that layer is.
Differs from the paper: the message is random by default (the published code embeds all ones, which a bias in one
    direction can satisfy); the laptop profile raises the strength from 0.01 to 0.1, because Adam's steps do not scale
    with the size of a gradient, and 64 bits at 0.01 then stay incomplete in its few epochs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.parts.carrier import carrier, carrier_name, mean_filter
from assay.methods.parts.forging import solve_projection
from assay.methods.parts.statistics import binomial_tail
from assay.methods.reading import Reading
from assay.methods.rival import Forgery, Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms

Law = Literal["random", "direct", "diff"]


class Config(MethodConfig):
    """Settings of the projection regulariser."""

    bits: int = Field(256, ge=1)
    layer: str = "auto"  # a layer's name; auto: the second convolution, in networks without any the second linear layer
    strength: float = Field(0.01, ge=0)  # lambda
    law: Law = "random"  # of a row of X: N(0, 1); one 1; one +1 and one -1
    message: Literal["random", "ones"] = "random"
    threshold: float = Field(0.99, gt=0, le=1)  # bit accuracy; the paper asks for no bit error
    allow_over: bool = False  # embed more bits than the carrier has entries


@lru_cache(maxsize=64)  # calibration draws many keys for one task
def _carrier_of(task: Task, layer: str) -> tuple[str, int]:
    network = task.build("carrier")
    name = carrier_name(network, layer)
    return name, mean_filter(network.get_parameter(name)).numel()


def projection(law: Law, seed: int, bits: int, size: int) -> Tensor:
    """Return the secret matrix X, float32 (bits, size), of a law and a seed."""
    draws = torch.Generator().manual_seed(seed)
    if law == "random":
        return torch.randn(bits, size, generator=draws)
    matrix = torch.zeros(bits, size)
    first = torch.randint(0, size, (bits, 1), generator=draws)
    if law == "diff":
        other = (first + torch.randint(1, size, (bits, 1), generator=draws)) % size
        matrix.scatter_(1, other, -1.0)
    return matrix.scatter_(1, first, 1.0)


def message_loss(weight: Tensor, matrix: Tensor, message: Tensor) -> Tensor:
    """Return sum_j BCE(sigmoid(X_j . w), b_j), w the filters averaged over output channels (eq. 2 of the paper).

    Args:
        weight: the carrier (O, ...), its other axes of d entries in all.
        matrix: X (bits, d).
        message: b (bits,), of 0 and 1.
    """
    return F.binary_cross_entropy_with_logits(matrix @ mean_filter(weight), message, reduction="sum")


class _Regulariser(Recipe):
    def __init__(self, name: str, matrix: Tensor, message: Tensor, strength: float) -> None:
        super().__init__()
        self.name, self.matrix, self.message, self.strength = name, matrix, message, strength

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        mark = message_loss(model.get_parameter(self.name), self.matrix, self.message)
        return {**super().loss(model, batch), "mark": self.strength * mark}


class UchidaRival(Rival[RivalConfig]):
    """A forger who solves for the secret matrix."""

    def claim(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Solve for a matrix that reads a fresh message from the unchanged victim."""
        own = lab.for_key(0)
        secret = self.draw(victim.module(), own)
        solved = solve_projection(_filter(victim, secret), secret["message"], own.stream("secret", "matrix"))
        return {**secret, "matrix": solved.float()}


class Uchida(Method[Config]):
    """A message in the signs of random projections of one layer's mean filter."""

    key = "uchida"
    title = "Projection regulariser"
    paper = "Uchida et al., ICMR 2017, https://arxiv.org/abs/1701.04082"
    access = "weights"
    family = "bits"
    gate = 0.99
    rival = UchidaRival
    Config = Config
    laptop: ClassVar[dict[str, Any]] = {"bits": 64, "strength": 0.1}

    def supports(self, task: Task) -> str | None:
        """Return why the task's architecture cannot carry the message, or None."""
        try:
            name, size = _carrier_of(task, self.config.layer)
        except UnsupportedModel as why:
            return str(why)
        if size < 2 and self.config.law == "diff":
            return f"law 'diff' needs a carrier of two entries; {name} has {size}"
        if self.config.bits > size and not self.config.allow_over:
            return f"{self.config.bits} bits exceed the {size} entries of {name}; lower bits or set allow_over"
        return None

    def carrier_layers(self, task: Task) -> tuple[str, ...]:
        """Return the one layer that carries the message, by the positions of its input channels."""
        return (_carrier_of(task, self.config.layer)[0].rpartition(".")[0],)

    def draw(self, lab: Lab) -> Secret:
        """Draw the seed of X and the message; X itself is kept, since the paper's key is X."""
        name, size = _carrier_of(lab.task, self.config.layer)
        draws = lab.stream("secret")
        seed = int(torch.randint(0, 2**62, (), generator=draws))
        message = torch.randint(0, 2, (self.config.bits,), generator=draws, dtype=torch.uint8)
        if self.config.message == "ones":
            message = torch.ones_like(message)
        matrix = projection(self.config.law, seed, self.config.bits, size)
        return {"layer": name, "law": self.config.law, "seed": seed, "matrix": matrix, "message": message}

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Cross-entropy plus lambda times the message's loss."""
        matrix, message = secret["matrix"].to(lab.device), secret["message"].to(lab.device).float()
        return _Regulariser(secret["layer"], matrix, message, self.config.strength)

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Decode b_j = 1[X_j . w >= 0]; the score is the share of right bits.

        The number of output channels may have changed, since it is averaged out; the filters' size may not.
        """
        decoded = _decode(suspect, secret)
        bits = len(decoded)
        hits = int((decoded == secret["message"].cpu().bool()).sum())
        score, threshold = hits / bits, self.config.threshold
        drawn = projection(secret["law"], secret["seed"], *secret["matrix"].shape)
        return Reading(
            score, 0.5, threshold, binomial_tail(hits, bits, 0.5), score >= threshold, "T3", hits, bits,
            # A matrix solved for after the fact decodes any message; one expanded from a seed cannot be solved for.
            metrics={"matrix_from_seed": float(torch.equal(drawn, secret["matrix"].cpu()))},
        )  # fmt: skip


def _filter(suspect: Suspect, secret: Secret) -> Tensor:
    w = mean_filter(carrier(suspect.weights(), secret["layer"])).double().cpu()
    if len(w) != (size := secret["matrix"].shape[1]):
        raise UnsupportedModel(f"{secret['layer']}: expected filters of {size} entries, found {len(w)}")
    return w


def _decode(suspect: Suspect, secret: Secret) -> Tensor:
    return secret["matrix"].cpu().double() @ _filter(suspect, secret) >= 0  # a tie reads as 1
