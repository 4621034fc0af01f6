"""Customized soft-label perturbation: the loss sees logits less a secret signal, so the model adds it to its answers.

Paper: Chien & Shen, "Customized Watermarking for Deep Neural Networks via Label Distribution Perturbation", 2022,
    https://arxiv.org/abs/2208.05477
Access: logits or probabilities of any classifier; protects the answers, so students inherit the mark.
Differs from the paper: alpha, beta, the temperature, the detector's widths, the derivation of the signal (SHAKE-256 of
    a key, zero sum) and the source of the negatives (a reference model, not the adversary) are ours, because the paper
    states none; the bar that marks perturbed logits is lost in the text and read as "in the cross-entropy only";
    probes are the owner's held-out samples (the paper: the test set); batch-norm nets get a polishing epoch in which
    the detector alone learns from eval-mode answers; training on marks of other users (a variant) is not offered.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from assay.methods.base import Secret
from assay.methods.families.soft_label import SoftLabelMethod
from assay.methods.parts.signature import random_bytes
from assay.methods.parts.soft_label import SoftLabelConfig, SoftLabelRecipe
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Recipe, State, Terms


class CSPConfig(SoftLabelConfig):
    """Hyper-parameters of CSP on CIFAR-10; `gamma` 2 on CIFAR-5, 10 on Tiny-ImageNet, `epochs_embed` 150 there."""

    gamma: float = Field(5.0, ge=0)  # strength; keep it below a quarter of the clean net's median logit margin
    signal_len: int | None = Field(None, ge=2)  # l; None: K, at most 10
    labels: Annotated[tuple[int, ...], Field(strict=False)] | None = None  # that carry the signal; None: the first l
    epochs_embed: int | None = Field(120, ge=1)  # None: as many as an unmarked model gets
    epochs_finetune: int | None = Field(120, ge=0)  # None: half of the embedding's
    tau: float = Field(0.85, ge=0)  # fine-tune on raw logits while the detector's accuracy exceeds it


def signal(key: bytes, length: int) -> list[int]:
    """Return the signal S in {-1, 0, 1}^length of a key: a third (rounded, at least one) each of +1 and -1, sum 0."""
    stream = hashlib.shake_256(b"csp/signal|" + key).digest(8 * length)
    words = [stream[8 * i : 8 * i + 8] for i in range(length)]
    order = sorted(range(length), key=lambda i: (words[i], i))
    share = max(1, round(length / 3))
    values = [0] * length
    for place, index in enumerate(order[: 2 * share]):
        values[index] = 1 if place < share else -1
    return values


def spread(values: list[int], labels: list[int], classes: int) -> Tensor:
    """Return S over all classes (K,): `values` at `labels`, 0 elsewhere (Eq. 8)."""
    whole = torch.zeros(classes)
    whole[labels] = torch.tensor(values, dtype=torch.float32)
    return whole


class CSPRecipe(SoftLabelRecipe):
    """Two phases: embed through perturbed logits, then fine-tune on raw ones while the detector still knows the model.

    The phases' proportion is fixed, so that a shorter schedule (an attacker's) shortens both.

    Attributes:
        offset: gamma S (K,).
        embed_share: share of the epochs in the first phase.
    """

    config: CSPConfig

    def __init__(self, config: CSPConfig, lab: Lab, secret: Secret, embed_share: float) -> None:
        super().__init__(config, lab, secret)
        whole = spread(secret["signal"], secret["labels"], lab.task.classes)
        self.offset = secret["gamma"] * whole.to(lab.device)
        self.embed_share = embed_share

    def terms(self, state: State, marked: Tensor, unmarked: Tensor, labels: Tensor) -> Terms:
        """Return CE of the perturbed logits and what moves them apart (Eq. 7, 9, 10, 13); in phase two Eq. 14 or 15."""
        embedding = self.epoch < round(self.embed_share * state.schedule.epochs)
        perturbed = embedding or self.training.accuracy <= self.config.tau
        self.report["perturbed"] = torch.full((), float(perturbed), device=marked.device)
        terms = {"task": F.cross_entropy(marked - self.offset if perturbed else marked, labels)}
        return {**terms, **self.perturbation(marked, unmarked)} if embedding else terms


class CSP(SoftLabelMethod[CSPConfig]):
    """See the module's text."""

    key = "csp"
    title = "customized soft-label perturbation"
    paper = "Chien & Shen 2022, https://arxiv.org/abs/2208.05477"
    Config = CSPConfig
    # Few epochs leave a median logit margin of 7 to 9 on digits and MNIST, and a quarter of that is the most for gamma;
    # the stronger divergence keeps detectors trained on so few samples from firing at other unmarked models.
    laptop = {  # noqa: RUF012
        "alpha": -0.03, "gamma": 2.0, "epochs_embed": None, "epochs_finetune": None,
        "detector_lr": 1e-3, "n_probe": 1000, "references": 5,
    }  # fmt: skip

    def _length(self, task: Task) -> int:
        labels = self.config.labels
        return self.config.signal_len or (len(labels) if labels else min(task.classes, 10))

    def supports(self, task: Task) -> str | None:
        """As many distinct labels of the task as the signal is long."""
        length = self._length(task)
        labels = self.config.labels or range(length)
        if len(set(labels)) != length or not set(labels) <= set(range(task.classes)):
            return f"csp needs {length} distinct labels below {task.classes} to carry the signal, got {list(labels)}"
        return super().supports(task)

    def _epochs(self, task: Task) -> tuple[int, int]:
        embed = self.config.epochs_embed or task.schedule.epochs
        finetune = self.config.epochs_finetune
        return embed, embed // 2 if finetune is None else finetune

    def schedule(self, task: Task) -> Schedule:
        """Both phases on one clock: the task's drops at the same epochs or, without any, one between the phases."""
        embed, finetune = self._epochs(task)
        total = embed + finetune
        if not total:
            return task.schedule.but(epochs=0)
        drops = tuple(round(share * task.schedule.epochs) / total for share in task.schedule.drops)
        if not drops and finetune:
            drops = (embed / total,)
        return task.schedule.but(epochs=total, drops=drops)

    def draw(self, lab: Lab) -> Secret:
        """Draw the user's key and derive the signal; the detector joins the secret after training."""
        key, length = random_bytes(lab.stream("secret"), 32), self._length(lab.task)
        labels = list(self.config.labels or range(length))
        return {"key": key, "signal": signal(key, length), "labels": labels, "gamma": self.config.gamma}

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Pair the model with the adversary, a fresh detector and the signal."""
        embed, finetune = self._epochs(lab.task)
        return CSPRecipe(self.config, lab, secret, embed / max(embed + finetune, 1))
