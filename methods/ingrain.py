"""Ingrain: one network memorises random carriers, another learns to answer ordinary data a little like it.

Paper: Yang, Dang, Chang, "Effectiveness of Distillation Attack and Countermeasure on Neural Network Watermarking",
    2019, https://arxiv.org/abs/1906.06046
Access: labels. Protected are the answers on ordinary data, so that part of the memorised labels reaches a student.
Differs from the paper: labels are uniform on all K classes (the paper packs bits, `label_mode`, yet normalises by K);
    carriers are shuffled anew in every epoch and join whole clean batches, so that clean samples keep their order and
    number, and a step has the batch size plus its carriers; the paper names no threshold, so p <= 1e-3 decides; images
    come from SHAKE-256. The laptop profile has so few epochs that it doubles them, shows carriers four times in each
    and takes the smallest strength of the paper; it stops training the ingrainer when that knows every carrier.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from assay.methods.base import Secret
from assay.methods.families.capacity import CarrierConfig, CarrierMethod, Memorise, carriers_of
from assay.methods.parts.random_images import WithCarriers
from assay.methods.parts.signature import canonical_bytes, committed
from assay.tasks.errors import Diverged
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import evaluate, predict


class Config(CarrierConfig):
    """Settings of ingrain on MNIST and CIFAR-10."""

    strength: float = Field(2.0, ge=0)  # lambda; the paper's are 0.5, 1, 2, 4, 8; 0 is capacity abuse
    temperature: float = Field(10.0, gt=0)  # T of the main network in the ingrain term; the ingrainer's is 1
    augment_carriers: bool = True  # train on the carriers too; without (set allow_weak) the ingrain term acts alone
    epoch_factor: float = Field(1.0, gt=0)  # epochs relative to an unmarked model's; the paper trains both for 500
    epochs_ingrainer: int = Field(1000, ge=1)  # P of Algorithm 1
    ingrainer_stops: bool = False  # at the first epoch after which it knows every carrier


def ingrain_term(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the sum over samples of H(g, softmax(O / T)), a cross-entropy with soft targets (Eq. 7); no factor T².

    Args:
        logits: O of the main network (a, K).
        targets: g, the ingrainer's probabilities (a, K).
        temperature: T.
    """
    return -(targets * (logits.float() / temperature).log_softmax(1)).sum()


class IngrainRecipe(Memorise):
    """Mean cross-entropy over clean samples and carriers, and the ingrain term on the clean ones (Algorithm 2)."""

    def __init__(
        self, lab: Lab, secret: Secret, carriers: WithCarriers | None, ingrainer: nn.Module, config: Config
    ) -> None:
        super().__init__(lab, secret, carriers)
        self.ingrainer = ingrainer.eval().requires_grad_(False)
        self.config = config
        self.known: Tensor | None = None  # answers (N, K) to the whole training set, where nothing is augmented
        self.ingrainer_samples = 0

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """Return the loss over a clean samples and b carriers, over a + b (lines 7 to 10)."""
        logits = self.answer(model, batch)
        terms = {"task": F.cross_entropy(logits, batch.labels)}
        if batch.clean:
            term = ingrain_term(logits[: batch.clean], self._targets(batch), self.config.temperature)
            terms["ingrain"] = self.config.strength * term / len(batch.labels)
        return terms

    def _targets(self, batch: Batch) -> Tensor:
        if self.known is not None:
            return self.known.index_select(0, batch.index)
        self.ingrainer_samples += batch.clean
        with torch.no_grad():
            answers: Tensor = self.ingrainer(batch.inputs[: batch.clean])
        return answers.float().softmax(1)

    def finish(self, model: nn.Module) -> nn.Module:
        """Keep the ingrainer's digest, for which verification has no use, and commit to the whole."""
        self.lab.meter.forward_samples += self.ingrainer_samples
        digest = hashlib.sha256(canonical_bytes(self.ingrainer.state_dict())).hexdigest()
        self.secret |= committed({**self.secret, "ingrainer": digest}, self.lab.stream("secret", "salt"))
        return super().finish(model)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the ingrainer's passes."""
        return {**super().state_dict(), "ingrainer_samples": self.ingrainer_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        self.ingrainer_samples = state["ingrainer_samples"]


class Ingrain(CarrierMethod[Config]):
    """See the module's text."""

    key = "ingrain"
    title = "Ingrain"
    paper = "Yang, Dang, Chang 2019, https://arxiv.org/abs/1906.06046"
    Config = Config
    laptop: ClassVar[dict[str, Any]] = {
        "carriers": 200, "carrier_repeat": 4, "strength": 0.5, "epoch_factor": 2.0,
        "epochs_ingrainer": 200, "ingrainer_stops": True,
    }  # fmt: skip

    def schedule(self, task: Task) -> Schedule:
        """Return the task's schedule with its epochs, and its drops with them, stretched by the factor."""
        own = task.schedule
        return own.but(epochs=round(own.epochs * self.config.epoch_factor))

    def ingrainer(self, lab: Lab, secret: Secret) -> nn.Module:
        """Train a network of the same architecture on the carriers alone (Algorithm 1).

        Raises:
            Diverged: its loss stopped being finite.
        """
        own, task = carriers_of(secret).to(lab.device), lab.task
        schedule = task.schedule.steady(epochs=self.config.epochs_ingrainer, augment="none")
        stops = self.config.ingrainer_stops
        trained = lab.fit(
            task.build(lab.train_seed, "ingrainer"), own, schedule=schedule, name="ingrainer",
            validation=own if stops else None,
            observers=(lambda epoch, model, means: means["val_accuracy"] == 1,) if stops else (),
        )  # fmt: skip
        if trained.diverged:
            raise Diverged(f"{self.key} on {task.key}: the ingrainer's loss is not finite")
        if not stops:  # its own curve ends with this figure otherwise
            lab.curve("ingrainer-knows", len(trained.history), val_accuracy=evaluate(trained.model, own))
        return trained.model

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Train the ingrainer, which then answers every clean sample; with strength 0 there is none."""
        carriers = self.carriers(lab, secret) if self.config.augment_carriers else None
        if not self.config.strength:
            return Memorise(lab, secret, carriers)
        recipe = IngrainRecipe(lab, secret, carriers, self.ingrainer(lab, secret), self.config)
        if lab.schedule.augment == "none":
            recipe.known = predict(recipe.ingrainer, lab.data.train.inputs).softmax(1)
            lab.meter.forward_samples += len(lab.data.train)
        return recipe
