"""Neural Cleanse: a class that a small stamp reaches from everywhere gives a backdoor away; unlearn or prune it.

Paper: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao, "Neural Cleanse", IEEE S&P 2019,
    https://sites.cs.ucsb.edu/~bolunwang/assets/docs/backdoor-sp19.pdf; as run by SoK's toolkit, Lukas et al., S&P 2022,
    https://arxiv.org/abs/2108.04974; against null embedding in https://arxiv.org/abs/1910.01226, table 5
Access: weights (gradients), and a thousand clean labelled images of the attacker's.
Differs from the paper: all candidate triggers are optimised in one batch, for at most 100 passes instead of 1,000. A
    mask counts as stalled if it has not lost a hundredth of its size. The smallest trigger is removed whether it is
    flagged or not; a note says which. SoK's toolkit adds the pattern and clips; here it is blended, as in the paper.
    Pruning stops at a tenth of the trigger's success, a value of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from assay.attacks.base import Attack, Outcome, Victim
from assay.attacks.parts.training import divergence, fine_tuning, needs_samples, probes
from assay.attacks.parts.trigger_removal import Unlearning, prune_excited
from assay.attacks.parts.trigger_search import SearchConfig, Trigger, anomaly, search_triggers
from assay.methods.base import Method
from assay.tasks.data.splits import Labelled
from assay.tasks.lab import Lab
from assay.tasks.task import Task

FEW_CLASSES = 8  # below, the median of the norms means little


class Config(SearchConfig):
    """Settings of Neural Cleanse; those of the search stand in `SearchConfig`."""

    mode: Literal["detect", "unlearn", "prune"] = "detect"
    partial: bool = False  # SoK: one trigger per pair of classes, ranked by |m p|, no outlier test
    threshold: float = Field(2.0, gt=0)  # of the anomaly index
    epochs: int = Field(5, ge=0)  # unlearn (SoK; the original: 1)
    lr: float = Field(0.01, ge=0)  # unlearn
    stamped: float = Field(0.2, ge=0, le=1)  # unlearn: share of the clean images that carry the trigger
    ratio: float = Field(0.1, ge=0, le=1)  # prune: largest share of the last convolution's units
    residue: float = Field(0.1, ge=0, le=1)  # prune: success of the trigger at which it stops


@dataclass(frozen=True)
class _Finding:
    """What detection says: the smallest trigger, which samples it is for (N,), figures and remarks."""

    trigger: Trigger
    bearers: Tensor
    report: dict[str, float]
    notes: list[str]


class NeuralCleanse(Attack[Config]):
    """Search every class's smallest trigger, tell the class whose trigger is too small, and remove it on demand."""

    key = "neural-cleanse"
    title = "Neural Cleanse"
    source = "Wang et al., IEEE S&P 2019; Lukas et al. (SoK), S&P 2022"
    kind = "detection"
    access = "weights"
    uses_data = True
    laptop: ClassVar = {"passes": 30, "samples": 500, "patience": 2, "stall": 4, "epochs": 3}
    Config = Config

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why no trigger can be searched, or None."""
        if task.info.kind != "image":
            return f"a trigger is made of pixels; {task.dataset} holds {task.info.kind}"
        return needs_samples(self.config)

    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Return the report, and in modes `unlearn` and `prune` the cleansed copy.

        The report has `index` (the model's), `flagged` (how many classes), `suspect` (class of the smallest mask) and
        its `norm`, `reliable`, `passes` and per class `index_<t>` and `norm_<t>`; with `partial` the best pair
        (`source`, `suspect`) and its `norm` alone. The curve `neural-cleanse` has norm, success and passes per class
        (per pair: source · classes + target).
        """
        data = lab.data
        order = torch.randperm(len(data.train), generator=lab.stream("select"))[: self.config.samples]
        clean = data.train.take(order.to(data.train.labels.device))
        lab.meter.touch(clean.inputs)
        # Channels innermost: up to 1.4 times the images per second on the traffic-sign network, on two cores.
        frozen = victim.module().requires_grad_(False).to(memory_format=torch.channels_last)
        found = (self._pairs if self.config.partial else self._classes)(frozen, clean, victim.task, lab)
        if self.config.mode == "detect":
            return Outcome(report=found.report, notes=found.notes)
        model, images = victim.module(), clean.take(found.bearers).model_inputs()
        before = found.trigger.success(model, images)
        if self.config.mode == "unlearn":
            outcome = self._unlearn(model, found, clean, data.held_out, victim.task, lab)
        else:
            gone = prune_excited(model, found.trigger, images, self.config.ratio, self.config.residue)
            outcome = Outcome(model, report={"pruned": float(gone)})
        assert outcome.surrogate is not None
        after = found.trigger.success(outcome.surrogate, images)
        outcome.report |= {**found.report, "trigger_before": before, "trigger_after": after}
        outcome.notes = [*found.notes, *outcome.notes]
        return outcome

    def _classes(self, model: nn.Module, clean: Labelled, task: Task, lab: Lab) -> _Finding:
        """Search one trigger per class and compare their norms."""
        classes, bf16 = task.classes, task.schedule.precision == "bf16"
        triggers = search_triggers(model, clean, torch.arange(classes), self.config, lab, bf16=bf16)
        norms = triggers.norms
        seen = anomaly(norms, self.config.threshold)
        report = {
            "index": seen.index, "flagged": float(len(seen.flagged)), "suspect": float(seen.suspect),
            "norm": float(norms[seen.suspect]), "norm_median": seen.median, "norm_mad": seen.deviation,
            "reliable": float(classes >= FEW_CLASSES), "passes": float(triggers.passes.sum()),
        }  # fmt: skip
        for t, (index, norm) in enumerate(zip(seen.indices.tolist(), norms.tolist(), strict=True)):
            report |= {f"index_{t}": index, f"norm_{t}": norm}
            figures = {"norm": norm, "success": float(triggers.success[t]), "passes": float(triggers.passes[t])}
            lab.curve(self.key, t, index=index, **figures)
        notes = [] if seen.flagged else ["no class is flagged; the smallest mask counts as the trigger"]
        if not float(seen.indices.max()):
            notes.append("the masks hardly differ in size: every index is 0")
        if classes < FEW_CLASSES:
            notes.append(f"{classes} classes are too few for an outlier test")
        return _Finding(triggers.one(seen.suspect), clean.labels != seen.suspect, report, notes)

    def _pairs(self, model: nn.Module, clean: Labelled, task: Task, lab: Lab) -> _Finding:
        """Search one trigger per pair of classes; the smallest |m p| among those that reach the goal is the best."""
        classes, bf16 = task.classes, task.schedule.precision == "bf16"
        present = clean.labels.unique().cpu()
        pairs = torch.cartesian_prod(present, torch.arange(classes))
        sources, targets = pairs[pairs[:, 0] != pairs[:, 1]].unbind(1)
        triggers = search_triggers(model, clean, targets, self.config, lab, sources, bf16=bf16)
        sizes = (triggers.masks * triggers.patterns).abs().double().sum((1, 2, 3)).cpu()
        for number, (source, target) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
            figures = {"norm": float(sizes[number]), "success": float(triggers.success[number])}
            lab.curve(self.key, source * classes + target, **figures, passes=float(triggers.passes[number]))
        best = int(torch.where(triggers.success >= self.config.goal, sizes, sizes + sizes.max()).argmin())
        source, trigger = int(sources[best]), triggers.one(best)
        report = {
            "source": float(source), "suspect": float(trigger.target), "norm": float(sizes[best]),
            "passes": float(triggers.passes.sum()),
        }  # fmt: skip
        return _Finding(trigger, clean.labels == source, report, [])

    def _unlearn(
        self, model: nn.Module, found: _Finding, clean: Labelled, held_out: Labelled, task: Task, lab: Lab
    ) -> Outcome:
        """Fine-tune on clean images, a share of which (with `partial` all of the source class) carry the trigger."""
        chosen = found.bearers
        if not self.config.partial:
            chosen = torch.zeros_like(clean.labels, dtype=torch.bool)
            order = torch.randperm(len(clean), generator=lab.stream("stamped"))
            chosen[order[: round(self.config.stamped * len(clean))].to(chosen.device)] = True
        trained = lab.fit(
            model, clean, Unlearning(found.trigger, chosen), fine_tuning(task, self.config.epochs, self.config.lr),
            validation=held_out, select="val_best", observers=[probes(lab)],
        )  # fmt: skip
        return Outcome(trained.model, notes=divergence(trained))
