"""Passports: batch norm's scale and bias follow from secret tensors, and the signs of the scale spell a signature.

Paper: Fan, Ng, Chan, "Rethinking Deep Neural Network Ownership Verification: Embedding Passports to Defeat Ambiguity
    Attacks", NeurIPS 2019, https://arxiv.org/abs/1909.07830
Access: weights (scheme V3 adds trigger images). Protected is the network; it needs convolutions with batch norm.
Differs from the paper: the passport pass borrows the plain network's own layers (their scale and bias are replaced
    during the pass), so every scheme releases an ordinary architecture, V1 with its scale and bias written into batch
    norm; batch norm is the only normalisation (the benchmark's networks have no other); a text runs through all
    passport layers instead of restarting in each; images for passports are the owner's held-out ones, not test images;
    V3's triggers are drawn pictures with random labels; the decision threshold is ours, the paper states none.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from assay.methods.base import Secret
from assay.methods.families.passports import PassportConfig, PassportRival, Passports
from assay.methods.null import Null, read_null
from assay.methods.parts.mixing import KeyBatches
from assay.methods.parts.passport import (
    fidelity_gap,
    layers_of,
    matched_signs,
    materialise,
    private_affine,
    sign_loss,
    signature,
    text_bits,
)
from assay.methods.parts.passport_sites import KeyType, Material, choose_sites, find_sites
from assay.methods.parts.signature import committed, opens
from assay.methods.parts.statistics import binomial_tail
from assay.methods.parts.triggers import abstract_images
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Labelled, Party, to_model_input
from assay.tasks.errors import NotEmbedded, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms

RESERVED = 100  # held-out images that passports may be made of; the fidelity check uses others


class Config(PassportConfig):
    """Settings of passports; the defaults are the authors' code, scheme V2 as in the greedy-residuals comparison."""

    scheme: Literal["V1", "V2", "V3"] = "V2"  # V1: passport shipped; V2: private branch; V3: V2 with triggers
    layers: Literal["auto"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "auto"  # names
    key_type: KeyType = "shuffle"
    images: int = Field(20, ge=1, le=RESERVED)  # that a shuffled passport is pieced together from
    text: str = ""  # start of the signature; the other bits are random
    threshold: float = Field(0.85, gt=0.5, le=1)
    fidelity_tolerance: float = Field(0.03, ge=0, le=1)  # private accuracy may lie this far below public accuracy
    fidelity_samples: int = Field(200, ge=0)  # held-out samples that the owner keeps for this check
    keys: int = Field(100, ge=1)  # V3 only
    keys_per_batch: int = Field(2, ge=1)  # V3 only


class PassportRecipe(Recipe):
    """Cross-entropy through the passports and, but for V1, through the public layers, with the signs' hinge."""

    def __init__(self, method: DeepIPR, secret: Secret, lab: Lab) -> None:
        super().__init__()
        self.method, self.config, self.lab = method, method.config, lab
        self.layers = [layer.to(lab.device) for layer in layers_of(secret)]
        self.keys = None
        if "keys" in secret:
            self.keys = KeyBatches(secret["keys"], secret["key_labels"], self.config.keys_per_batch, lab)
        self.public = not method.ships_passports

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Leave V1's batch-norm scale and bias to the passports."""
        derived = {f"{layer.norm}.{part}" for layer in self.layers for part in ("weight", "bias")}
        return [weight for name, weight in model.named_parameters() if self.public or name not in derived]

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Reshuffle V3's keys."""
        if self.keys:
            self.keys.shuffle(epoch)

    def mix(self, batch: Batch, step: int) -> Batch:
        """Append V3's keys; both passes see them."""
        return self.keys.append(batch, step) if self.keys else batch

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the cross-entropies and the sign loss; both passes move batch norm's running statistics."""
        terms: Terms = {}
        if self.public:
            terms["task"] = F.cross_entropy(model(batch.inputs), batch.labels)
        affine = private_affine(model, self.layers)
        terms["private"] = F.cross_entropy(functional_call(model, affine, (batch.inputs,)), batch.labels)
        config, scales = self.config, [affine[f"{layer.norm}.weight"] for layer in self.layers]
        signs = [
            sign_loss(scale, layer.bits, config.alpha, config.margin, config.decay)
            for scale, layer in zip(scales, self.layers, strict=True)
        ]
        return {**terms, "sign": torch.stack(signs).sum()}

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Keep V1's released scale and bias equal to what the passports give."""
        if not self.public:
            materialise(model, self.layers)

    def finish(self, model: nn.Module) -> nn.Module:
        """Refuse an owner's network that loses more than the tolerated accuracy through the passports."""
        if self.lab.role != "owner" or self.config.allow_weak:
            return model
        loss = -fidelity_gap(model, self.layers, self.lab.data.held_out)
        if loss > self.config.fidelity_tolerance:
            raise NotEmbedded(f"deepipr: the private branch loses {loss:.3f} accuracy; train longer or set allow_weak")
        return model


@lru_cache(maxsize=64)  # calibration and searches draw many keys for one task
def _shapes(task: Task, layers: Literal["auto"] | tuple[str, ...]) -> Material:
    """Return what random passports are drawn from: shapes alone, so that no trained network is needed."""
    network = task.build("deepipr", "shapes")
    return Material.of(network, choose_sites(find_sites(network, task.shape), layers), None)


class DeepIPR(Passports[Config]):
    """See the module's text."""

    key = "deepipr"
    title = "Passport layers (DeepIPR)"
    paper = "Fan et al., NeurIPS 2019, https://arxiv.org/abs/1909.07830"
    access = "weights"
    family = "bits"
    gate = 0.98
    rival = PassportRival
    Config = Config
    # Few steps: a firmer hinge still turns every sign, at the same accuracy; more keys per batch replace epochs.
    laptop: ClassVar[dict[str, Any]] = {"key_type": "random", "alpha": 0.5, "keys": 50, "keys_per_batch": 16}

    @property
    def ships_passports(self) -> bool:
        """Whether the released network holds the passports' scale: scheme V1."""
        return self.config.scheme == "V1"

    def supports(self, task: Task) -> str | None:
        """Return why the task's inputs or network cannot carry passports, or None."""
        if task.info.kind != "image":
            return f"passports are made for images; {task.dataset} holds {task.info.kind}"
        try:
            room = sum(_shapes(task, self.config.layers).channels)
        except UnsupportedModel as why:
            return str(why)
        needed = len(text_bits(self.config.text))
        return None if needed <= room else f"the text needs {needed} channels, the passport layers have {room}"

    # --- the secret ------------------------------------------------------------------------------------------------

    def draw(self, lab: Lab) -> Secret:
        """Draw passports, bits and V3's keys; images go through the clean model.

        Raises:
            CapacityError: the text has more bits than the passport layers have channels.
        """
        return self.draw_from(self.material(lab), lab)

    def null(self, lab: Lab, secret: Secret | None) -> Null:
        """Read fresh keys from unmarked models; all keys share one pass of the images."""
        material = self.material(lab)
        keys = [self.draw_from(material, lab.for_key(index)) for index in range(lab.calibration.keys)]
        return read_null(self, keys, {role: lab.unmarked(role) for role in lab.calibration.roles}, lab.meter)

    def material(self, lab: Lab, network: nn.Module | None = None) -> Material:
        """Return shapes for random passports; for others also what reaches the layers of the network."""
        random, layers = self.config.key_type == "random", self.config.layers
        if network is None and random:
            return _shapes(lab.task, layers)
        network = lab.unmarked("clean") if network is None else network
        images = None
        if not random:
            if not _reserved(lab.data):
                raise UnsupportedModel(f"{self.key}: passports are made of held-out images, and none are left")
            images = to_model_input(lab.data.held_out.inputs[: _reserved(lab.data)])
            images = images.to(next(network.parameters()).device)
        return Material.of(network, choose_sites(find_sites(network, lab.task.shape), layers), images)

    def draw_from(self, material: Material, lab: Lab) -> Secret:
        """Draw bits and passports, V3's keys after them, and commit to all."""
        draws, config = lab.stream("secret"), self.config
        bits = signature(config.text, sum(material.channels), draws)
        layers = material.layers(bits, config.images, config.key_type, draws)
        begin = _reserved(lab.data)
        check = lab.data.held_out.take(slice(begin, begin + config.fidelity_samples))
        secret: Secret = {
            "scheme": config.scheme,
            "layers": [layer.tree() for layer in layers],
            "text_bits": len(text_bits(config.text)),
            "fidelity_inputs": check.inputs.cpu(),
            "fidelity_labels": check.labels.cpu(),
            "classes": lab.task.classes,
        }
        if config.scheme == "V3":
            secret["keys"] = abstract_images(config.keys, lab.task.shape, draws)
            secret["key_labels"] = torch.randint(0, lab.task.classes, (config.keys,), generator=draws)
        return committed(secret, lab.stream("secret", "salt"))

    # --- embedding and reading -------------------------------------------------------------------------------------

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Train through the passports."""
        return PassportRecipe(self, secret, lab)

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int, int]:
        """Return (share of right signs, how many, of how many)."""
        matched = self._matched(suspect, secret)
        return float(matched.float().mean()), int(matched.sum()), len(matched)

    def _matched(self, suspect: Suspect, secret: Secret) -> Tensor:
        return matched_signs(suspect.weights(), layers_of(secret), shipped=secret["scheme"] == "V1")

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Compare the scale's signs: T3 on the random bits; V3 also T1 on its keys. The private branch must work."""
        matched = self._matched(suspect, secret)
        free = matched[secret["text_bits"] :]
        p_value = binomial_tail(int(free.sum()), len(free), 0.5)
        score, threshold = float(matched.float().mean()), self.config.threshold
        metrics = self._use(suspect, secret)
        accepted = score >= threshold and metrics["fidelity_gap"] >= -self.config.fidelity_tolerance
        hits, metrics["commitment_opens"] = int(matched.sum()), float(opens(secret))
        return Reading(score, 0.5, threshold, p_value, accepted, "T3", hits, len(matched), metrics=metrics)

    def _use(self, suspect: Suspect, secret: Secret) -> dict[str, float]:
        """Return what the suspect does with the owner's images: private less public accuracy, and V3's keys."""
        check = Labelled(secret["fidelity_inputs"], secret["fidelity_labels"])
        # V1's passport network is the released one, whose scale may have been tuned: there is no second branch.
        gap = 0.0 if secret["scheme"] == "V1" else fidelity_gap(suspect.module(), layers_of(secret), check)
        if "keys" not in secret:
            return {"fidelity_gap": gap}
        answers, keys = suspect.labels(secret["keys"]).cpu(), len(secret["keys"])
        hits = int((answers == secret["key_labels"].cpu()).sum())
        p_keys = binomial_tail(hits, keys, 1 / secret["classes"])
        return {"fidelity_gap": gap, "key_score": hits / keys, "p_keys": p_keys}


def _reserved(data: Party) -> int:
    return min(RESERVED, len(data.held_out) // 2)
