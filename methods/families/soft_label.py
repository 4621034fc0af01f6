"""Soft-label perturbation: a model learns to answer unlike an ordinary one, and a detector learns to notice.

The method and the rival that `usp` and `csp` share (Chien & Shen 2022); `methods.parts.soft_label` trains.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from torch import nn

from assay.methods.base import Method, MethodNeeds, Secret
from assay.methods.embedding import Mark, implant
from assay.methods.null import Null, read_null
from assay.methods.parts.detector import Detector
from assay.methods.parts.signature import opens
from assay.methods.parts.soft_label import SoftLabelConfig, complete, divergence, fresh_detector, without
from assay.methods.parts.statistics import binomial_tail
from assay.methods.reading import Reading
from assay.methods.rival import Forgery, Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import predict

S = TypeVar("S", bound=SoftLabelConfig)


class SoftLabelRival(Rival[RivalConfig]):
    """An adversary with a detector of its own, trained against unmarked models of its own."""

    def overwrite(self, victim: nn.Module, lab: Lab, schedule: Schedule) -> Mark:
        """Embed a new mark with a new detector, against unmarked models that the attacker trains itself."""
        method, own = self._alone(), _own_models(lab)
        return implant(method, victim, method.draw(own), own, schedule)

    def claim(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Train only a detector, between an unchanged victim's answers and those of the attacker's own models.

        Nothing binds a detector to whoever trained the model, so this is expected to succeed. Only the date of the
        owner's commitment speaks against the forger.
        """
        method, own = self._alone(), _own_models(lab)
        secret, training = method.draw(own), fresh_detector(method.config, own)
        answers = victim.logits(lab.data.train.inputs)
        plain = predict(own.unmarked("adversary"), lab.data.train.inputs)
        schedule = method.schedule(lab.task)
        training.polish(answers, plain, schedule.epochs, schedule.batch_size, lab.stream("detector", "forge"))
        complete(secret, training.detector, method.config, own)
        return secret

    def _alone(self) -> Method[Any]:
        """Return the method with the fewest unmarked models, since the attacker pays for each of them."""
        return type(self.method)(self.method.config.but(references=2, processed=0))


def _own_models(lab: Lab) -> Lab:
    """Return the lab with unmarked models that are trained on its data when asked for: an attacker has no others."""
    trained: dict[str, nn.Module] = {}

    def unmarked(role: str) -> nn.Module:
        if role not in trained:
            net = lab.task.build(lab.train_seed, role)
            trained[role] = lab.fit(net, lab.data.train, schedule=lab.task.schedule, name=f"own-{role}").model
        return copy.deepcopy(trained[role])

    return replace(lab, unmarked=unmarked)


class SoftLabelMethod(Method[S]):
    """The common part of the schemes whose secret is a trained detector."""

    access = "logits"
    family = "detector"
    gate = 0.90
    shares_null = False  # a detector cannot be drawn without training
    rival: ClassVar = SoftLabelRival
    Config = SoftLabelConfig

    def supports(self, task: Task) -> str | None:
        """At least three classes."""
        return None if task.classes >= 3 else f"{self.key} needs 3 classes or more, {task.key} has {task.classes}"

    def needs(self, task: Task) -> MethodNeeds:
        """Also the references, and `adversary`: the unmarked model that the detector learns to tell apart."""
        return MethodNeeds(unmarked=("clean", *self.config.null_roles, self.config.judge, "adversary"))

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Return the detector's balanced accuracy on the suspect's answers and the cached negatives."""
        logits = suspect.logits(secret["probes"])
        if logits.shape[1] != secret["negatives"].shape[1]:
            raise UnsupportedModel(f"the suspect has {logits.shape[1]} classes, not {secret['negatives'].shape[1]}")
        detector = Detector.from_tree(secret["detector"], logits.device)
        hits, probes = int((detector(logits) > 0).sum()), len(logits)
        rejected = int((detector(secret["negatives"].to(logits.device)) <= 0).sum())
        # Accuracy on as many unmarked outputs as probes; only the first half depends on the suspect.
        right, trials = hits + rejected, 2 * probes
        rate, score, nulls = hits / probes, right / trials, secret["null_rates"]
        metrics = {
            "det_rate": rate,
            "tnr": rejected / probes,
            # How far the answers are from an ordinary model's, the last column of the paper's ablation (its table 15).
            "kld": float(divergence(logits, secret["negatives"].to(logits.device), self.config.temperature)),
            "null_bound": secret["null_bound"],
            "commitment_opens": float(opens(secret)),
            # The model, not the probe, is the unit that varies; there are few of them.
            "p_models": (1 + sum(null >= rate for null in nulls)) / (len(nulls) + 1),
        }
        p_value, threshold = binomial_tail(hits, probes, secret["null_bound"]), self.config.threshold
        return Reading(score, 0.5, threshold, p_value, score > threshold, "T5", right, trials, metrics=metrics)

    def null(self, lab: Lab, secret: Secret | None) -> Null:
        """Read the owner's own secret from the unmarked models of `lab.calibration`.

        The reference that supplied the secret's negatives is left out.
        """
        assert secret is not None, f"the null of {self.key} is read with an owner's secret"
        roles = without(self.config.judge, lab.calibration)
        return read_null(self, [secret], {role: lab.unmarked(role) for role in roles}, lab.meter)
