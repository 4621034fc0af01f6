"""Schemes whose secret is a set of passports, and how an adversary overwrites or forges them.

Source: Fan, Ng, Chan, NeurIPS 2019, https://arxiv.org/abs/1909.07830 (ambiguity attacks), and the scripts
`passport_attack_1` to `_3` of https://github.com/kamwoh/DeepIPR.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import nn

from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.parts.passport import PassportLayer, fidelity_gap, layers_of, sign_loss
from assay.methods.parts.passport_forging import ForgingRecipe, FreeAffine, NearPassports, claiming, flipped, signs_of
from assay.methods.parts.passport_sites import Material
from assay.methods.parts.signature import committed
from assay.methods.rival import Forgery, Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import AssayError
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.schedules import scaled_epochs, victim_epochs


class PassportConfig(MethodConfig):
    """What the loss on the signs depends on."""

    alpha: float = Field(0.1, ge=0)  # weight of the hinge on the signs
    margin: float = Field(0.1, ge=0)
    decay: float = Field(1e-5, ge=0)  # of the scale


C = TypeVar("C", bound=PassportConfig)


class Passports(Method[C]):
    """A scheme whose secret holds passport layers, and for which anybody's network can provide the material."""

    @abstractmethod
    def material(self, lab: Lab, network: nn.Module | None = None) -> Material:
        """Return what passports are drawn from.

        Args:
            lab: names the task, and the images.
            network: the trained network that images go through; None: the owner's unmarked one.
        """

    @abstractmethod
    def draw_from(self, material: Material, lab: Lab) -> Secret:
        """Draw a secret with passports of the given material."""

    @property
    @abstractmethod
    def ships_passports(self) -> bool:
        """Whether the released network holds the passports' scale, so that the scale itself is read."""


class PassportRivalConfig(RivalConfig):
    """Settings of the procedures `reverse` and `near`, which train."""

    flips: float = Field(0.0, ge=0, le=1)  # share of the signs that the claim turns (paper: 0 to 1)
    epochs: int | None = Field(None, ge=0)  # None: 100 of the owner's 200, as a share of the task's epochs
    lr: float = Field(0.01, ge=0)


class PassportRival(Rival[PassportRivalConfig]):
    """An adversary who has the victim's network, and images of the task for passports of its own.

    Procedures of forging, from the authors' scripts:
        random: passports of other images, and the signs that they happen to give; the try that keeps most accuracy.
        reverse: scale and bias trained anew, with a share of the public signs turned, then solved for passports.
        near: the owner's leaked passports, trained to be others and to give signs of which a share is turned.
    The curve's `fidelity_gap` is the private less the public accuracy of each try; `distance`, of `near`, is the root
    of the mean squared distance from the owner's passports.
    """

    method: Passports[PassportConfig]
    procedures: ClassVar = ("random", "reverse", "near")
    leaking: ClassVar = ("near",)
    Config = PassportRivalConfig

    def draw(self, victim: nn.Module, lab: Lab) -> Secret:
        """Draw a secret; images go through the victim."""
        return self.method.draw_from(self.method.material(lab, victim), lab)

    def claim(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Solve for passports that reproduce the victim's public scale and bias, and claim the signs they give.

        This is a closed form, whatever the number of draws. Private and public accuracy agree, so only the date of
        the commitment speaks against the claim. V3's keys get the victim's own answers as labels.
        """
        drawn = self.draw(victim.module(), lab)
        weights, forged = victim.weights(), []
        for layer in layers_of(drawn):
            public = (weights[f"{layer.norm}.{part}"] for part in ("weight", "bias"))
            forged.append(layer.forged(weights[f"{layer.conv}.weight"], *public))
        return _claim(drawn, forged, victim, lab)

    def forge(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Forge by one of the authors' procedures, or as every rival does.

        Raises:
            AssayError: `near` was not given the owner's secret.
        """
        if forgery.procedure == "random":
            return self._random(victim, lab, forgery.draws)
        if forgery.procedure not in self.procedures:
            return super().forge(victim, lab, forgery)
        drawn = self.draw(victim.module(), lab)
        reverse = forgery.procedure == "reverse"
        claim = self._reverse(victim, lab, drawn) if reverse else self._near(victim, lab, forgery.leaked)
        config = self.method.config
        recipe = ForgingRecipe(partial(sign_loss, alpha=config.alpha, margin=config.margin, decay=config.decay))
        lab.fit(claim, lab.data.train, recipe, self.schedule(lab.task), name=forgery.procedure)
        forged, further = _claim(drawn, claim.forged(), victim, lab), {}
        if isinstance(claim, NearPassports):
            further["distance"] = float(claim.distances().detach().mean().sqrt())
        self._try(0, victim, forged, lab, **further)
        return forged

    def schedule(self, task: Task) -> Schedule:
        """Return the schedule of forging: SGD at a constant rate, momentum 0.9, weight decay 5e-4, batches of 64."""
        epochs = self.config.epochs
        if epochs is None:  # the passport paper trains its victims for 200 epochs, as greedy residuals does
            whole = victim_epochs("greedy_residuals", task.dataset, task.model)
            epochs = scaled_epochs(100, whole, task.schedule.epochs)
        schedule: Schedule = task.schedule.steady(
            epochs=epochs, batch_size=64, optimizer="sgd", lr=self.config.lr, momentum=0.9, nesterov=False,
            weight_decay=5e-4,
        )  # fmt: skip
        return schedule

    def _reverse(self, victim: Suspect, lab: Lab, drawn: Secret) -> FreeAffine:
        layers, weights = layers_of(drawn), victim.weights()
        public = signs_of([weights[f"{layer.norm}.weight"] for layer in layers])
        signs = flipped(public, self.config.flips, lab.stream("select", "flips"))
        return FreeAffine(victim.module(), claiming(layers, signs), lab.stream("init"))

    def _near(self, victim: Suspect, lab: Lab, leaked: Secret | None) -> NearPassports:
        if leaked is None:
            raise AssayError(f"{self.method.key}: procedure near starts from the owner's passports; none were given")
        layers = layers_of(leaked)
        own = torch.cat([layer.bits.cpu() for layer in layers])
        signs = flipped(own, self.config.flips, lab.stream("select", "flips"))
        return NearPassports(victim.module(), claiming(layers, signs), lab.stream("noise"))

    def _random(self, victim: Suspect, lab: Lab, tries: int) -> Secret:
        material, weights = self.method.material(lab, victim.module()), victim.weights()
        best: tuple[float, Secret] | None = None
        for index in range(tries):
            own = lab.for_key(index)
            drawn = self.method.draw_from(material, own)
            layers, shipped = layers_of(drawn), self.method.ships_passports
            read = [
                weights[f"{layer.norm}.weight"] if shipped else layer.affine(weights[f"{layer.conv}.weight"])[0]
                for layer in layers
            ]
            forged = _claim(drawn, claiming(layers, signs_of(read)), victim, own)
            gap = self._try(index, victim, forged, lab)
            if best is None or gap > best[0]:
                best = (gap, forged)
        if best is None:
            raise AssayError("forge needs at least one draw")
        return best[1]

    def _try(self, index: int, victim: Suspect, forged: Secret, lab: Lab, **further: float) -> float:
        """Record a forger's try; return its private less its public accuracy on the forger's own images."""
        check = Labelled(forged["fidelity_inputs"], forged["fidelity_labels"])
        gap = fidelity_gap(victim.module(), layers_of(forged), check)
        lab.curve("forge", index, score=self.method.score(victim, forged)[0], fidelity_gap=gap, **further)
        return gap


def _claim(drawn: Secret, layers: Iterable[PassportLayer], victim: Suspect, lab: Lab) -> Secret:
    """Return a drawn secret with other passport layers, V3's keys under the victim's answers, committed anew."""
    content = {name: part for name, part in drawn.items() if name not in ("salt", "commitment")}
    content["layers"] = [layer.tree() for layer in layers]
    if "keys" in content:
        content["key_labels"] = victim.labels(content["keys"]).cpu()
    return committed(content, lab.stream("secret", "salt"))
