"""The detector of soft-label perturbation: a small network beside the model that tells its answers from ordinary ones.

Shared by `usp` and `csp` (Chien & Shen 2022); "Eq." numbers are that paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

InputMap = Literal["log_softmax", "logits"]


class Detector(nn.Module):
    """A multi-layer perceptron from a model's outputs (N, K) to one score (N,); positive means "marked"."""

    def __init__(self, classes: int, widths: Sequence[int], input_map: InputMap) -> None:
        super().__init__()
        self.widths, self.input_map = list(widths), input_map
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((classes, *widths)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1] if widths else classes, 1))

    def forward(self, logits: Tensor) -> Tensor:
        """Return scores (N,) for logits (N, K); log-probabilities count as logits (Eq. 11, 12)."""
        shown = logits.log_softmax(1) if self.input_map == "log_softmax" else logits
        return self.layers(shown).squeeze(1)

    def tree(self) -> dict[str, Any]:
        """Return shape and weights as plain values and tensors on the CPU."""
        weights = {name: value.cpu() for name, value in self.state_dict().items()}
        return {"widths": self.widths, "input": self.input_map, "weights": weights}

    @staticmethod
    def from_tree(tree: dict[str, Any], device: torch.device) -> Detector:
        """Rebuild what `tree` described, drawing nothing from any generator."""
        weights = tree["weights"]
        with torch.device("meta"):
            detector = Detector(weights["layers.0.weight"].shape[1], tree["widths"], tree["input"])
        detector.load_state_dict(weights, assign=True)
        return detector.to(device).eval().requires_grad_(False)


def detector_loss(detector: Detector, marked: Tensor) -> Tensor:
    """Return mean -log sigmoid(D(marked)) with a gradient in the logits `marked` (B, K) alone, none in the detector.

    The marked half of Eq. 5; the unmarked half has no gradient in the model, its factor 1/2 is part of beta.
    """
    frozen = {name: weight.detach() for name, weight in detector.named_parameters()}
    return F.softplus(-functional_call(detector, frozen, (marked,))).mean()


class DetectorTraining:
    """A detector in training: its optimiser and its balanced accuracy over the previous epoch's outputs."""

    def __init__(self, detector: Detector, lr: float, drop_epoch: int) -> None:
        self.detector = detector
        self.lr, self.drop_epoch = lr, drop_epoch
        self.optimizer = torch.optim.Adam(detector.parameters(), lr, fused=True)
        self.accuracy = 0.0
        self.seen = 0
        self.hits = torch.zeros((), dtype=torch.int64, device=next(detector.parameters()).device)

    def start_epoch(self, epoch: int) -> None:
        """Read the accuracy of the epoch before (the only host synchronisation) and set the rate of this one."""
        if self.seen:
            self.accuracy = int(self.hits) / self.seen
        self.hits.zero_()
        self.seen = 0
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (0.1 if epoch >= self.drop_epoch else 1.0)

    def step(self, marked: Tensor, unmarked: Tensor, *, rest: bool = True) -> Tensor:
        """Train on logits (B, K) of either kind, targets 1 and 0 (Eq. 4, 5); return the loss, detached.

        With `rest`, the weights stay while the previous epoch's accuracy is 1, and move again once it falls.
        """
        outputs = torch.cat([marked, unmarked])
        targets = torch.cat([torch.ones_like(marked[:, 0]), torch.zeros_like(unmarked[:, 0])])
        scores = self.detector(outputs)
        loss = F.binary_cross_entropy_with_logits(scores, targets)
        self.hits += ((scores.detach() > 0) == (targets > 0)).sum()
        self.seen += len(targets)
        if not (rest and self.accuracy == 1.0):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return loss.detach()

    def polish(self, marked: Tensor, unmarked: Tensor, epochs: int, batch: int, generator: torch.Generator) -> None:
        """Train on fixed logits (N, K) of both models for some epochs, paired by sample, in a fresh order each."""
        for _ in range(epochs):
            for index in torch.randperm(len(marked), generator=generator).to(marked.device).split(batch):
                self.step(marked[index], unmarked[index], rest=False)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next epoch depends on."""
        return {
            "detector": dict(self.detector.state_dict()), "optimizer": self.optimizer.state_dict(),
            "accuracy": self.accuracy, "hits": self.hits, "seen": self.seen,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.accuracy, self.seen = state["accuracy"], state["seen"]
        self.hits.copy_(state["hits"])
