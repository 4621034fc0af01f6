"""Settings, losses, recipe and secret of soft-label perturbation, which `usp` and `csp` share (Chien & Shen 2022).

"Eq." numbers are that paper's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from assay.methods.base import MethodConfig, Secret
from assay.methods.parts.detector import Detector, DetectorTraining, InputMap, detector_loss
from assay.methods.parts.signature import committed
from assay.methods.parts.statistics import calibrated_rate
from assay.tasks.calibration import Calibration
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.streams import global_stream
from assay.tasks.training.norms import has_batch_norm
from assay.tasks.training.trainer import Batch, Recipe, State, Terms, predict


class SoftLabelConfig(MethodConfig):
    """Settings of a scheme with a detector. The paper gives only the detector's rate and depth, and the threshold."""

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
    references: int = Field(10, ge=2)  # unmarked models behind the secret's null rate; the last supplies negatives
    processed: int = Field(1, ge=0)  # how many of them are also used fine-tuned, distilled and pruned

    @property
    def judge(self) -> str:
        """The role of the reference that supplies the negatives and never counts as a null model."""
        return f"reference-{self.references - 1}"

    @property
    def null_roles(self) -> list[str]:
        """The roles of the unmarked models behind the secret's null rate."""
        return without(self.judge, Calibration(references=self.references, processed=self.processed))


def without(judge: str, calibration: Calibration) -> list[str]:
    """Return a calibration's roles except those of one reference, `reference-<i>`."""
    return [role for role in calibration.roles if role.partition("|")[0] != judge]


def divergence(marked: Tensor, unmarked: Tensor, temperature: float, *, reverse: bool = False) -> Tensor:
    """Return T² KL(P_marked ‖ P_unmarked) of logits (B, K), mean over samples (Eq. 1); `reverse` swaps the two."""
    log_w, log_n = (marked / temperature).log_softmax(1), (unmarked / temperature).log_softmax(1)
    first, second = (log_n, log_w) if reverse else (log_w, log_n)
    return temperature**2 * (first.exp() * (first - second)).sum(1).mean()


def fresh_detector(config: SoftLabelConfig, lab: Lab) -> DetectorTraining:
    """Return a detector before training; its initial weights come from the stream `detector`."""
    with global_stream(lab.plugin, "detector", lab.seed):
        detector = Detector(lab.task.classes, config.detector_widths, config.detector_input)
    return DetectorTraining(detector.to(lab.device), config.detector_lr, config.detector_drop_epoch)


def complete(secret: Secret, detector: Detector, config: SoftLabelConfig, lab: Lab) -> None:
    """Add detector, probes, negatives and the null rate to a secret in place, and commit to the whole.

    Raises:
        UnsupportedModel: the party at work holds no samples back.
    """
    held_out = lab.data.held_out
    if not len(held_out):
        raise UnsupportedModel("a detector needs held-out samples as probes; this party holds none")
    order = torch.randperm(len(held_out), generator=lab.stream("probe"))[: config.n_probe]
    probes = held_out.inputs[order.to(held_out.inputs.device)]
    detector = detector.eval().requires_grad_(False)
    hits = [int((detector(predict(lab.unmarked(role), probes)) > 0).sum()) for role in config.null_roles]
    negatives = "adversary" if config.negatives == "adversary" else config.judge
    secret |= {
        "detector": detector.tree(),
        "probes": probes.cpu(),
        "negatives": predict(lab.unmarked(negatives), probes).cpu(),
        "null_rates": [count / len(probes) for count in hits],
        "null_bound": calibrated_rate(hits, len(probes), 0.5),  # q0 of T5
    }
    secret |= committed(secret, lab.stream("secret", "salt"))


class SoftLabelRecipe(Recipe):
    """Train model and detector in turns, beside a frozen unmarked model on the same augmented batch.

    Attributes:
        adversary: the unmarked model that the detector learns to tell from the marked one.
        training: the detector in training.
        report: figures of the step besides its losses; they become curves.
    """

    def __init__(self, config: SoftLabelConfig, lab: Lab, secret: Secret) -> None:
        super().__init__()
        self.config, self.lab, self.secret = config, lab, secret
        self.adversary = lab.unmarked("adversary").to(lab.device).eval().requires_grad_(False)
        self.training = fresh_detector(config, lab)
        self.epoch = 0
        self.adversary_samples = 0
        self.report: Terms = {}

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        """Start the detector's epoch. The previous epoch's accuracy, which decides whether it trains, is recorded."""
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
        """Update the detector, then update the model against the new detector; both use one forward pass."""
        with state.autocast():
            marked = state.model(batch.inputs)
            with torch.no_grad():
                unmarked = self.adversary(batch.inputs).float()
        self.adversary_samples += len(batch.inputs)
        marked = marked.float()
        detector = self.training.step(marked.detach(), unmarked)
        done = state.descend(self.terms(state, marked, unmarked, batch.labels))
        return {**done, "detector": detector, **self.report}

    def finish(self, model: nn.Module) -> nn.Module:
        """Train the detector on the model's eval-mode answers (`polish_epochs`), and complete the secret."""
        lab, epochs = self.lab, self.config.polish_epochs
        if epochs is None:  # batch statistics in training differ from the adversary's running ones; forget that clue
            epochs = int(has_batch_norm(model))
        if epochs:
            marked, unmarked = (predict(net, lab.data.train.inputs) for net in (model, self.adversary))
            batch = lab.task.schedule.batch_size
            self.training.polish(marked, unmarked, epochs, batch, lab.stream("detector", "polish"))
            lab.meter.forward_samples += len(marked) + len(unmarked)
        lab.meter.forward_samples += self.adversary_samples
        complete(self.secret, self.training.detector, self.config, lab)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return the detector's training and the adversary's passes."""
        return {"training": self.training.state_dict(), "adversary_samples": self.adversary_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.training.load_state_dict(state["training"])
        self.adversary_samples = state["adversary_samples"]
