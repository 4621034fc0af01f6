"""Memorised carriers: synthetic images with secret labels that join the training set; what such methods share.

Song, Ristenpart, Shmatikov, "Machine Learning Models that Remember Too Much", CCS 2017, https://arxiv.org/abs/1709.07886,
as the ingrain paper uses it (Yang, Dang, Chang 2019).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.parts.random_images import Law, WithCarriers, carrier_images
from assay.methods.parts.signature import committed, opens, random_bytes
from assay.methods.parts.statistics import LEVEL, binomial_tail, least_hits
from assay.methods.reading import Reading
from assay.methods.rival import Forgery, Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Labelled
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms

LARGE_SHARE = 0.2  # of carriers relative to the training set; more is remarked on


class CarrierConfig(MethodConfig):
    """Settings of the carriers."""

    carriers: int = Field(1000, ge=1)  # m = |D_S|; the paper's others are 5,000 and 10,000
    law: Law = "walk"
    label_mode: Literal["uniform", "bits"] = "uniform"  # over all K classes, or floor(log2 K) bits of a message each
    carrier_repeat: int = Field(1, ge=1)  # how often an epoch shows each carrier


C = TypeVar("C", bound=CarrierConfig)


class Memorise(Recipe):
    """Plain training with mean cross-entropy over clean samples and carriers alike.

    Attributes:
        carriers: how they join the training set; None: clean samples alone.
        right: answers that were right in the training steps of each epoch (from 0): int64 (2,), clean and carriers.
        seen: of how many.
    """

    def __init__(self, lab: Lab, secret: Secret, carriers: WithCarriers | None) -> None:
        super().__init__()
        self.lab, self.secret, self.carriers = lab, secret, carriers
        self.epoch = 0
        self.right: dict[int, Tensor] = {}
        self.seen: dict[int, list[int]] = {}
        count, samples = len(secret["labels"]), len(lab.data.train)
        if count > LARGE_SHARE * samples:
            self.notes.append(f"{count} carriers are more than {LARGE_SHARE:.0%} of {samples} training samples")

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Shuffle the carriers anew."""
        self.epoch = epoch
        if self.carriers is not None:
            self.carriers.shuffle(epoch)

    def mix(self, batch: Batch, step: int) -> Batch:
        """Append the carriers that fall into this batch; there may be none."""
        return batch if self.carriers is None else self.carriers.append(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the mean cross-entropy."""
        return {"task": F.cross_entropy(self.answer(model, batch), batch.labels)}

    def answer(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (B, K) of a batch, and count which of its answers are right; waits for no device."""
        logits: Tensor = model(batch.inputs)
        with torch.no_grad():
            right = logits.argmax(1) == batch.labels
            counts = torch.stack([right[: batch.clean].sum(), right[batch.clean :].sum()])
        clean, carriers = self.seen.get(self.epoch, [0, 0])
        self.seen[self.epoch] = [clean + batch.clean, carriers + len(right) - batch.clean]
        self.right[self.epoch] = self.right[self.epoch] + counts if self.epoch in self.right else counts
        return logits

    def finish(self, model: nn.Module) -> nn.Module:
        """Record the curve `memory`: the shares of clean samples and of carriers that each epoch's steps got right.

        It shows when the carriers were memorised, and when the task was learnt (figure 1 of the ingrain paper).
        """
        for epoch, right in sorted(self.right.items()):
            names = ("train_accuracy", "carrier_accuracy")
            shares = zip(names, right.tolist(), self.seen[epoch], strict=True)
            self.lab.curve("memory", epoch + 1, **{name: hits / seen for name, hits, seen in shares if seen})
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"right": self.right, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.right, self.seen = state["right"], state["seen"]


class CarrierRival(Rival[RivalConfig]):
    """An adversary whose carriers carry the labels that the victim gives them."""

    def claim(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Claim fresh carriers with the victim's own answers as labels; a commitment's date alone speaks against it."""
        own = lab.for_key(0)
        secret = self.method.draw(own)
        secret["labels"] = victim.labels(carriers_of(secret).inputs).cpu()
        return committed(secret, own.stream("secret", "salt"))


class CarrierMethod(Method[C]):
    """Carriers from a key, their labels from the secret stream, and their verification by counting (T1)."""

    access = "labels"
    family = "triggers"
    gate = 0.98
    rival: ClassVar = CarrierRival
    Config = CarrierConfig

    def supports(self, task: Task) -> str | None:
        """Return why the task's inputs cannot be carriers, or None."""
        kind = task.info.kind
        return None if kind == "image" else f"the carriers are synthetic images; {task.dataset} holds {kind}"

    def alphabet(self, task: Task) -> int:
        """Return how many labels carriers may have: the first of the task's classes."""
        return task.classes if self.config.label_mode == "uniform" else 1 << (task.classes.bit_length() - 1)

    def draw(self, lab: Lab) -> Secret:
        """Draw the images' key and the labels, and commit to them; the images follow from the key."""
        draws, task = lab.stream("secret"), lab.task
        alphabet = self.alphabet(task)
        secret = {
            "key": random_bytes(draws, 32),
            "law": self.config.law,
            "shape": list(task.shape),
            "labels": torch.randint(0, alphabet, (self.config.carriers,), generator=draws),
            "alphabet": alphabet,
            "classes": task.classes,
        }
        return committed(secret, lab.stream("secret", "salt"))

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Train on clean samples and carriers."""
        return Memorise(lab, secret, self.carriers(lab, secret))

    def carriers(self, lab: Lab, secret: Secret) -> WithCarriers:
        """Return how the secret's carriers join the party's training set."""
        own = carriers_of(secret)
        return WithCarriers(own.inputs, own.labels, len(lab.data.train), self.config.carrier_repeat, lab)

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Count carriers answered as labelled; T1, exact because the labels are uniform and independent of any model.

        With labels of a smaller alphabet an unrelated model matches at most 1 in `alphabet`, which is the chance level.
        The paper names no threshold, so as many carriers are enough as give p <= 1e-3.
        """
        answers, labels = _answers(suspect, secret), secret["labels"]
        hits, total, chance = int((answers == labels).sum()), len(labels), 1 / secret["alphabet"]
        score, threshold, share = hits / total, least_hits(total, chance, LEVEL) / total, 1 / secret["classes"]
        metrics = {
            "commitment_opens": float(opens(secret)),
            "score_norm_all_classes": max((score - share) / (1 - share), 0.0),  # the paper's, for any alphabet
        }
        if self.config.label_mode == "bits":
            metrics["bit_accuracy"] = bit_accuracy(answers, labels, secret["alphabet"])
        p_value = binomial_tail(hits, total, chance)
        return Reading(score, chance, threshold, p_value, score >= threshold, "T1", hits, total, metrics=metrics)

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int, int]:
        """Return (share of carriers answered as labelled, how many, of how many)."""
        hits, total = int((_answers(suspect, secret) == secret["labels"]).sum()), len(secret["labels"])
        return hits / total, hits, total


def carriers_of(secret: Secret) -> Labelled:
    """Return the carriers of a secret with their labels, on the CPU."""
    channels, height, width = secret["shape"]
    labels: Tensor = secret["labels"].cpu()
    numbers = len(labels) * channels * height * width
    images = _kept_images if numbers <= _SMALL else carrier_images
    return Labelled(images(secret["law"], secret["key"], len(labels), (channels, height, width)), labels)


# Calibration asks every unmarked model about the same keys; small sets are kept between its questions.
_SMALL = 1 << 18  # numbers, 1 MiB
_kept_images = lru_cache(maxsize=128)(carrier_images)


def bit_accuracy(answers: Tensor, labels: Tensor, alphabet: int) -> float:
    """Return the share of message bits that answers (m,) spell, big-endian log2(alphabet) bits each.

    An answer outside the alphabet spells no bit.
    """
    places = torch.arange(alphabet.bit_length() - 1)
    wrong = ((answers ^ labels)[:, None] >> places) & 1
    right = (1 - wrong) * (answers < alphabet)[:, None]
    return float(right.double().mean())


def _answers(suspect: Suspect, secret: Secret) -> Tensor:
    return suspect.labels(carriers_of(secret).inputs).cpu()
