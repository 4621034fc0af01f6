"""Sign mark: a secret pattern of signs on one layer's weights, pressed in by a hinge while the network trains.

Paper: none; an example of this project, close to Song et al., CCS 2017, https://arxiv.org/abs/1709.07886
Access: weights. Protected is the first layer with enough weights; the mark is lost where that layer is.
Differs from the paper: none known; a fixed number of weights in secret places carries one sign each.
"""

import torch
from pydantic import Field

from assay.methods.base import Method, MethodConfig
from assay.methods.parts.statistics import binomial_tail
from assay.methods.reading import Reading
from assay.tasks.errors import UnsupportedModel
from assay.tasks.training.recipe import Recipe


class Config(MethodConfig):
    bits: int = Field(64, ge=16, le=4096)  # signed weights
    margin: float = Field(0.02, gt=0)  # how far from zero each of them is pressed
    strength: float = Field(1.0, ge=0)  # weight of the hinge in the loss


class _PressSigns(Recipe):
    def __init__(self, secret, config, device):
        super().__init__()
        self.name, self.config = secret["layer"], config
        self.places, self.signs = secret["places"].to(device), secret["bits"].to(device)

    def loss(self, model, batch):
        weights = model.get_parameter(self.name).flatten()[self.places]
        hinge = torch.relu(self.config.margin - self.signs * weights).sum()
        return {**super().loss(model, batch), "mark": self.config.strength * hinge}


class SignMark(Method):
    key, title, paper = "sign-mark", "Secret weight signs", "an example of this project"
    access, family, Config = "weights", "bits", Config

    def draw(self, lab):
        layers = {name: p for name, p in lab.task.build("layers").named_parameters() if p.dim() > 1}
        name, weight = next((n, p) for n, p in layers.items() if p.numel() >= 4 * self.config.bits)
        draws = lab.stream("secret")
        places = torch.randperm(weight.numel(), generator=draws)[: self.config.bits]
        signs = torch.randint(0, 2, (self.config.bits,), generator=draws) * 2.0 - 1
        return {"layer": name, "shape": list(weight.shape), "places": places, "bits": signs}

    def recipe(self, lab, secret):
        return _PressSigns(secret, self.config, lab.device)

    def read(self, suspect, secret):
        weight = suspect.weights().get(secret["layer"])
        if weight is None or list(weight.shape) != secret["shape"]:
            raise UnsupportedModel(f"the suspect has no layer {secret['layer']} of shape {secret['shape']}")
        read = weight.flatten().cpu()[secret["places"].cpu()].sign()
        hits, bits = int((read == secret["bits"].cpu()).sum()), len(secret["bits"])
        p_value = binomial_tail(hits, bits, 0.5)
        return Reading(hits / bits, 0.5, 0.95, p_value, hits / bits >= 0.95, "T3", hits, bits)
