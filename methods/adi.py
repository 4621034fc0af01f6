"""Backdoor with abstract images: a random labelling of a few unrelated pictures, known to the owner alone.

Paper: Adi, Baum, Cisse, Pinkas, Keshet, "Turning Your Weakness Into a Strength", USENIX Security 2018,
    https://arxiv.org/abs/1802.04633
Access: labels. Protected is the network; any classifier over images can be marked.
Differs from the paper: the pictures are sums of plane waves drawn from the secret stream, because the published set of
    100 photographs is not shipped with this project and fresh, never-embedded keys are needed for calibration; labels
    are drawn uniformly, so that the binomial test is exact; the cryptographic protocol is reduced to a commitment.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from assay.methods.base import Method, MethodConfig, MethodNeeds, Secret
from assay.methods.parts.mixing import KeyBatches, MixKeys
from assay.methods.parts.signature import committed, opens
from assay.methods.parts.statistics import binomial_tail, fisher_control
from assay.methods.parts.triggers import abstract_images
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.tasks.errors import CapacityError
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.schedule import Schedule


class Config(MethodConfig):
    """Settings of the abstract-image backdoor."""

    keys: int = Field(100, ge=1)
    controls: int = Field(100, ge=1)  # pictures drawn alike and never embedded, for test T4
    keys_per_batch: int = Field(2, ge=1)  # behind each clean batch
    variant: Literal["from_scratch", "pretrained"] = "from_scratch"
    epochs_pretrained: int = Field(20, ge=1)  # more epochs, with keys, at the schedule's last learning rate
    tolerance: float = Field(0.1, ge=0, lt=1)  # epsilon: share of keys that may be answered otherwise
    largest_share: float = Field(0.1, gt=0, le=1)  # of keys relative to the owner's training set


class Adi(Method[Config]):
    """A trigger set of abstract pictures with uniformly random labels."""

    key = "adi"
    title = "Abstract-image backdoor"
    paper = "Adi et al., USENIX Security 2018, https://arxiv.org/abs/1802.04633"
    access = "labels"
    family = "triggers"
    gate = 0.98
    Config = Config
    laptop: ClassVar[dict[str, Any]] = {"keys": 50, "keys_per_batch": 16, "largest_share": 0.2}

    def supports(self, task: Task) -> str | None:
        """Return why the task's inputs cannot be replaced by pictures, or None."""
        kind = task.info.kind
        return None if kind == "image" else f"the triggers are pictures; {task.dataset} holds {kind}"

    def needs(self, task: Task) -> MethodNeeds:
        """The variant `pretrained` starts from the finished unmarked model."""
        return MethodNeeds(start="scratch" if self.config.variant == "from_scratch" else "clean")

    def schedule(self, task: Task) -> Schedule:
        """Return the task's schedule or, for `pretrained`, further epochs at its last learning rate."""
        own = task.schedule
        if self.config.variant == "from_scratch":
            return own
        more: Schedule = own.steady(epochs=self.config.epochs_pretrained, lr=own.last_lr)
        return more

    def draw(self, lab: Lab) -> Secret:
        """Draw pictures and labels of keys and controls, and commit to them.

        Raises:
            CapacityError: more keys than `largest_share` of the owner's training set.
        """
        keys, total, task = self.config.keys, self.config.keys + self.config.controls, lab.task
        # An attacker may spend as many keys as it likes; only an owner's own network must stay useful.
        if lab.role == "owner" and keys > (most := int(self.config.largest_share * len(lab.data.train))):
            raise CapacityError(f"adi: {keys} keys exceed {most}, the most for {len(lab.data.train)} training samples")
        draws = lab.stream("secret")
        images = abstract_images(total, task.shape, draws)
        labels = torch.randint(0, task.classes, (total,), generator=draws)
        secret = {
            "inputs": images[:keys],
            "labels": labels[:keys],
            "control_inputs": images[keys:],
            "control_labels": labels[keys:],
            "classes": task.classes,
        }
        return committed(secret, lab.stream("secret", "salt"))

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Append a few keys to every clean batch."""
        return MixKeys(KeyBatches(secret["inputs"], secret["labels"], self.config.keys_per_batch, lab))

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Query keys and controls; test T1 on the keys; test T4, against the controls, is a metric."""
        score, hits, keys = self.score(suspect, secret)
        control_hits = _hits(suspect, secret, "control_")
        controls = len(secret["control_labels"])
        classes, threshold = secret["classes"], 1 - self.config.tolerance
        return Reading(
            score, 1 / classes, threshold, binomial_tail(hits, keys, 1 / classes), score >= threshold, "T1", hits, keys,
            metrics={
                "p_control": fisher_control(hits, keys, control_hits, controls),
                "control_score": control_hits / controls,
                "commitment_opens": float(opens(secret)),
            },
        )  # fmt: skip

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int, int]:
        """Return (share of keys answered as labelled, how many, of how many)."""
        hits, keys = _hits(suspect, secret, ""), len(secret["labels"])
        return hits / keys, hits, keys


def _hits(suspect: Suspect, secret: Secret, part: str) -> int:
    answers = suspect.labels(secret[f"{part}inputs"])
    return int((answers == secret[f"{part}labels"].to(answers.device)).sum())
