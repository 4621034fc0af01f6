"""The seam between a watermarking method and the rest.

An author writes small parts (`draw`, `recipe`, `read`) and inherits the public ones (`embed`, `verify`, `overwrite`,
`forge`), which do the seeding, the access checks, the gate and the calibration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from assay.methods.parts.calibration import Null, calibrate, null_distribution
from assay.methods.parts.forging import Forgery as Forgery
from assay.methods.parts.forging import adversarial_secret, contradiction
from assay.methods.suspect import Access, Suspect
from assay.methods.verdict import Thresholds, Verdict
from assay.tasks.data.splits import Party
from assay.tasks.errors import AssayError, Diverged, NotEmbedded, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Frozen, Schedule
from assay.tasks.training.trainer import Recipe

Secret = dict[str, Any]
"""A tree of tensors, numbers, strings and bytes (what `tasks.training.checkpoint.save_tree` stores)."""

Family = Literal["bits", "triggers", "detector", "keys"]

PROCESSES = ("fine-tune", "distill", "prune")
"""Attacks that an unmarked model may have gone through as well: they change how often a mark is read by chance."""


class MethodConfig(Frozen):
    """Base of every method's configuration; defaults are the paper's."""

    allow_weak: bool = False  # keep a mark that misses the gate instead of failing the stage


@dataclass
class Mark:
    """What embedding returns.

    Attributes:
        model: the marked network, plain architecture, eval mode.
        secret: what the owner keeps.
        response: key of the served API's response rule, None for plain answers.
        notes: remarks for the record.
    """

    model: nn.Module
    secret: Secret
    response: str | None = None
    notes: list[str] = field(default_factory=list)


class Method(ABC):
    """A watermarking scheme.

    Class attributes:
        key: the scheme's key; also its file's name with `_` for `-`.
        title, paper: for people: a name, and venue with link.
        access: what the verifier sees of a suspect.
        family: how its score behaves under "not marked"; selects the calibration of `sok` and `strict`.
        version: raise it when results may change; part of every key.
        gate: the least score on the owner's own marked model.
        laptop: overrides of the paper's defaults under the `laptop` and `smoke` profiles.
        forgeries: further procedures of forging that its literature describes (`forge_as`).
    """

    key: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    access: ClassVar[Access]
    family: ClassVar[Family]
    version: ClassVar[int] = 1
    gate: ClassVar[float] = 0.98
    laptop: ClassVar[dict[str, Any]] = {}
    forgeries: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: MethodConfig) -> None:
        self.config: Any = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    # --- what an author writes -------------------------------------------------------------------------------------

    def supports(self, task: Task) -> str | None:
        """Return why the method cannot mark this task's models, or None."""
        return None

    @abstractmethod
    def draw(self, task: Task, data: Party, lab: Lab) -> Secret:
        """Draw the secret from the owner's data and `lab.stream("secret", ...)` alone."""

    def recipe(self, task: Task, data: Party, secret: Secret, lab: Lab) -> Recipe:
        """Return what embedding varies of training; the default is a plain run."""
        return Recipe()

    @abstractmethod
    def read(self, suspect: Suspect, secret: Secret) -> Verdict:
        """Read the mark: score, chance, p-value and the paper's decision.

        Raise `UnsupportedModel` if the suspect lacks the carrier; `verify` turns it into "not applicable".
        """

    # --- what a few methods change ---------------------------------------------------------------------------------

    def unmarked(self, task: Task) -> tuple[str, ...]:
        """Return the roles of the unmarked models that embedding or drawing a key uses; each is a shared stage.

        `clean` has the marked model's own streams (its paired baseline) and is always among them, others are
        independent. The models of `references` and `nulls` are at hand in embedding only if they are named here too.
        """
        return ("clean",)

    def references(self, task: Task) -> tuple[str, ...]:
        """Return the roles of independent unmarked models, as they were trained."""
        return tuple(f"reference-{i}" for i in range(task.references))

    def nulls(self, task: Task) -> tuple[str, ...]:
        """Return the roles of the unmarked models on which thresholds are calibrated.

        The references, and of the first `task.processed` one more for each of `PROCESSES` (`reference-0|prune`).
        """
        references = self.references(task)
        return (*references, *(f"{role}|{process}" for role in references[: task.processed] for process in PROCESSES))

    def schedule(self, task: Task) -> Schedule:
        """Return the schedule of embedding; the default is the task's, or `continued`."""
        return self.continued(task.schedule) or task.schedule

    def start(self, task: Task, lab: Lab) -> nn.Module:
        """Return the network that embedding starts from: the clean model's initial weights, or itself (`continued`)."""
        return task.build(lab.train_seed) if self.continued(task.schedule) is None else lab.unmarked("clean")

    def continued(self, own: Schedule) -> Schedule | None:
        """Return the schedule by which a finished, unmarked model is marked, given the task's; None: it is not."""
        return None

    def finish(self, model: nn.Module, recipe: Recipe, secret: Secret, data: Party, lab: Lab) -> nn.Module:
        """Return the plain network to release, and complete the secret in place, after training."""
        return model

    def carrier_layers(self, task: Task) -> tuple[str, ...]:
        """Return the names of the layers whose weights carry the mark by position; public knowledge, no secret."""
        return ()

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int | None, int | None]:
        """Return (score, matches, trials) without a p-value, for calibration and search; override if cheaper."""
        verdict = self.read(suspect, secret)
        return verdict.score, verdict.matches, verdict.trials

    # --- the public parts ------------------------------------------------------------------------------------------

    def embed(self, task: Task, data: Party, lab: Lab) -> Mark:
        """Mark a model of `task` trained on the owner's `data`, and pass the gate.

        Raises:
            NotEmbedded: the mark's own score stays below the gate (unless `allow_weak`).
            Diverged: a loss stopped being finite.
        """
        secret = self.draw(task, data, lab)
        mark = self.implant(self.start(task, lab), secret, task, data, lab, self.schedule(task))
        verdict = self.verify(Suspect(mark.model, self.access, self.key), mark.secret)
        if verdict.score < self.gate:
            message = f"{self.key} on {task.key}: score {verdict.score:.4f} is below the gate {self.gate}"
            if not self.config.allow_weak:
                raise NotEmbedded(f"{message}; train longer or set allow_weak")
            mark.notes.append(f"weak: {message}")
        return mark

    def implant(self, model: nn.Module, secret: Secret, task: Task, data: Party, lab: Lab, schedule: Schedule) -> Mark:
        """Train `secret` into `model`; shared by `embed` and `overwrite`."""
        recipe = self.recipe(task, data, secret, lab)
        trained = lab.fit(model, data.train, recipe, schedule)
        if trained.diverged:
            raise Diverged(f"{self.key} on {task.key}: a loss is not finite after {len(trained.history)} epochs")
        return Mark(self.finish(trained.model, recipe, secret, data, lab).eval(), secret)

    def verify(self, suspect: Suspect, secret: Secret) -> Verdict:
        """Read the mark under the declared access; a suspect that cannot carry it gives `applicable=False`."""
        try:
            return self.read(suspect, secret)
        except UnsupportedModel as why:
            return Verdict.not_applicable(str(why), 0.0, 1.0, "none")

    @classmethod
    def shares_null(cls) -> bool:
        """Return whether one null distribution serves all owners of a task: keys can be drawn without training.

        Then calibrating is a stage of its own. A scheme that overrides `thresholds` calibrates for each owner, in the
        stage of embedding, with the models that its `unmarked` names.
        """
        return cls.thresholds is Method.thresholds

    def null(self, task: Task, data: Party, lab: Lab) -> Null:
        """Score never-embedded keys on the unmarked reference models; `data` are some owner's, no secret takes part."""
        models = [lab.unmarked(role) for role in self.nulls(task)]
        return null_distribution(self, self.null_keys(task, data, {}, lab), models, lab.meter)

    def thresholds(self, task: Task, data: Party, secret: Secret, lab: Lab) -> Thresholds:
        """Calibrate the three decision rules on unmarked reference models, never on the marked one."""
        return calibrate(self, task, data, secret, lab, [lab.unmarked(role) for role in self.nulls(task)])

    def null_keys(self, task: Task, data: Party, secret: Secret, lab: Lab) -> list[Secret]:
        """Return `task.calibration_keys` fresh keys that were never embedded; streams named apart from every owner's.

        The owner's `secret` is there for schemes whose keys cannot be drawn without training; those override
        `thresholds` too. In a shared calibration it is empty.
        """
        return [self.draw(task, data, lab_for_key(lab, index)) for index in range(task.calibration_keys)]

    def overwrite(self, victim: nn.Module, task: Task, data: Party, lab: Lab, schedule: Schedule) -> Mark:
        """Embed a new key into a copy of the victim with the attacker's data (public level 1: knows the method)."""
        secret = self.draw(task, data, lab)
        return self.implant(victim, secret, task, data, lab, schedule)

    def forge(self, victim: Suspect, task: Task, data: Party, lab: Lab, draws: int) -> Secret:
        """Return counterfeit evidence for an unchanged victim: the best of `draws` fresh keys."""
        best: tuple[float, Secret] | None = None
        for index in range(draws):
            secret = self.draw_unaided(victim, task, data, lab_for_key(lab, index))
            score = self.score(victim, secret)[0]
            lab.curve("forge", index, score=score)
            if best is None or score > best[0]:
                best = (score, secret)
        if best is None:
            raise AssayError("forge needs at least one draw")
        return best[1]

    def forge_adversarial(self, victim: Suspect, task: Task, data: Party, lab: Lab) -> Secret:
        """Return counterfeit triggers with labels fixed first: images are changed until an unchanged victim agrees."""
        own = lab_for_key(lab, 0)
        drawn = self.draw_unaided(victim, task, data, own)
        return adversarial_secret(drawn, victim.module(), own.stream("secret", "salt"))

    def draw_unaided(self, victim: Suspect, task: Task, data: Party, lab: Lab) -> Secret:
        """Draw a secret as somebody does who has none of the owner's unmarked models; override if `draw` asks one."""
        return self.draw(task, data, lab)

    def forge_as(self, forgery: Forgery, victim: Suspect, task: Task, data: Party, lab: Lab) -> Secret:
        """Return counterfeit evidence for an unchanged victim by one of `forgeries`.

        Each try is a point of the curve `forge`: its `score`, and further figures of the procedure.
        """
        raise UnsupportedModel(f"{self.key} is not forged by {forgery.procedure}")

    def contradict(self, secret: Secret, task: Task, lab: Lab) -> Secret:
        """Return what an attacker embeds to deny a leaked secret: triggers under other labels, complemented bits."""
        if self.family not in ("bits", "triggers"):
            raise UnsupportedModel(f"{self.key}: nobody has shown how to embed the contradiction of its secret")
        return contradiction(secret, task.classes, lab.stream("contradict"))


def lab_for_key(lab: Lab, index: int) -> Lab:
    """Return a lab whose streams are those of never-embedded key `index`; everything else is shared."""
    return Lab(
        plugin=f"{lab.plugin}|key-{index}",
        seed=lab.seed,
        device=lab.device,
        scratch=lab.scratch / f"key-{index}",
        train_seed=f"{lab.train_seed}|key-{index}",
        unmarked=lab.unmarked,
        meter=lab.meter,
    )
