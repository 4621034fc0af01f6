"""A method of one's own, from a notebook's cell to a table: flat grey pictures under secret labels."""

from __future__ import annotations

import tempfile
from typing import Any, ClassVar

import torch
from pydantic import Field

import assay
from assay.methods.parts.statistics import binomial_tail


class Config(assay.MethodConfig):
    """Settings; their bounds are checked when the grid is read."""

    keys: int = Field(30, ge=10, le=200)  # pictures, each of one grey


class Append(assay.Recipe):
    """Put the secret pictures behind every batch."""

    def __init__(self, secret: dict[str, Any], device: torch.device) -> None:
        super().__init__()
        self.inputs, self.labels = secret["inputs"].to(device), secret["labels"].to(device)

    def mix(self, batch: assay.Batch, step: int) -> assay.Batch:
        """Append them; the clean samples stay as drawn."""
        return batch.append(self.inputs, self.labels)


class Flat(assay.Method[Config]):
    """The owner knows the classes of a few pictures that nobody else would ask for."""

    key, title, paper = "flat", "Flat grey pictures", "none; an example of this project"
    access, family, gate = "labels", "triggers", 0.8
    Config: ClassVar = Config

    def draw(self, lab: assay.Lab) -> dict[str, Any]:
        """Draw greys and classes."""
        draws = lab.stream("secret")
        greys = torch.rand(self.config.keys, 1, 1, 1, generator=draws).expand(-1, *lab.task.shape).clone()
        labels = torch.randint(0, lab.task.classes, (self.config.keys,), generator=draws)
        return {"inputs": greys, "labels": labels, "classes": lab.task.classes}

    def recipe(self, lab: assay.Lab, secret: dict[str, Any]) -> assay.Recipe:
        """Train on them."""
        return Append(secret, lab.device)

    def read(self, suspect: assay.Suspect, secret: dict[str, Any]) -> assay.Reading:
        """Count the pictures that the suspect classifies as the owner taught it."""
        hits = int((suspect.labels(secret["inputs"]).cpu() == secret["labels"]).sum())
        count, chance = len(secret["labels"]), 1 / secret["classes"]
        score, p_value = hits / count, binomial_tail(hits, count, chance)
        return assay.Reading(score, chance, 0.8, p_value, score >= 0.8, "T1", hits, count)


if __name__ == "__main__":
    methods = ["clean", {"flat": {"allow_weak": True}}]
    grid = {"tasks": ["digits-cnn-mini"], "methods": methods, "attacks": ["none", "prune"], "profile": "smoke"}
    sweep = assay.run(grid, out=tempfile.mkdtemp(prefix="assay-"), plugins=[Flat], workers=1)
    print(sweep.rows[["method", "attack", "status", "outcome", "score_after"]].to_string(index=False))
    print(sweep.table())
