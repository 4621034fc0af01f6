"""Pruning with re-training: delete the smallest weights, then recover the accuracy by training.

Paper: "re-training" of soft-label perturbation (USP, CSP), "pruning" of the ingrain paper, after Han et al.,
    NeurIPS 2015, https://arxiv.org/abs/1506.02626
Access: weights, and labelled samples of the task.
Differs from the paper: no source says whether pruned weights may grow again. They stay zero, as in Han et al.; without
    `keep_mask` they train like the others. The kept epoch is the best on the attacker's held-out data. On shorter tasks
    the epochs shrink with the owner's. The ingrain paper does not state its rate; 0.01 is ours there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from assay.attacks.base import Attack, AttackConfig, Outcome, Victim
from assay.attacks.parts.neurons import prune_neurons
from assay.attacks.parts.pruning import Scope, prune_weights
from assay.attacks.parts.training import (
    FineTuning,
    divergence,
    fine_tuning,
    needs_samples,
    probes,
    share_of_epochs,
)
from assay.methods.base import Method
from assay.tasks.lab import Lab
from assay.tasks.task import Task

_EPOCHS = {"usp_csp": 100, "ingrain": 25}


class Config(AttackConfig):
    """Settings of pruning with re-training; the defaults are those of USP and CSP (ingrain: ratio 0.1 to 0.6)."""

    unit: Literal["weights", "neurons"] = "weights"  # neurons: as `neuron-prune` ranks them; scopes global and layer
    ratio: float = Field(0.8, ge=0, le=1)  # share of the units that become zero
    scope: Scope = "global"  # what is ranked together; see `Scope`
    skip_last: bool = False  # spare the layer that gives the logits; scopes global and layer
    keep_mask: bool = True  # pruned weights stay zero
    epochs: int | None = Field(None, ge=0)  # None: those of `paper`, as a share of the owner's
    paper: Literal["usp_csp", "ingrain"] = "usp_csp"  # 100 or 25 epochs
    lr: Annotated[float, Field(ge=0)] | Literal["last"] = 0.01

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.unit == "neurons" and (self.scope not in ("global", "layer") or self.skip_last):
            raise ValueError("unit neurons takes scopes global and layer, and never the layer that gives the logits")
        return self


class Masked(FineTuning):
    """Fine-tuning in which some weights stay zero.

    A zero weight without gradient decays to zero and gathers no momentum: masking gradients keeps it, exactly.
    """

    def __init__(self, model: nn.Module, pruned: list[Tensor]) -> None:
        """Keep the zeros of the `pruned` tensors that are parameters of `model`; statistics are no parameters."""
        super().__init__()
        chosen = {tensor.data_ptr() for tensor in pruned}  # a state dict's entries are views of the parameters
        self.kept = {name: value != 0 for name, value in model.named_parameters() if value.data_ptr() in chosen}

    def on_gradients(self, model: nn.Module) -> None:
        """Drop the gradients of pruned weights."""
        for name, kept in self.kept.items():
            gradient = model.get_parameter(name).grad
            if gradient is not None:
                gradient.mul_(kept)


class PruneRetrain(Attack[Config]):
    """Zero the weights of smallest magnitude, then train what is left."""

    key = "prune-retrain"
    title = "Pruning with re-training"
    source = "Han et al., NeurIPS 2015; tables of soft-label perturbation (USP, CSP) and ingrain"
    access = "weights"
    uses_data = True
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why there is nothing to train on, or None."""
        return needs_samples(self.config)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the re-trained copy at the epoch with the best held-out accuracy; its curve opens with the pruned."""
        data = lab.data
        config, model = self.config, victim.module()
        pruned = self._prune(model)
        for place, tensor in enumerate(pruned):
            lab.curve("sparsity", place, share=float((tensor == 0).double().mean()))
        lab.probe(0, model)
        paper: str = config.paper
        epochs = share_of_epochs(victim.task, paper, _EPOCHS[paper]) if config.epochs is None else config.epochs
        trained = lab.fit(
            model, data.train, Masked(model, pruned) if config.keep_mask else FineTuning(),
            fine_tuning(victim.task, epochs, config.lr),
            validation=data.held_out, select="val_best", observers=[probes(lab)],
        )  # fmt: skip
        return Outcome(trained.model, notes=divergence(trained))

    def _prune(self, model: nn.Module) -> list[Tensor]:
        """Prune in place; return the tensors that hold zeros now."""
        config = self.config
        if config.unit == "weights":
            return prune_weights(model, config.ratio, config.scope, skip_last=config.skip_last)
        assert config.scope in ("global", "layer")  # the configuration allows neurons no other
        groups = [group for group, _ in prune_neurons(model, config.ratio, config.scope)]
        members = [member for group in groups for member in group.members if member.role != "consumer"]
        return [member.of(model) for member in members if not member.tensor.startswith("running")]
