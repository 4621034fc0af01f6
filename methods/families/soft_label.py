"""Soft-label perturbation: a model taught to answer unlike an ordinary one, and the detector that notices.

What `usp` and `csp` share (Chien & Shen 2022): losses, recipe, secret, verification, and the attacker's counterparts.
"Eq." numbers are that paper's.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from assay.methods.base import Mark, Method, MethodConfig, Secret
from assay.methods.parts.calibration import calibrate
from assay.methods.parts.detector import Detector, DetectorTraining, InputMap, detector_loss
from assay.methods.parts.signature import committed, opens
from assay.methods.parts.statistics import binomial_tail, calibrated_rate
from assay.methods.suspect import Suspect
from assay.methods.verdict import Thresholds, Verdict
from assay.tasks.data.splits import Party
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.streams import global_stream
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Batch, Recipe, State, Terms, predict


class SoftLabelConfig(MethodConfig):
    """What the schemes with a detector share; the paper gives only the detector's rate, depth and the threshold."""

    alpha: float = Field(-0.01, le=0)  # of the divergence; negative, no value in the paper: 0.05 already costs accuracy
    beta: float = Field(0.1, ge=0)  # of the detector's verdict on the marked model
    temperature: float = Field(4.0, gt=0)  # T of Eq. 1; the value of the paper's distillation
    detector_lr: float = Field(0.008, gt=0)  # Adam
    detector_drop_epoch: int = Field(140, ge=0)  # the detector's rate falls to a tenth from this epoch on
    detector_widths: Annotated[tuple[int, ...], Field(strict=False)] = (128, 128, 64, 32)  # "five-layer MLP"
    detector_input: InputMap = "log_softmax"  # `logits` leaves the mark in the logits' common shift: students lose it
    use_kld: bool = True
    kl_direction: Literal["wm_vs_clean", "reverse"] = "wm_vs_clean"  # reverse has no upper bound; for study only
    use_detector_loss: bool = True
    polish_epochs: int | None = Field(None, ge=0)  # None: 1 where the net has batch norm, else 0
    negatives: Literal["independent", "adversary"] = "independent"  # whose outputs the score's unmarked half shows
    n_probe: int = Field(10_000, ge=1)  # at most; all the held-out samples if there are fewer
    threshold: float = Field(0.85, gt=0, lt=1)


def divergence(marked: Tensor, unmarked: Tensor, temperature: float, *, reverse: bool = False) -> Tensor:
    """Return T² KL(P_marked ‖ P_unmarked) of logits (B, K), mean over samples (Eq. 1); `reverse` swaps the two."""
    log_w, log_n = (marked / temperature).log_softmax(1), (unmarked / temperature).log_softmax(1)
    first, second = (log_n, log_w) if reverse else (log_w, log_n)
    return temperature**2 * (first.exp() * (first - second)).sum(1).mean()


class SoftLabelRecipe(Recipe):
    """Train model and detector in turns, beside a frozen unmarked model on the same augmented batch."""

    def __init__(self, config: SoftLabelConfig, task: Task, adversary: nn.Module, training: DetectorTraining) -> None:
        self.config = config
        self.task = task
        self.adversary = adversary.eval().requires_grad_(False)
        self.training = training
        self.epoch = 0
        self.adversary_samples = 0
        self.report: Terms = {}  # figures of the step besides its losses; they become curves

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Turn the detector's page; the accuracy that decides on its rest, the epoch before's, becomes a curve."""
        self.epoch = epoch
        self.training.start_epoch(epoch)
        self.report = {"detector_accuracy": torch.full((), self.training.accuracy, device=self.training.hits.device)}

    def perturbation(self, marked: Tensor, unmarked: Tensor) -> Terms:
        """Return alpha L_KLD (Eq. 2) and beta L_D (Eq. 6); a term with coefficient 0 is left out."""
        terms: Terms = {}
        if self.config.use_kld and self.config.alpha:
            reverse = self.config.kl_direction == "reverse"
            apart = divergence(marked, unmarked, self.config.temperature, reverse=reverse)
            terms["divergence"] = self.config.alpha * apart
        if self.config.use_detector_loss and self.config.beta:
            terms["detection"] = self.config.beta * detector_loss(self.training.detector, marked)
        return terms

    def terms(self, state: State, marked: Tensor, unmarked: Tensor, labels: Tensor) -> Terms:
        """Return the model's loss terms (Eq. 3, 2, 6) for logits (B, K) of the marked and the unmarked model."""
        return {"task": F.cross_entropy(marked, labels), **self.perturbation(marked, unmarked)}

    def step(self, state: State, batch: Batch) -> Terms:
        """Move the detector, then the model against the moved detector, from one forward pass."""
        with state.autocast():
            marked = state.model(batch.inputs)
            with torch.no_grad():
                unmarked = self.adversary(batch.inputs).float()
        self.adversary_samples += len(batch.inputs)
        marked = marked.float()
        detector = self.training.step(marked.detach(), unmarked)
        done = state.descend(self.terms(state, marked, unmarked, batch.labels))
        return {**done, "detector": detector, **self.report}

    def state_dict(self) -> dict[str, Any]:
        """Return the detector's training and the adversary's passes."""
        return {"training": self.training.state_dict(), "adversary_samples": self.adversary_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.training.load_state_dict(state["training"])
        self.adversary_samples = state["adversary_samples"]


class SoftLabelMethod(Method):
    """The common part of the schemes whose secret is a trained detector.

    Of the task's reference models the last supplies the negatives of the score; the others are the null models.
    """

    access = "logits"
    family = "detector"
    gate = 0.90
    Config = SoftLabelConfig

    def supports(self, task: Task) -> str | None:
        """At least three classes, and a null model besides the one that supplies the negatives."""
        if task.classes < 3:
            return f"{self.key} needs 3 classes or more, {task.key} has {task.classes}"
        return None if task.references >= 2 else f"{self.key} needs 2 reference models or more, got {task.references}"

    def unmarked(self, task: Task) -> tuple[str, ...]:
        """Return also the references, and `adversary`: the unmarked model that the detector learns to tell apart."""
        return (*super().unmarked(task), *self.nulls(task), "adversary")

    def training(self, task: Task, lab: Lab) -> DetectorTraining:
        """Return a fresh detector; its initial weights come from the stream `detector`."""
        with global_stream(lab.plugin, "detector", lab.seed):
            detector = Detector(task.classes, self.config.detector_widths, self.config.detector_input)
        return DetectorTraining(detector.to(lab.device), self.config.detector_lr, self.config.detector_drop_epoch)

    def complete(self, secret: Secret, training: DetectorTraining, task: Task, data: Party, lab: Lab) -> None:
        """Add detector, probes, negatives and the null rate to the secret, from held-out data and unmarked models."""
        if not len(data.held_out):
            raise UnsupportedModel(f"{self.key} needs held-out samples as probes; this party holds none")
        order = torch.randperm(len(data.held_out), generator=lab.stream("probe"))[: self.config.n_probe]
        probes = data.held_out.inputs[order.to(data.held_out.inputs.device)]
        detector = training.detector.eval().requires_grad_(False)
        nulls, judge = self._null_roles(task)
        hits = [int((detector(predict(lab.unmarked(role), probes)) > 0).sum()) for role in nulls]
        secret |= {
            "detector": detector.tree(),
            "probes": probes.cpu(),
            "negatives": predict(lab.unmarked(judge), probes).cpu(),
            "null_rates": [count / len(probes) for count in hits],
            "null_bound": calibrated_rate(hits, len(probes), 0.5),  # q0 of T5
        }
        secret |= committed(secret, lab.stream("secret", "salt"))

    def _null_roles(self, task: Task) -> tuple[list[str], str]:
        last = self.references(task)[-1]
        nulls = [role for role in self.nulls(task) if role.partition("|")[0] != last]
        return nulls, "adversary" if self.config.negatives == "adversary" else last

    def finish(self, model: nn.Module, recipe: Recipe, secret: Secret, data: Party, lab: Lab) -> nn.Module:
        """Polish the detector on what the model answers in eval mode, and complete the secret."""
        assert isinstance(recipe, SoftLabelRecipe)
        task, training = recipe.task, recipe.training
        epochs = self.config.polish_epochs
        if epochs is None:  # batch statistics in training differ from the adversary's running ones; forget that clue
            epochs = int(any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()))
        if epochs:
            marked, unmarked = (predict(net, data.train.inputs) for net in (model, recipe.adversary))
            training.polish(marked, unmarked, epochs, task.schedule.batch_size, lab.stream("detector", "polish"))
            lab.meter.forward_samples += len(marked) + len(unmarked)
        lab.meter.forward_samples += recipe.adversary_samples
        self.complete(secret, training, task, data, lab)
        return model

    def read(self, suspect: Suspect, secret: Secret) -> Verdict:
        """Return the detector's balanced accuracy on the suspect's answers and the cached negatives."""
        try:
            logits = suspect.logits(secret["probes"])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as why:  # torch's complaint about shapes
            raise UnsupportedModel(f"the suspect does not take the probes: {why}") from why
        if logits.shape[1] != secret["negatives"].shape[1]:
            raise UnsupportedModel(f"the suspect has {logits.shape[1]} classes, not {secret['negatives'].shape[1]}")
        detector = Detector.from_tree(secret["detector"], logits.device)
        hits, probes = int((detector(logits) > 0).sum()), len(logits)
        rejected = int((detector(secret["negatives"].to(logits.device)) <= 0).sum())
        # Accuracy on as many unmarked outputs as probes; only the first half depends on the suspect.
        matches, trials = hits + rejected, 2 * probes
        rate, score, nulls = hits / probes, matches / trials, secret["null_rates"]
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
        return Verdict(score, 0.5, threshold, p_value, score > threshold, "T5", matches, trials, metrics=metrics)

    def thresholds(self, task: Task, data: Party, secret: Secret, lab: Lab) -> Thresholds:
        """Calibrate on the null models alone."""
        models = [lab.unmarked(role) for role in self._null_roles(task)[0]]
        return calibrate(self, task, data, secret, lab, models)

    def null_keys(self, task: Task, data: Party, secret: Secret, lab: Lab) -> list[Secret]:
        """Return the owner's secret: another detector cannot be drawn without training."""
        return [secret]

    def overwrite(self, victim: nn.Module, task: Task, data: Party, lab: Lab, schedule: Schedule) -> Mark:
        """Embed a new mark with a new detector, against unmarked models that the attacker trains itself."""
        return super().overwrite(
            victim, task.but(references=2, processed=0), data, _own_models(task, data, lab), schedule
        )

    def forge(self, victim: Suspect, task: Task, data: Party, lab: Lab, draws: int) -> Secret:
        """Train only a detector, between an unchanged victim's answers and those of the attacker's own models.

        Nothing binds a detector to who trained the model, so this is expected to succeed; only the date of the
        owner's commitment speaks against it. One detector is trained, whatever `draws`.
        """
        few, own = task.but(references=2, processed=0), _own_models(task, data, lab)
        secret, training = self.draw(few, data, own), self.training(few, own)
        answers, plain = victim.logits(data.train.inputs), predict(own.unmarked("adversary"), data.train.inputs)
        schedule = self.schedule(few)
        training.polish(answers, plain, schedule.epochs, schedule.batch_size, lab.stream("detector", "forge"))
        self.complete(secret, training, few, data, own)
        return secret


def _own_models(task: Task, data: Party, lab: Lab) -> Lab:
    """Return the lab with unmarked models trained on `data` on demand: an attacker has no others."""
    trained: dict[str, nn.Module] = {}

    def unmarked(role: str) -> nn.Module:
        if role not in trained:
            net = task.build(lab.train_seed, role)
            trained[role] = lab.fit(net, data.train, schedule=task.schedule, name=f"own-{role}").model
        return copy.deepcopy(trained[role])

    return replace(lab, unmarked=unmarked)
