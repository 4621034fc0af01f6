"""The seam between a watermarking method and the rest.

An author writes `draw`, `recipe` and `read`, each a page's part, and inherits the rest. What is the same for all
is in `methods.embedding`; how an adversary who knows the method claims or denies is its `rival` (`methods.rival`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import nn

from assay.methods.null import Null, read_null
from assay.methods.reading import Reading
from assay.methods.rival import Rival
from assay.methods.suspect import Access, Suspect
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.schedule import Frozen, Schedule
from assay.tasks.training.trainer import Recipe

Secret = dict[str, Any]
"""A tree of tensors, numbers, strings and bytes (what `assay.tasks.training.checkpoint.save_tree` stores)."""

Family = Literal["bits", "triggers", "detector", "keys"]


class MethodConfig(Frozen):
    """Base of every method's configuration; defaults are the paper's."""

    allow_weak: bool = False  # keep a mark that misses the gate instead of failing the stage


C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class MethodNeeds:
    """What embedding uses besides the owner's data.

    Attributes:
        unmarked: roles of unmarked models that `lab.unmarked` hands out, each a shared stage. `clean` has the marked
            model's own streams (its paired baseline) and is always among them; others are independent.
        datasets: keys of further data sets that `lab.other` hands out.
        start: what embedding starts from: `scratch`, the clean model's initial weights; `clean`, the finished model.
    """

    unmarked: tuple[str, ...] = ("clean",)
    datasets: tuple[str, ...] = ()
    start: Literal["scratch", "clean"] = "scratch"


class Method(ABC, Generic[C]):
    """A watermarking scheme.

    Class attributes:
        key: the scheme's key; also its file's name with `_` for `-`.
        title, paper: for people: a name, and venue with link.
        access: what the verifier sees of a suspect.
        family: how its score behaves under "not marked"; selects the calibration of the SoK and the strict rule.
        version: raise it when results may change; part of every key.
        gate: the least score on the owner's own marked model; below it embedding has failed.
        laptop: overrides of the paper's defaults under the `laptop` and `smoke` profiles.
        embeds: False for a fingerprint, which marks nothing: the unmarked model is the victim.
        shares_null: whether one null serves all owners of a task, because keys can be drawn without training. A scheme
            that says no gets a null for each owner, with that owner's secret.
        rival: how an adversary who knows the scheme overwrites, forges and denies.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    access: ClassVar[Access]
    family: ClassVar[Family]
    version: ClassVar[int] = 1
    gate: ClassVar[float] = 0.98
    laptop: ClassVar[dict[str, Any]] = {}
    embeds: ClassVar[bool] = True
    shares_null: ClassVar[bool] = True
    rival: ClassVar[type[Rival[Any]]] = Rival
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: C) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    # --- what an author writes -------------------------------------------------------------------------------------

    def supports(self, task: Task) -> str | None:
        """Return why the method cannot mark this task's models, or None."""
        return None

    @abstractmethod
    def draw(self, lab: Lab) -> Secret:
        """Draw a secret from `lab.data` and `lab.stream("secret", ...)` alone.

        `lab.role` says who draws: the `owner`; an `attacker`, who has neither the owner's data nor its unmarked models;
        a `claimant`, whose key is never embedded.

        Returns:
            A tree of CPU tensors and plain values. Triggers go by the names `inputs` (images float32 (N, C, H, W) in
            [0, 1], or as stored: uint8, token ids int64) and `labels` int64 (N,), free bits by `bits` or `message`: the
            default rival knows these names.

        Raises:
            CapacityError: the task has no room for the secret.

        Example: one image of noise for each class.
            >>> def draw(self, lab):
            ...     labels = torch.arange(lab.task.classes)
            ...     inputs = torch.rand(len(labels), *lab.task.shape, generator=lab.stream("secret"))
            ...     return {"inputs": inputs, "labels": labels}
        """

    def recipe(self, lab: Lab, secret: Secret) -> Recipe:
        """Return what embedding varies of training; the default is a plain run.

        The recipe may complete the secret in place in its `finish`. Tensors of the secret lie on the CPU, models and
        batches on `lab.device`.

        Args:
            lab: of the owner, or of an attacker who overwrites; `lab.schedule` is the schedule of this run.
            secret: what `draw` returned.

        Raises:
            UnsupportedModel: the network has no place for the mark.
        """
        return Recipe()

    @abstractmethod
    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        """Read the mark: score, chance, p-value and the paper's decision. Nothing may change or be drawn.

        Args:
            suspect: `labels(inputs)` (N,), `logits(inputs)` (N, K) and `weights()` (tensors by name), as far as
                `access` allows; answers lie on its device. It may have other layers or classes than the owner's model.
            secret: of the owner, of a rival, or a claimant's.

        Raises:
            UnsupportedModel: the suspect lacks the carrier; `embedding.verify` turns that into "not applicable".
            AccessDenied: more is asked than `access` declares.
        """

    # --- what a few methods change ---------------------------------------------------------------------------------

    def needs(self, task: Task) -> MethodNeeds:
        """Return what embedding and drawing use besides the owner's data."""
        return MethodNeeds()

    def schedule(self, task: Task) -> Schedule:
        """Return the schedule of embedding; the default is the task's."""
        return task.schedule

    def carrier_layers(self, task: Task) -> tuple[str, ...]:
        """Return the names of the layers whose weights carry the mark by position; public knowledge, no secret."""
        return ()

    def score(self, suspect: Suspect, secret: Secret) -> tuple[float, int | None, int | None]:
        """Return (score, hits, trials) without a p-value, for nulls and searches; override if that is cheaper.

        The score is that of `read`, in [0, 1]; hits and trials are None where it counts nothing.

        Raises:
            UnsupportedModel: as `read`.
        """
        reading = self.read(suspect, secret)
        return reading.score, reading.hits, reading.trials

    def null(self, lab: Lab, secret: Secret | None) -> Null:
        """Read never-embedded keys from unmarked models, by `lab.calibration`; no marked model takes part.

        Args:
            lab: a claimant's, with the data of an owner; `lab.unmarked` hands out the roles of `lab.calibration`.
            secret: the owner's, where the scheme does not share its null; else None.
        """
        keys = [self.draw(lab.for_key(index)) for index in range(lab.calibration.keys)]
        return read_null(self, keys, {role: lab.unmarked(role) for role in lab.calibration.roles}, lab.meter)

    def served(self, model: nn.Module, secret: Secret) -> nn.Module:
        """Return the network that outsiders query, which may change answers; the default is the model itself.

        Args:
            model: the released network, eval mode; shared, so it must not be changed. A wrapper takes the same inputs
                (N, ...) and returns logits (N, K).
            secret: the owner's.
        """
        return model
