"""Greedy residuals: the signs of averages over one layer's largest weights spell bits of the owner's signature.

Paper: Liu, Weng, Zhu, "Watermarking Deep Neural Networks with Greedy Residuals", ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html
Access: weights. Protected is the carrier layer of the released network, whatever its task; verifying takes no data.
Differs from the paper: Ed25519 (or RSA with 2,048 bits) instead of RSA with 256, which is factored in minutes, and
    SHAKE-256 of the signature; the embedding step is joint with SGD, as in the published code, and Algorithm 1's
    separate one with adaptive optimisers, whose steps do not scale with a gradient; the carrier, which the paper does
    not name, is the first layer with four weights per bit or more; the paper names no threshold, so p <= 1e-3 decides.
    The laptop profile takes the strength from the number of steps, because 0.01 needs thousands, and rows no longer
    than the carrier fills.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.methods.base import Mark, Method, MethodConfig, Secret
from assay.methods.parts.carrier import carrier
from assay.methods.parts.residuals import Carriers, choose, hinge, residuals_of, selected_count
from assay.methods.parts.signature import Scheme, bits, is_signed, signed_key
from assay.methods.parts.statistics import binomial_tail, least_hits
from assay.methods.suspect import Suspect
from assay.methods.verdict import STRICT_ALPHA, Verdict
from assay.tasks.data.splits import Party
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms
from assay.tasks.training.schedule import Schedule

_GRINDING = 2.0**40  # signatures that a determined claimant can try


class Config(MethodConfig):
    """Settings of greedy residuals."""

    bits: int | None = Field(256, ge=1)  # b; None: 256 in a carrier of 1,024 weights or more, else 64
    row_len: int | None = Field(253, ge=1)  # b'; None: as long as the carrier fills, at most 253
    eta: float = Field(0.5, gt=0, le=1)  # share of a row that is chosen; 1 in the ablation
    margin: float = Field(0.1, gt=0)  # mu
    strength: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.01  # lambda; auto: enough for the steps there are
    budget: float = Field(4.0, gt=0)  # of `auto`: planned steps in units of those that the formula asks for
    # An overwriting attacker's, who takes the strength from it; None: the owner's settings.
    rival_budget: float | None = Field(None, gt=0)
    # A layer, several, or `auto`: the first with 4 weights per bit, else the largest.
    layer: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "auto"
    truncate: bool = False  # cut the weights to a multiple of b' first, as the published code does
    step: Literal["auto", "joint", "separate"] = "auto"  # auto: joint with SGD, separate with adaptive optimisers
    embed_lr: float | None = Field(None, gt=0)  # rate of the separate step; None: the schedule's current one
    start: Literal["scratch", "clean"] = "scratch"  # clean: mark a trained model by a few further epochs
    epochs_after: int = Field(10, ge=0)  # of start="clean", at the schedule's last rate
    scheme: Scheme = "ed25519"  # of the signature over the owner's message
    search_budget: int = Field(1, ge=1)  # signatures that the claimant tried; multiplies the p-value


@lru_cache(maxsize=64)  # calibration draws many keys for one task
def _carriers(task: Task, config: Config) -> Carriers:
    layers = (config.layer,) if isinstance(config.layer, str) else config.layer
    return choose(task.build("carrier"), layers, config.bits, config.row_len, truncate=config.truncate)


def signs_of(secret: Secret) -> Tensor:
    """Return omega (b,), float32: +1 where the signature's bit is 1, else -1 (Eq. 4)."""
    return 2 * bits("greedy-residuals/bits", secret["signature"], secret["bits"]).float() - 1


class _Embedding(Recipe):
    """Cross-entropy and the hinge on the residuals, in one optimiser step or in two steps of their own."""

    def __init__(self, secret: Secret, strength: float, schedule: Schedule, embed_lr: float | None, lab: Lab) -> None:
        self.secret, self.strength, self.schedule = secret, strength, schedule
        signs = signs_of(secret)
        self.signs = (-signs if secret.get("denied") else signs).to(lab.device)
        self.embed_lr = embed_lr

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        self.lr = self.embed_lr or self.schedule.lr_at(epoch)

    def carriers(self, model: nn.Module) -> list[nn.Parameter]:
        return [model.get_parameter(name) for name in self.secret["layers"]]

    def mark(self, model: nn.Module) -> Tensor:
        """Return lambda sum_i max(0, mu - omega_i psi_i); the selection is that of the present weights (Eq. 2)."""
        return self.strength * hinge(residuals_of(self.carriers(model), self.secret), self.signs, self.secret["margin"])


class Joint(_Embedding):
    """One backward pass of L + E, one optimiser step (Eq. 1)."""

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return L and E."""
        return {**super().loss(model, batch), "mark": self.mark(model)}


class Separate(_Embedding):
    """The optimiser's step on L, then a plain gradient step on E (Algorithm 1): no momentum or decay acts twice."""

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return L (line 5), and E as a figure: its gradient acts in the step of its own."""
        with torch.no_grad():
            term = self.mark(model)
        for weight in self.carriers(model):  # an exact zero: a step without data has nothing else to differentiate
            term = term + 0.0 * weight.sum()
        return {**super().loss(model, batch), "mark": term}

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Descend E on the carriers alone, with the selection that the optimiser's step left (lines 7 and 8)."""
        carriers = self.carriers(model)
        gradients = torch.autograd.grad(self.mark(model), carriers)
        with torch.no_grad():
            for weight, gradient in zip(carriers, gradients, strict=True):
                weight.sub_(gradient, alpha=self.lr)


class GreedyResiduals(Method):
    """See the module's text."""

    key = "greedy-residuals"
    title = "Greedy residuals"
    paper = "Liu, Weng, Zhu, ICML 2021, https://proceedings.mlr.press/v139/liu21x.html"
    access = "weights"
    family = "bits"
    version = 2
    gate = 1.0
    Config = Config
    laptop: ClassVar[dict[str, Any]] = {"bits": None, "row_len": None, "strength": "auto", "embed_lr": 0.1}

    def supports(self, task: Task) -> str | None:
        """Return why the task's architecture cannot carry the bits, or None."""
        by_formula = self.config.strength == "auto" or self.config.rival_budget is not None
        if by_formula and not self._separate(task) and task.schedule.optimizer != "sgd":
            setting = "strength 'auto'" if self.config.strength == "auto" else "rival_budget"
            return f"{setting} holds for plain steps; take step 'separate' with {task.schedule.optimizer}"
        try:
            _carriers(task, self.config)
        except UnsupportedModel as why:
            return str(why)
        return None

    def _separate(self, task: Task) -> bool:
        step = self.config.step
        return bool(step == "separate" or (step == "auto" and task.schedule.optimizer != "sgd"))

    def carrier_layers(self, task: Task) -> tuple[str, ...]:
        """Return the layers whose weights carry the bits by position."""
        return tuple(name.rpartition(".")[0] for name in _carriers(task, self.config).names)

    def draw(self, task: Task, data: Party, lab: Lab) -> Secret:
        """Sign with a fresh key; the bits follow from the signature (Eq. 3)."""
        own = _carriers(task, self.config)
        return {
            **signed_key(lab.stream("secret"), self.config.scheme),
            "layers": list(own.names),
            "shapes": [list(shape) for shape in own.shapes],
            "bits": own.bits,
            "row_len": own.row_len,
            "eta": self.config.eta,
            "margin": self.config.margin,
            "truncate": self.config.truncate,
            "candidates": own.candidates,
        }

    def continued(self, own: Schedule) -> Schedule | None:
        """Return, with start `clean`, further epochs at the last learning rate."""
        return own.steady(epochs=self.config.epochs_after, lr=own.last_lr) if self.config.start == "clean" else None

    def implant(self, model: nn.Module, secret: Secret, task: Task, data: Party, lab: Lab, schedule: Schedule) -> Mark:
        """Train the bits in under `schedule`; remark where the strength is too small for its steps."""
        task = task.but(schedule=schedule)
        strength, planned = self._strength(task, data), self._planned_steps(task, data)
        needed = self._needed_steps(task, strength) if strength else 0.0
        lab.curve("strength", 0, strength=strength, needed_steps=needed, planned_steps=planned)
        mark = super().implant(model, secret, task, data, lab, schedule)
        if needed > planned:
            mark.notes.append(
                f"strength {strength:g} reaches the margin in about {needed:.0f} steps, not {planned:.0f}"
            )
        return mark

    def recipe(self, task: Task, data: Party, secret: Secret, lab: Lab) -> Recipe:
        """Add the hinge; the task's schedule is the one that `implant` trains under."""
        strength = self._strength(task, data)
        if not strength:
            return Recipe()
        kind = Separate if self._separate(task) else Joint
        return kind(secret, strength, task.schedule, self.config.embed_lr, lab)

    def _needed_steps(self, task: Task, strength: float) -> float:
        """Return S*, about how many steps at the first rate take the residuals to the margin.

        A selected weight moves rate * lambda * b / m per step, and a residual eta times that.
        """
        own, schedule = _carriers(task, self.config), task.schedule
        joint_rate = schedule.lr / (1 - schedule.momentum)  # lr_eff
        rate = (self.config.embed_lr or schedule.lr) if self._separate(task) else joint_rate
        # Each of several carriers moves by its share of the mean's gradient.
        weights = len(own.sizes) ** 2 / sum(1 / size for size in own.sizes)
        share = selected_count(own.row_len, self.config.eta) / own.row_len
        return float(self.config.margin * weights / (share * max(rate, 1e-30) * strength * own.bits))

    def _planned_steps(self, task: Task, data: Party) -> float:
        """Return the number of steps at the first rate to which those of the schedule amount."""
        schedule = task.schedule
        epochs = float(schedule.epochs)
        if not (self._separate(task) and self.config.embed_lr):
            epochs = sum(schedule.lr_at(epoch) for epoch in range(schedule.epochs)) / max(schedule.lr, 1e-30)
        return epochs * -(-len(data.train) // schedule.batch_size)

    def _strength(self, task: Task, data: Party) -> float:
        """Return lambda; `auto` reaches the margin `budget` times over, and is never below the paper's."""
        if self.config.strength != "auto":
            return float(self.config.strength)
        planned = max(self._planned_steps(task, data), 1.0)
        return max(0.01, self.config.budget * self._needed_steps(task, 1.0) / planned)

    def read(self, suspect: Suspect, secret: Secret) -> Verdict:
        """Check the signature, then compare signs; a residual of exactly 0 is a miss. T3."""
        total = secret["bits"]
        threshold = least_hits(total, 0.5, STRICT_ALPHA) / total
        if not is_signed(secret):
            return Verdict(0.0, 0.5, threshold, 1.0, False, "T3", reason="signature")
        aligned = _aligned(suspect, secret)
        hits = int((aligned > 0).sum())
        p_value, score = binomial_tail(hits, total, 0.5), hits / total
        metrics = {
            "beyond_margin": float((aligned >= secret["margin"]).double().mean()),
            # Proposition 1: what the match is worth if layer and row length were chosen after seeing the suspect.
            "p_any_layer": min(1.0, p_value * secret["candidates"] * secret["row_len"]),
            "p_search_2to40": min(1.0, p_value * _GRINDING),
        }
        p_value = min(1.0, p_value * self.config.search_budget)
        return Verdict(score, 0.5, threshold, p_value, score >= threshold, "T3", hits, total, metrics=metrics)

    def overwrite(self, victim: nn.Module, task: Task, data: Party, lab: Lab, schedule: Schedule) -> Mark:
        """Press another signature into the same layer; `auto` takes the strength that the attacker's steps ask for."""
        budget = self.config.rival_budget
        rival = self if budget is None else type(self)(self.config.but(strength="auto", budget=budget))
        return Method.overwrite(rival, victim, task, data, lab, schedule)

    def contradict(self, secret: Secret, task: Task, lab: Lab) -> Secret:
        """Deny a leaked key: the complement of its bits, which no known signature spells."""
        return {**secret, "denied": True}


def _aligned(suspect: Suspect, secret: Secret) -> Tensor:
    """Return omega_i psi_i (b,), float64, of a suspect."""
    weights = suspect.weights()
    tensors = []
    for name, shape in zip(secret["layers"], secret["shapes"], strict=True):
        weight = carrier(weights, name)
        if list(weight.shape) != list(shape):
            raise UnsupportedModel(f"{name}: expected the shape {list(shape)}, found {list(weight.shape)}")
        tensors.append(weight.double().cpu())
    return signs_of(secret).double() * residuals_of(tensors, secret)
