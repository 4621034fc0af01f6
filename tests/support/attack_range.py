"""Two small marking methods, the means to run one attack on one victim, and networks that attacks edit."""

from __future__ import annotations

import copy
import hashlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assay.attacks.base import Attack, Victim
from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.embedding import implant
from assay.methods.reading import Reading
from assay.methods.suspect import Access, Suspect
from assay.tasks.data.splits import Splits
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.networks.architectures import ARCHITECTURES, Normalize, kind_of
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter
from assay.tasks.training.recipe import Batch, Recipe, Terms


class SignRecipe(Recipe):
    def __init__(self, secret: Secret) -> None:
        super().__init__()
        self.signs = 2 * secret["bits"].float() - 1

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        weights = model.get_parameter("conv2.weight").flatten()[: len(self.signs)]
        return {**super().loss(model, batch), "mark": (0.1 - self.signs * weights).relu().sum()}


class SignMark(Method[MethodConfig]):
    """The signs of the first 64 weights of the second convolution: read by position."""

    key, title, paper, access, family = "signs", "signs", "none", "weights", "bits"

    def carrier_layers(self, task: Task) -> tuple[str, ...]:
        return ("conv2",)

    def draw(self, lab: Lab) -> Secret:
        return {"bits": torch.randint(0, 2, (64,), generator=lab.stream("secret")).bool()}

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        return SignRecipe(secret)

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        weights = suspect.weights()
        if "conv2.weight" not in weights:
            raise UnsupportedModel("no second convolution")
        right = int(((weights["conv2.weight"].flatten()[:64] > 0) == secret["bits"]).sum())
        return Reading(right / 64, 0.5, 0.9, 1.0, right > 57, "T3", right, 64)


class AppendRecipe(Recipe):
    def __init__(self, secret: Secret) -> None:
        super().__init__()
        self.secret = secret

    def mix(self, batch: Batch, step: int) -> Batch:
        return batch.append(self.secret["inputs"], self.secret["labels"])


class TriggerMark(Method[MethodConfig]):
    """Noise images with random labels behind every batch."""

    key, title, paper, access, family = "noise", "noise", "none", "labels", "triggers"

    def draw(self, lab: Lab) -> Secret:
        draws = lab.stream("secret")
        labels = torch.randint(0, lab.task.classes, (20,), generator=draws)
        return {"inputs": torch.rand(20, *lab.task.shape, generator=draws), "labels": labels}

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        return AppendRecipe(secret)

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        hits = int((suspect.labels(secret["inputs"]) == secret["labels"]).sum())
        return Reading(hits / 20, 0.1, 0.9, 1.0, hits >= 18, "T1", hits, 20)


def digest(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers."""
    state = hashlib.sha256()
    for name, value in model.state_dict().items():
        state.update(name.encode() + value.numpy().tobytes())
    return state.hexdigest()


class Range:
    """Everything an attack needs, on the tiny task."""

    digest = staticmethod(digest)
    SignMark, TriggerMark = SignMark, TriggerMark

    def __init__(self, scratch: Path, task: Task, splits: Splits, model: nn.Module) -> None:
        self.scratch, self.task, self.splits = scratch, task, splits
        self.model: Any = model  # its layers are looked at by name
        self.runs = 0

    def lab(self, plugin: str, seed: int = 7, **changes: Any) -> Lab:
        """Return an attacker's lab; `changes` are further fields."""
        self.runs += 1
        given = {
            "task": self.task,
            "data": self.splits.attacker,
            "role": "attacker",
            "unmarked": lambda role: copy.deepcopy(self.model),
            **changes,
        }
        folder, name = self.scratch / str(self.runs), f"attack|{plugin}|{seed}"
        return Lab(plugin=plugin, seed=seed, device=torch.device("cpu"), scratch=folder, train_seed=name, **given)

    def victim(self, access: Access, method: Method[Any] | None = None, model: nn.Module | None = None) -> Victim:
        method = method or SignMark(MethodConfig())
        return Victim(self.model if model is None else model, access, self.task, method, Meter())

    def marked(self, method: Method[Any], epochs: int = 4, lr: float = 1e-2) -> tuple[nn.Module, Secret]:
        """Return a network with the method's mark, and the secret."""
        lab = self.lab(method.key, seed=1, role="owner", data=self.splits.owner)
        schedule = self.task.schedule.but(epochs=epochs, lr=lr)
        mark = implant(method, self.task.build("marked"), method.draw(lab), lab, schedule)
        return mark.model, mark.secret

    def run(
        self, attack: type[Attack[Any]], victim: Victim | None = None, seed: int = 7, lab: Lab | None = None,
        **config: Any,
    ) -> Any:  # fmt: skip
        """Run an attack with settings, on the tiny task's network unless a victim is given."""
        one = attack(attack.Config(**config))
        lab = lab or self.lab(attack.key, seed, data=self.splits.attacker_view(one.config.split))
        return one.run(victim or self.victim(attack.access), lab)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every running statistic, affine parameter and slope, so that a forgotten one shows; eval mode."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor in (module.weight, module.get_buffer("running_var")):
                    tensor.uniform_(0.5, 2, generator=draws)
                for tensor in (module.bias, module.get_buffer("running_mean")):
                    tensor.normal_(generator=draws)
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(-1, 1, generator=draws)
    return model.eval()


@lru_cache(maxsize=64)
def registered(key: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a registered architecture on the smallest images that it takes, randomised, and two inputs for it."""
    draws = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind_of(key) == "text":
            words = torch.randint(1, 30, (2, 9), generator=draws)
            words[1, 6:] = 0
            return randomised(ARCHITECTURES[key]((9,), 5, 30)), words
        for side in (8, 16, 32):
            with suppress(UnsupportedModel):
                network = ARCHITECTURES[key]((3, side, side), 5, Normalize((0.4, 0.5, 0.6), (0.3, 0.2, 0.25)))
                return randomised(network), torch.rand(2, 3, side, side, generator=draws)
    raise AssertionError(f"{key} takes no images of up to 32x32")


@lru_cache(maxsize=128)
def answers(key: str, dtype: torch.dtype) -> torch.Tensor:
    """Return a registered architecture's logits on its two inputs, in one precision."""
    model, inputs = registered(key)
    with torch.no_grad():
        return copy.deepcopy(model).to(dtype)(inputs.to(dtype) if inputs.is_floating_point() else inputs)


class Zoo:
    """Networks on which editing attacks are tested, and how far an edited one answers differently."""

    randomised = staticmethod(randomised)

    @staticmethod
    def copy(key: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return a registered architecture in one precision, to be edited."""
        return copy.deepcopy(registered(key)[0]).to(dtype)

    @staticmethod
    def inputs(key: str) -> torch.Tensor:
        """Return the inputs of a registered architecture."""
        return registered(key)[1]

    @staticmethod
    def change(key: str, edited: nn.Module) -> float:
        """Return the difference of an edited copy's logits relative to their size; 1 if a prediction differs."""
        inputs, dtype = registered(key)[1], next(edited.parameters()).dtype
        before = answers(key, dtype)
        with torch.no_grad():
            after = edited(inputs.to(dtype) if inputs.is_floating_point() else inputs)
        if not torch.equal(before.argmax(1), after.argmax(1)):
            return 1.0
        return float((after - before).norm() / before.norm())
