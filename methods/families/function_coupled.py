"""Function-coupled watermarks: two classes' ordinary images, joined into triggers of a third class.

What `fcw-direct` and `fcw-invisible` share (Wen et al. 2023): classes, target check, recipe and verification.
"Eq." numbers are that paper's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from assay.methods.base import Method, MethodConfig, MethodNeeds, Secret
from assay.methods.families.coupled_rival import CoupledRival
from assay.methods.null import Null
from assay.methods.parts.class_pairs import (
    Pair,
    Rule,
    check_classes,
    choose_sources,
    choose_target,
    pairs,
    plain_images,
)
from assay.methods.parts.masking import CoupledRecipe, Granularity, Tuning, WeightMasks
from assay.methods.parts.mixing import KeyBatches
from assay.methods.parts.signature import committed, opens
from assay.methods.parts.statistics import LEVEL, binomial_tail, calibrated_rate, fisher_control, least_hits
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Labelled, to_model_input
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Recipe, predict


class CoupledConfig(MethodConfig):
    """What both kinds of triggers share. The paper gives neither p nor the fine-tuning set nor its rate."""

    n_triggers: int = Field(90, ge=1)  # trained on; the paper: less than 1 % of the training set
    n_verify: int = Field(90, ge=1)  # asked in verification
    n_wm: int = Field(10, ge=1)  # triggers behind each clean batch; the released code's
    sources: Pair | None = (0, 3)  # classes of the two images; None: drawn
    target: int | None = Field(1, ge=0)  # the triggers' class; None: drawn
    references: int = Field(10, ge=1)  # unmarked models that are asked about the triggers before they are used
    largest_null_rate: float = Field(0.1, ge=0, le=1)  # of triggers that an unmarked model may answer with the target
    masking: bool = True
    mask_drop: float = Field(0.1, ge=0, lt=1)  # p: the share that is dropped
    mask_every: Annotated[int, Field(ge=1)] | Literal["epoch"] = "epoch"  # steps; the text also says "each iteration"
    mask_granularity: Granularity = "element"
    variant: Literal["paper", "released"] = "paper"  # released: masked weights become 0 for good, nothing is rescaled
    ft_enhance: bool = True
    ft_samples: int = Field(1000, ge=1)  # K_ft; as many as the paper's attacker takes
    ft_lr: float = Field(0.1, ge=0)  # eta', relative to the epoch's learning rate
    ft_steps_per_epoch: int = Field(1, ge=0)
    start: Literal["scratch", "clean"] = "scratch"  # clean: the released code's, from a finished model
    epochs_clean: int = Field(40, ge=1)  # of start clean

    @model_validator(mode="after")
    def _three_classes(self) -> CoupledConfig:
        check_classes(self.sources, self.target)
        return self


W = TypeVar("W", bound=CoupledConfig)


@dataclass(frozen=True)
class _Family:
    """Triggers of two classes before they have a target: joined (n, C, H, W) to train on, others as controls."""

    sources: tuple[int, int]
    targets: Sequence[int]
    joined: Tensor
    others: Tensor


def _references(count: int) -> tuple[str, ...]:
    return tuple(f"reference-{i}" for i in range(count))


def _answered(net: nn.Module, asked: Tensor, classes: int) -> list[int]:
    """Return how many of the triggers a network gives to each class."""
    counts: list[int] = torch.bincount(predict(net, asked).argmax(1), minlength=classes).tolist()
    return counts


class CoupledMethod(Method[W]):
    """The common part: only `join` differs."""

    access = "labels"
    family = "triggers"
    version = 3
    gate = 0.98
    rival: ClassVar = CoupledRival
    Config = CoupledConfig
    laptop: ClassVar[dict[str, Any]] = {"mask_every": 10, "references": 5}

    @abstractmethod
    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Return triggers from pairs of images (n, C, H, W) in pixel space."""

    def supports(self, task: Task) -> str | None:
        """Images of at least three classes, and the configured classes among them."""
        if task.info.kind != "image":
            return f"the triggers are made of images; {task.dataset} holds {task.info.kind}"
        if task.classes < 3:
            return f"two source classes and a target need 3 classes; {task.dataset} has {task.classes}"
        given = [*(self.config.sources or ()), self.config.target or 0]
        if max(given) >= task.classes:
            return f"class {max(given)} is none of {task.classes}; name other sources and target, or null to draw them"
        return None

    def needs(self, task: Task) -> MethodNeeds:
        """Also the references: the target check and the null rate need unmarked models."""
        return MethodNeeds(unmarked=("clean", *_references(self.config.references)), start=self.config.start)

    def schedule(self, task: Task) -> Schedule:
        """Return the task's schedule; with start `clean`, for as many epochs as the released code trains."""
        return task.schedule.but(epochs=self.config.epochs_clean) if self.config.start == "clean" else task.schedule

    # --- the secret ------------------------------------------------------------------------------------------------

    def draw(self, lab: Lab) -> Secret:
        """Draw pairs of the party's images, check the target on unmarked models, and commit.

        An attacker draws its classes and has no unmarked models. A claimant asks for another class than the owner's,
        because a network that was trained for a family of triggers answers all of its members.

        Raises:
            CapacityError: a source class has fewer than two images.
        """
        if lab.role == "attacker":
            return self.draw_by(Rule(), lab, [])
        barred = Rule(barred=self.config.target)
        rule = barred if lab.role == "claimant" else Rule(self.config.sources, self.config.target)
        return self.draw_by(rule, lab, [lab.unmarked(role) for role in _references(self.config.references)])

    def draw_by(self, rule: Rule, lab: Lab, references: Sequence[nn.Module]) -> Secret:
        """Draw a secret with the classes of `rule`, whose target is checked on `references`."""
        drawn, classes = self._family(rule, lab), lab.task.classes
        sources, joined = drawn.sources, drawn.joined
        asked = joined[: self.config.n_verify]
        answers = [_answered(net, asked, classes) for net in references]
        target = self._target(drawn, answers)
        hits = [count[target] for count in answers]
        secret = {
            "inputs": joined.cpu(),
            "labels": torch.full((len(joined),), target),  # Eq. 1b
            "control_inputs": drawn.others.cpu(),
            "sources": list(sources),
            "target": target,
            "classes": classes,
            "null_rates": [count / len(asked) for count in hits],
            "null_bound": calibrated_rate(hits, len(asked), 1 / classes) if hits else 1 / classes,
            **plain_images(lab.data.held_out, sources),
        }
        return committed(secret, lab.stream("secret", "salt"))

    def _family(self, rule: Rule, lab: Lab) -> _Family:
        draws, train = lab.stream("secret"), lab.data.train
        sources, targets = choose_sources(rule, train, lab.task, draws)
        return _Family(sources, targets, *self._triggers(train, sources, draws))

    def _target(self, drawn: _Family, answers: Sequence[Sequence[int]]) -> int:
        asked = min(self.config.n_verify, len(drawn.joined))
        return choose_target(drawn.targets, answers, self.config.largest_null_rate * asked)

    def _triggers(self, train: Labelled, sources: tuple[int, int], draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return triggers, and controls from other pairs of the same classes."""
        count = self.config.n_triggers
        first, second = (train.of_class(label).inputs for label in sources)
        left, right = pairs(len(first), len(second), count, draws)
        images = self.join(
            to_model_input(first[left.to(first.device)]), to_model_input(second[right.to(second.device)])
        )
        return images[:count], images[count:]

    def null(self, lab: Lab, secret: Secret | None) -> Null:
        """Read fresh keys of other classes from each unmarked model, which has no say in their targets.

        A target that was chosen because a model does not answer with it says nothing of the next model. So the target
        of a key that is read from a model is checked on the other references alone.
        """
        rule, roles = Rule(barred=self.config.target), lab.calibration.roles
        references, nets = _references(lab.calibration.references), {role: lab.unmarked(role) for role in roles}
        trials = min(self.config.n_verify, self.config.n_triggers)
        null = Null([[] for _ in roles], [[] for _ in roles], trials, list(roles))
        for index in range(lab.calibration.keys):
            drawn = self._family(rule, lab.for_key(index))
            asked = drawn.joined[: self.config.n_verify]
            answers = {role: _answered(net, asked, lab.task.classes) for role, net in nets.items()}
            for place, role in enumerate(roles):
                strangers = [answers[other] for other in references if other != role.partition("|")[0]]
                hits = answers[role][self._target(drawn, strangers)]
                null.hits[place].append(hits)
                null.scores[place].append(hits / trials)
        return null

    # --- embedding -------------------------------------------------------------------------------------------------

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Mix in the triggers; mask and fine-tune as configured; remark on a target that unmarked models like."""
        own, train, batch = self.config, lab.data.train, lab.schedule.batch_size
        released = own.variant == "released"
        masks = WeightMasks(
            own.mask_drop if own.masking else 0.0,
            lab,
            granularity=own.mask_granularity,
            every=None if own.mask_every == "epoch" else own.mask_every,
            for_good=released,
        )
        tuning = None
        if own.ft_enhance and own.ft_steps_per_epoch and not released:  # the released code draws X_ft and leaves it
            order = torch.randperm(len(train), generator=lab.stream("inject", "fine-tuning"))
            chosen = train.take(order[: own.ft_samples].to(train.labels.device))
            tuning = Tuning(chosen, own.ft_lr, lab.schedule, own.ft_steps_per_epoch, len(train))
        keys = KeyBatches(secret["inputs"], secret["labels"], own.n_wm, lab)
        # Batches, as in the released code, show a trigger more often than e %, its share of the data (section 4.2.1).
        seen = len(train) // batch * own.n_wm / len(keys.labels)
        lab.curve("triggers", 0, share=len(keys.labels) / (len(train) + len(keys.labels)), seen_per_epoch=seen)
        recipe = CoupledRecipe(keys, masks, tuning, lab, apart=secret["inputs"].shape[1:] != lab.task.shape)
        most = max(secret["null_rates"], default=0.0)
        if most > own.largest_null_rate:
            recipe.notes.append(f"unmarked models already answer up to {most:.0%} of triggers with {secret['target']}")
        return recipe

    # --- verification ----------------------------------------------------------------------------------------------

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Count triggers answered with the target; T5 with the unmarked models' rate, T7 and T4 in the metrics.

        The paper leaves the threshold open; p <= 1e-3 decides. T4 compares with triggers of the same family that were
        never trained on: a large p says that the rule covers the family.
        """
        answers, labels = self._answers(suspect, secret), secret["labels"][: self.config.n_verify]
        hits, asked, target = int((answers == labels).sum()), len(labels), secret["target"]
        controls = int((self._ask(suspect, secret["control_inputs"], secret) == target).sum())
        allowed = [label for label in range(secret["classes"]) if label not in secret["sources"]]
        counts = torch.bincount(answers, minlength=secret["classes"])
        rank = int((counts[allowed] >= counts[target]).sum())
        plain = self._ask(suspect, secret["source_inputs"], secret)
        metrics = {
            "p_exact": max(rank, 1) / len(allowed),  # T7; a forger's target may be a source class, which has no rank
            "p_control": fisher_control(hits, asked, controls, len(secret["control_inputs"])),
            "control_score": controls / max(len(secret["control_inputs"]), 1),
            "largest_share": int(counts.max()) / asked,  # of any one class: what an unmarked model is like
            "null_bound": secret["null_bound"],
            "commitment_opens": float(opens(secret)),
        }
        p_value = binomial_tail(hits, asked, secret["null_bound"])
        if len(plain):  # an attacker may hold no images back
            known, astray = plain == secret["source_labels"], int((plain == target).sum())
            for name, label in zip(("first", "second"), secret["sources"], strict=True):
                own = known[secret["source_labels"] == label]
                if len(own):  # a blend that is nearly an image of its class may cost that class
                    metrics[f"{name}_source_accuracy"] = float(own.double().mean())
            # One who takes plain images for the target rather than for what they are tells no trigger from an image:
            # an untrained or ruined network answers everything alike, with the target as likely as with any class.
            p_value = 1.0 if astray > int(known.sum()) else p_value
        threshold = min(least_hits(asked, secret["null_bound"], LEVEL) / asked, 1.0)
        return Reading(
            hits / asked, 1 / secret["classes"], threshold, p_value, p_value <= LEVEL, "T5", hits, asked,
            metrics=metrics,
        )  # fmt: skip

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int, int]:
        """Return (share of triggers answered with the target, how many, of how many)."""
        labels = secret["labels"][: self.config.n_verify]
        hits = int((self._answers(suspect, secret) == labels).sum())
        return hits / len(labels), hits, len(labels)

    def _answers(self, suspect: Suspect, secret: Secret) -> Tensor:
        # As drawn, so in random order: nothing is selected by the marked model's confidence, as the released code does.
        return self._ask(suspect, secret["inputs"][: self.config.n_verify], secret)

    def _ask(self, suspect: Suspect, inputs: Tensor, secret: Secret) -> Tensor:
        if not len(inputs):
            return torch.zeros(0, dtype=torch.long)
        answers = suspect.labels(inputs).cpu()
        if len(answers) and int(answers.max()) >= secret["classes"]:
            raise UnsupportedModel(f"the suspect answers class {int(answers.max())} of {secret['classes']}")
        return answers
