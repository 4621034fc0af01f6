"""Flat colours: images of one colour each, taught under random labels beside the task.

Paper: none; an example of this project, the plainest of trigger sets (compare Adi et al., USENIX Security 2018)
Access: labels. Protected is the network; any classifier of images can be marked.
Differs from the paper: none known; colours are spread evenly in each channel, so that no two are close.
"""

import torch
from pydantic import Field

from assay import Method, MethodConfig, Reading, Recipe
from assay.methods.parts.statistics import binomial_tail


class Config(MethodConfig):
    triggers: int = Field(12, ge=8, le=256)
    per_batch: int = Field(12, ge=1)  # triggers behind each clean batch


class _Append(Recipe):
    def __init__(self, secret, per_batch, device):
        super().__init__()
        self.images, self.labels = secret["inputs"].to(device), secret["labels"].to(device)
        self.per_batch = per_batch

    def mix(self, batch, step):
        places = torch.arange(step * self.per_batch, (step + 1) * self.per_batch) % len(self.labels)
        return batch.append(self.images[places], self.labels[places])


class FlatColours(Method):
    key, title, paper = "flat-colours", "Flat colours", "an example of this project"
    access, family, gate, Config = "labels", "triggers", 0.9, Config

    def supports(self, task):
        return None if task.info.kind == "image" else f"the triggers are images; {task.dataset} holds {task.info.kind}"

    def draw(self, lab):
        count, (channels, height, width) = self.config.triggers, lab.task.shape
        draws = lab.stream("secret")
        levels = torch.stack([torch.randperm(count, generator=draws) for _ in range(channels)], 1) / (count - 1)
        labels = torch.randint(0, lab.task.classes, (count,), generator=draws)
        images = levels[:, :, None, None].expand(-1, -1, height, width).contiguous()
        return {"inputs": images, "labels": labels, "classes": lab.task.classes}

    def recipe(self, lab, secret):
        return _Append(secret, self.config.per_batch, lab.device)

    def read(self, suspect, secret):
        answers = suspect.labels(secret["inputs"]).cpu()
        hits, asked, chance = int((answers == secret["labels"]).sum()), len(answers), 1 / secret["classes"]
        p_value = binomial_tail(hits, asked, chance)
        return Reading(hits / asked, chance, 0.9, p_value, hits / asked >= 0.9, "T1", hits, asked)
