"""Greedy residuals: the signs of averages over one layer's largest weights spell bits of the owner's signature.

Paper: Liu, Weng, Zhu, "Watermarking Deep Neural Networks with Greedy Residuals", ICML 2021,
    https://proceedings.mlr.press/v139/liu21x.html
Access: weights. Protected is the carrier layer of the released network, whatever its task; verifying takes no data.
Differs from the paper: the signature is Ed25519 instead of RSA with 256 bits, which is factored in minutes, and its
    bits are SHAKE-256 of it. The embedding step is joint with SGD, as in the published code, and Algorithm 1's separate
    step with adaptive optimisers, whose steps do not scale with a gradient. The paper does not name the carrier; here
    it is the first layer with four weights per bit or more. The paper names no threshold, so p <= 1e-3 decides. The
    laptop profile computes the strength from the number of steps, because 0.01 needs thousands of them, and takes rows
    no longer than the carrier fills.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from assay.methods.base import Method, MethodConfig, MethodNeeds, Secret
from assay.methods.embedding import Mark, implant
from assay.methods.parts.carrier import carrier
from assay.methods.parts.residual_steps import Joint, Separate, signs_of
from assay.methods.parts.residuals import Carriers, choose, residuals_of, selected_count
from assay.methods.parts.signature import after_search, is_signed, signed_key
from assay.methods.parts.statistics import LEVEL, binomial_tail, least_hits
from assay.methods.reading import Reading
from assay.methods.rival import Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.schedule import Schedule


class Config(MethodConfig):
    """Settings of greedy residuals."""

    bits: int | None = Field(256, ge=1)  # b; None: 256 in a carrier of 1,024 weights or more, else 64
    row_len: int | None = Field(253, ge=1)  # b'; None: as long as the carrier fills, at most 253
    eta: float = Field(0.5, gt=0, le=1)  # share of a row that is chosen; 1 in the ablation
    margin: float = Field(0.1, gt=0)  # mu
    strength: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.01  # lambda; auto: enough for the steps there are
    budget: float = Field(4.0, gt=0)  # of `auto`: planned steps in units of those that the formula asks for
    # A layer, several, or `auto`: the first with 4 weights per bit, else the largest.
    layer: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "auto"
    truncate: bool = False  # cut the weights to a multiple of b' first, as the published code does
    step: Literal["auto", "joint", "separate"] = "auto"  # auto: joint with SGD, separate with adaptive optimisers
    embed_lr: float | None = Field(None, gt=0)  # rate of the separate step; None: the schedule's current one
    start: Literal["scratch", "clean"] = "scratch"  # clean: mark a trained model by a few further epochs
    epochs_after: int = Field(10, ge=0)  # of start="clean", at the schedule's last rate
    search_budget: int = Field(1, ge=1)  # signatures that the claimant tried; multiplies the p-value


@lru_cache(maxsize=64)  # calibration draws many keys for one task
def _carriers(task: Task, config: Config) -> Carriers:
    layers = (config.layer,) if isinstance(config.layer, str) else config.layer
    return choose(task.build("carrier"), layers, config.bits, config.row_len, truncate=config.truncate)


class GreedyResidualsRivalConfig(RivalConfig):
    """Settings of an attacker who overwrites."""

    budget: float | None = Field(None, gt=0)  # strength `auto` with this budget; None: the owner's settings


class GreedyResidualsRival(Rival[GreedyResidualsRivalConfig]):
    """An attacker who presses another signature into the same layer."""

    Config = GreedyResidualsRivalConfig

    def overwrite(self, victim: nn.Module, lab: Lab, schedule: Schedule) -> Mark:
        """Embed a fresh signature; with a budget, at the strength that the attacker's own steps ask for.

        Raises:
            UnsupportedModel: no strength can be computed for joint steps with this task's optimiser.
        """
        method = self.method
        if self.config.budget is not None:
            method = type(method)(method.config.but(strength="auto", budget=self.config.budget))
            if reason := method.supports(lab.task):
                raise UnsupportedModel(f"{method.key}: {reason}")
        return implant(method, victim, method.draw(lab), lab, schedule)

    def deny(self, secret: Secret, lab: Lab) -> Secret:
        """Return the secret marked as denied: the complement of its bits, which no known signature spells."""
        return {**secret, "denied": True}


class GreedyResiduals(Method[Config]):
    """See the module's text."""

    key = "greedy-residuals"
    title = "Greedy residuals"
    paper = "Liu, Weng, Zhu, ICML 2021, https://proceedings.mlr.press/v139/liu21x.html"
    access = "weights"
    family = "bits"
    version = 2
    gate = 1.0
    rival = GreedyResidualsRival
    Config = Config
    laptop: ClassVar[dict[str, Any]] = {"bits": None, "row_len": None, "strength": "auto", "embed_lr": 0.1}

    def supports(self, task: Task) -> str | None:
        """Return why the task's architecture cannot carry the bits, or None."""
        schedule = task.schedule
        if self.config.strength == "auto" and not self._separate(schedule) and schedule.optimizer != "sgd":
            return f"strength 'auto' holds for plain steps; take step 'separate' with {schedule.optimizer}"
        try:
            _carriers(task, self.config)
        except UnsupportedModel as why:
            return str(why)
        return None

    def needs(self, task: Task) -> MethodNeeds:
        """Embedding starts from the clean model if the settings say so."""
        return MethodNeeds(start=self.config.start)

    def schedule(self, task: Task) -> Schedule:
        """Return the task's schedule or, with start `clean`, further epochs at its last learning rate."""
        own = task.schedule
        if self.config.start == "scratch":
            return own
        more: Schedule = own.steady(epochs=self.config.epochs_after, lr=own.last_lr)
        return more

    def carrier_layers(self, task: Task) -> tuple[str, ...]:
        """Return the layers whose weights carry the bits by position."""
        return tuple(name.rpartition(".")[0] for name in _carriers(task, self.config).names)

    def draw(self, lab: Lab) -> Secret:
        """Sign with a fresh key; the bits follow from the signature (Eq. 3)."""
        own = _carriers(lab.task, self.config)
        return {
            **signed_key(lab.stream("secret")),
            "layers": list(own.names),
            "shapes": [list(shape) for shape in own.shapes],
            "bits": own.bits,
            "row_len": own.row_len,
            "eta": self.config.eta,
            "margin": self.config.margin,
            "truncate": self.config.truncate,
            "candidates": own.candidates,
        }

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Add the hinge (Eq. 1 and 2); remark where the strength is too small for the steps of `lab.schedule`."""
        schedule, samples = lab.schedule, len(lab.data.train)
        strength, planned = self._strength(lab.task, schedule, samples), self._planned_steps(schedule, samples)
        needed = self._needed_steps(lab.task, schedule, strength) if strength else 0.0
        lab.curve("strength", 0, strength=strength, needed_steps=needed, planned_steps=planned)
        kind = Separate if self._separate(schedule) else Joint
        recipe = kind(secret, strength, self.config.embed_lr, lab) if strength else Recipe()
        if needed > planned:
            recipe.notes.append(
                f"strength {strength:g} reaches the margin in about {needed:.0f} steps, not {planned:.0f}"
            )
        return recipe

    def _separate(self, schedule: Schedule) -> bool:
        step = self.config.step
        return step == "separate" or (step == "auto" and schedule.optimizer != "sgd")

    def _strength(self, task: Task, schedule: Schedule, samples: int) -> float:
        """Return lambda; `auto` reaches the margin `budget` times over, and is never below the paper's."""
        if self.config.strength != "auto":
            return float(self.config.strength)
        planned = max(self._planned_steps(schedule, samples), 1.0)
        return max(0.01, self.config.budget * self._needed_steps(task, schedule, 1.0) / planned)

    def _needed_steps(self, task: Task, schedule: Schedule, strength: float) -> float:
        """Return S*, about how many steps at the first rate take the residuals to the margin.

        A selected weight moves rate * lambda * b / m per step, and a residual eta times that.
        """
        own = _carriers(task, self.config)
        joint_rate = schedule.lr / (1 - schedule.momentum)  # lr_eff
        rate = (self.config.embed_lr or schedule.lr) if self._separate(schedule) else joint_rate
        # Each of several carriers moves by its share of the mean's gradient.
        weights = len(own.sizes) ** 2 / sum(1 / size for size in own.sizes)
        share = selected_count(own.row_len, self.config.eta) / own.row_len
        return float(self.config.margin * weights / (share * max(rate, 1e-30) * strength * own.bits))

    def _planned_steps(self, schedule: Schedule, samples: int) -> float:
        """Return the number of steps at the first rate to which those of the schedule amount."""
        epochs = float(schedule.epochs)
        if not (self._separate(schedule) and self.config.embed_lr):
            epochs = sum(schedule.lr_at(epoch) for epoch in range(schedule.epochs)) / max(schedule.lr, 1e-30)
        return epochs * -(-samples // schedule.batch_size)

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Check the signature, then compare signs; a residual of exactly 0 is a miss. T3."""
        total = secret["bits"]
        threshold = least_hits(total, 0.5, LEVEL) / total
        if not is_signed(secret):
            return Reading(0.0, 0.5, threshold, 1.0, False, "T3", reason="signature")
        aligned = _aligned(suspect, secret)
        hits = int((aligned > 0).sum())
        p_value, score = binomial_tail(hits, total, 0.5), hits / total
        metrics = {
            "beyond_margin": float((aligned >= secret["margin"]).double().mean()),
            # Proposition 1: what the match is worth if layer and row length were chosen after seeing the suspect.
            "p_any_layer": min(1.0, p_value * secret["candidates"] * secret["row_len"]),
            "p_search_2to40": after_search(p_value),
        }
        p_value = after_search(p_value, self.config.search_budget)
        return Reading(score, 0.5, threshold, p_value, score >= threshold, "T3", hits, total, metrics=metrics)


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
