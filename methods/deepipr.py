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
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from assay.methods.verdict import Verdict
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from assay.methods.base import Mark, Method, MethodConfig, Secret, lab_for_key
from assay.methods.parts.forging import Forgery
from assay.methods.parts.mixing import KeyBatches
from assay.methods.parts.passport import (
    PassportLayer,
    fidelity_gap,
    matched_signs,
    materialise,
    private_affine,
    sign_loss,
    signature,
    text_bits,
)
from assay.methods.parts.passport_forging import (
    ForgingRecipe,
    FreeAffine,
    NearPassports,
    claiming,
    flipped,
    signs_of,
)
from assay.methods.parts.passport_sites import KeyType, Material, Site, choose_sites, find_sites
from assay.methods.parts.signature import committed, opens
from assay.methods.parts.statistics import binomial_tail
from assay.methods.parts.triggers import abstract_images
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Labelled, Party, to_model_input
from assay.tasks.errors import AssayError, NotEmbedded, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Batch, Recipe, Terms

RESERVED = 100  # held-out images that passports may be made of; the fidelity check uses others


class Config(MethodConfig):
    """Settings of passports; the defaults are the authors' code, scheme V2 as in the greedy-residuals comparison."""

    scheme: Literal["V1", "V2", "V3"] = "V2"  # V1: passport shipped; V2: private branch; V3: V2 with triggers
    layers: Literal["auto"] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "auto"  # names
    key_type: KeyType = "shuffle"
    images: int = Field(20, ge=1, le=RESERVED)  # that a shuffled passport is pieced together from
    text: str = ""  # start of the signature; the other bits are random
    alpha: float = Field(0.1, ge=0)  # weight of the hinge on the signs
    margin: float = Field(0.1, ge=0)
    decay: float = Field(1e-5, ge=0)  # of the scale
    threshold: float = Field(0.85, gt=0.5, le=1)
    fidelity_tolerance: float = Field(0.03, ge=0, le=1)  # private accuracy may lie this far below public accuracy
    fidelity_samples: int = Field(200, ge=0)  # held-out samples that the owner keeps for this check
    keys: int = Field(100, ge=1)  # V3 only
    keys_per_batch: int = Field(2, ge=1)  # V3 only


class PassportRecipe(Recipe):
    """Cross-entropy through the passports and, but for V1, through the public layers, with the signs' hinge."""

    def __init__(self, config: Config, layers: list[PassportLayer], keys: KeyBatches | None) -> None:
        self.config, self.layers, self.keys = config, layers, keys
        self.public = config.scheme != "V1"

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
        signs = [_sign_loss(self.config, affine[f"{layer.norm}.weight"], layer.bits) for layer in self.layers]
        return {**terms, "sign": torch.stack(signs).sum()}

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        """Keep V1's released scale and bias equal to what the passports give."""
        if not self.public:
            materialise(model, self.layers)


def _sign_loss(config: Config, scale: Tensor, bits: Tensor) -> Tensor:
    return sign_loss(scale, bits, config.alpha, config.margin, config.decay)


class DeepIPR(Method):
    """See the module's text."""

    key = "deepipr"
    title = "Passport layers (DeepIPR)"
    paper = "Fan et al., NeurIPS 2019, https://arxiv.org/abs/1909.07830"
    access = "weights"
    family = "bits"
    gate = 0.98
    Config = Config
    # Few steps: a firmer hinge still turns every sign, at the same accuracy; more keys per batch replace epochs.
    laptop = {"key_type": "random", "alpha": 0.5, "keys": 50, "keys_per_batch": 16}  # noqa: RUF012
    forgeries = ("random", "reverse", "near")

    def supports(self, task: Task) -> str | None:
        """Images, and enough channels of convolutions with batch norm."""
        if task.info.kind != "image":
            return f"passports are made for images; {task.dataset} holds {task.info.kind}"
        try:
            sites = self._sites(task.build("deepipr", "supports"), task)
        except UnsupportedModel as why:
            return str(why)
        room, needed = sum(site.outputs[0] for site in sites), len(text_bits(self.config.text))
        return None if needed <= room else f"the text needs {needed} channels, the passport layers have {room}"

    def _sites(self, model: nn.Module, task: Task) -> list[Site]:
        return choose_sites(find_sites(model, task.shape), self.config.layers)

    # --- the secret ------------------------------------------------------------------------------------------------

    def draw(self, task: Task, data: Party, lab: Lab) -> Secret:
        """Draw passports, bits and V3's keys; images go through the clean model.

        Raises:
            CapacityError: the text has more bits than the passport layers have channels.
        """
        return self._draw(task, data, lab, self._owners_material(task, data, lab))

    def null_keys(self, task: Task, data: Party, secret: Secret, lab: Lab) -> list[Secret]:
        """Return fresh secrets; they share one pass of the images."""
        material = self._owners_material(task, data, lab)
        return [self._draw(task, data, lab_for_key(lab, index), material) for index in range(task.calibration_keys)]

    def overwrite(self, victim: nn.Module, task: Task, data: Party, lab: Lab, schedule: Schedule) -> Mark:
        """Embed new passports; the victim itself is the trained network that images go through."""
        secret = self._draw(task, data, lab, self._material(victim, task, data))
        return self.implant(victim, secret, task, data, lab, schedule)

    def forge(self, victim: Suspect, task: Task, data: Party, lab: Lab, draws: int) -> Secret:
        """Solve for passports that reproduce the victim's public scale and bias, and claim the signs they give.

        A closed form, whatever `draws`: private and public accuracy agree, so only the date of the commitment speaks
        against the claim. V3's keys get the victim's own answers as labels.
        """
        drawn = self.draw_unaided(victim, task, data, lab)
        weights, forged = victim.weights(), []
        for layer in _layers(drawn):
            public = (weights[f"{layer.norm}.{part}"] for part in ("weight", "bias"))
            forged.append(layer.forged(weights[f"{layer.conv}.weight"], *public))
        return _claim(drawn, forged, victim, lab)

    def forge_as(self, forgery: Forgery, victim: Suspect, task: Task, data: Party, lab: Lab) -> Secret:
        """Forge by the authors' own attacks; the curve's `fidelity_gap` is private less public accuracy of each try.

        `random`: passports of other images, and the signs that they happen to give; the try that keeps most accuracy.
        `reverse`: public scale and bias made anew under signs of which a share is turned, trained, and solved for
        passports. `near`: the owner's leaked passports, trained to be others and to give signs of which a share is
        turned (`distance`: root of their mean squared distance).
        """
        if forgery.procedure == "random":
            return self._forge_random(forgery.draws, victim, task, data, lab)
        drawn = self.draw_unaided(victim, task, data, lab)
        draws, weights = lab.stream("select", "flips"), victim.weights()
        claim: FreeAffine | NearPassports
        if forgery.procedure == "reverse":
            layers = _layers(drawn)
            signs = flipped(signs_of([weights[f"{layer.norm}.weight"] for layer in layers]), forgery.flips, draws)
            claim = FreeAffine(victim.module(), claiming(layers, signs), lab.stream("init"))
        else:
            if forgery.leaked is None:
                raise AssayError("deepipr: near-by passports start from the owner's, and none were handed over")
            layers = _layers(forgery.leaked)
            signs = flipped(torch.cat([layer.bits.cpu() for layer in layers]), forgery.flips, draws)
            claim = NearPassports(victim.module(), claiming(layers, signs), lab.stream("noise"))
        recipe = ForgingRecipe(partial(_sign_loss, self.config))
        lab.fit(claim, data.train, recipe, forgery.schedule, name=forgery.procedure)
        forged, further = _claim(drawn, claim.forged(), victim, lab), {}
        if isinstance(claim, NearPassports):
            further["distance"] = float(claim.distances().detach().mean().sqrt())
        self._try(0, victim, forged, lab, **further)
        return forged

    def _forge_random(self, tries: int, victim: Suspect, task: Task, data: Party, lab: Lab) -> Secret:
        material, weights = self._material(victim.module(), task, data), victim.weights()
        best: tuple[float, Secret] | None = None
        for index in range(tries):
            own = lab_for_key(lab, index)
            drawn = self._draw(task, data, own, material)
            layers, shipped = _layers(drawn), self.config.scheme == "V1"
            read = [
                weights[f"{layer.norm}.weight"] if shipped else layer.affine(weights[f"{layer.conv}.weight"])[0]
                for layer in layers
            ]
            forged = _claim(drawn, claiming(layers, signs_of(read)), victim, own)
            gap = self._try(index, victim, forged, lab)
            if best is None or gap > best[0]:
                best = (gap, forged)
        assert best is not None
        return best[1]

    def _try(self, index: int, victim: Suspect, forged: Secret, lab: Lab, **further: float) -> float:
        """Record a forger's try; return its private less its public accuracy on the forger's own images."""
        check = Labelled(forged["fidelity_inputs"], forged["fidelity_labels"])
        gap = fidelity_gap(victim.module(), _layers(forged), check)
        lab.curve("forge", index, score=self.score(victim, forged)[0], fidelity_gap=gap, **further)
        return gap

    def draw_unaided(self, victim: Suspect, task: Task, data: Party, lab: Lab) -> Secret:
        """Draw a secret; images go through the victim."""
        return self._draw(task, data, lab, self._material(victim.module(), task, data))

    def _owners_material(self, task: Task, data: Party, lab: Lab) -> Material:
        # Random passports need shapes only, so no trained network is asked for.
        random = self.config.key_type == "random"
        return self._material(task.build("deepipr", "shapes") if random else lab.unmarked("clean"), task, data)

    def _material(self, model: nn.Module, task: Task, data: Party) -> Material:
        images = None
        if self.config.key_type != "random":
            images = to_model_input(data.held_out.inputs[: _reserved(data)]).to(next(model.parameters()).device)
        return Material.of(model, self._sites(model, task), images)

    def _draw(self, task: Task, data: Party, lab: Lab, material: Material) -> Secret:
        draws, config = lab.stream("secret"), self.config
        bits = signature(config.text, sum(material.channels), draws)
        layers = material.layers(bits, config.images, config.key_type, draws)
        check = data.held_out.take(slice(_reserved(data), _reserved(data) + config.fidelity_samples))
        secret: Secret = {
            "scheme": config.scheme,
            "layers": [layer.tree() for layer in layers],
            "text_bits": len(text_bits(config.text)),
            "fidelity_inputs": check.inputs.cpu(),
            "fidelity_labels": check.labels.cpu(),
            "classes": task.classes,
        }
        if config.scheme == "V3":
            secret["keys"] = abstract_images(config.keys, task.shape, draws)
            secret["key_labels"] = torch.randint(0, task.classes, (config.keys,), generator=draws)
        return committed(secret, lab.stream("secret", "salt"))

    # --- embedding and reading -------------------------------------------------------------------------------------

    def recipe(self, task: Task, data: Party, secret: Secret, lab: Lab) -> Recipe:
        """Train through the passports."""
        keys = None
        if "keys" in secret:
            keys = KeyBatches(secret["keys"], secret["key_labels"], self.config.keys_per_batch, lab)
        return PassportRecipe(self.config, [layer.to(lab.device) for layer in _layers(secret)], keys)

    def finish(self, model: nn.Module, recipe: Recipe, secret: Secret, data: Party, lab: Lab) -> nn.Module:
        """Refuse an owner's network whose private branch is less accurate than its public one beyond the tolerance."""
        loss = -fidelity_gap(model, _layers(secret), data.held_out)
        if data.mode == "owner" and loss > self.config.fidelity_tolerance and not self.config.allow_weak:
            raise NotEmbedded(f"deepipr: the private branch loses {loss:.3f} accuracy; train longer or set allow_weak")
        return model

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int, int]:
        """Return (share of right signs, how many, of how many)."""
        matched = self._matched(suspect, secret)
        return float(matched.float().mean()), int(matched.sum()), len(matched)

    def _matched(self, suspect: Suspect, secret: Secret) -> Tensor:
        return matched_signs(suspect.weights(), _layers(secret), shipped=secret["scheme"] == "V1")

    def read(self, suspect: Suspect, secret: Secret) -> Verdict:
        """Compare the scale's signs: T3 on the random bits; V3 also T1 on its keys. The private branch must work."""
        matched = self._matched(suspect, secret)
        free = matched[secret["text_bits"] :]
        p_value = binomial_tail(int(free.sum()), len(free), 0.5)
        score, threshold = float(matched.float().mean()), self.config.threshold
        try:
            metrics = self._use(suspect, secret)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as why:  # torch's complaint about shapes
            raise UnsupportedModel(f"the suspect does not take the owner's images: {why}") from why
        detected = score >= threshold and metrics["fidelity_gap"] >= -self.config.fidelity_tolerance
        hits, metrics["commitment_opens"] = int(matched.sum()), float(opens(secret))
        return Verdict(score, 0.5, threshold, p_value, detected, "T3", hits, len(matched), metrics=metrics)

    def _use(self, suspect: Suspect, secret: Secret) -> dict[str, float]:
        """Return what the suspect does with the owner's images: private less public accuracy, and V3's keys."""
        check = Labelled(secret["fidelity_inputs"], secret["fidelity_labels"])
        # V1's passport network is the released one, whose scale may have been tuned: there is no second branch.
        gap = 0.0 if secret["scheme"] == "V1" else fidelity_gap(suspect.module(), _layers(secret), check)
        if "keys" not in secret:
            return {"fidelity_gap": gap}
        answers, keys = suspect.labels(secret["keys"]).cpu(), len(secret["keys"])
        hits = int((answers == secret["key_labels"].cpu()).sum())
        p_keys = binomial_tail(hits, keys, 1 / secret["classes"])
        return {"fidelity_gap": gap, "key_score": hits / keys, "p_keys": p_keys}


def _layers(secret: Secret) -> list[PassportLayer]:
    return [PassportLayer(**layer) for layer in secret["layers"]]


def _claim(drawn: Secret, layers: Iterable[PassportLayer], victim: Suspect, lab: Lab) -> Secret:
    """Return a drawn secret with other passport layers, V3's keys under the victim's answers, committed anew."""
    content = {name: part for name, part in drawn.items() if name not in ("salt", "commitment")}
    content["layers"] = [layer.tree() for layer in layers]
    if "keys" in content:
        content["key_labels"] = victim.labels(content["keys"]).cpu()
    return committed(content, lab.stream("secret", "salt"))


def _reserved(data: Party) -> int:
    return min(RESERVED, len(data.held_out) // 2)
