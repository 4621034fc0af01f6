"""The seam between an attack and the rest. An author writes `run`; what it may know of the victim is a type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer
from torch import nn

from assay.methods.base import Method, Secret
from assay.methods.suspect import Access, Oracle
from assay.tasks.data.splits import Labelled, Party, SplitMode
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter
from assay.tasks.training.schedule import Frozen, Schedule

Structure = Literal["same", "changed", "other_arch"]
Recovery = Literal["none", "original_head", "retrain_head"]
Kind = Literal["removal", "ambiguity", "detection", "verification"]


class AttackConfig(Frozen):
    """Base of every attack's configuration."""

    split: SplitMode = "disjoint20"  # which data the attacker holds (protocol 2.1); part of every row
    # Do the same to the unmarked model of the same seed, and read the owner's mark from that too: does a detector fire
    # at whatever was distilled or pruned? Removal attacks; their figures of that reading open with `beside_`.
    beside_unmarked: bool = False

    # Settings younger than results that are stored: at their defaults they change nothing, and keys do not name them.
    younger: ClassVar[tuple[str, ...]] = ("beside_unmarked",)

    @model_serializer(mode="wrap")
    def _canonical(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, young = type(self).model_fields, type(self).younger
        return {
            name: value for name, value in handler(self).items() if name not in young or value != fields[name].default
        }


class Victim(Oracle):
    """A stolen or served model, seen through the attack's `needs`; the owner's secret is not in it.

    Attributes:
        task: public facts: shapes, classes, architectures, the training schedule.
        method: the scheme and its hyper-parameters (public level 1), without any key.
        leaked: the owner's secret where it is public (level 2, `Attack.leaks_key`), else None.
    """

    def __init__(
        self, model: nn.Module, access: Access, task: Task, method: Method, meter: Meter, leaked: Secret | None = None
    ) -> None:
        super().__init__(model, access, "the attack", meter)
        self.task = task
        self.method = method
        self.leaked = leaked


@dataclass(frozen=True)
class Adapted:
    """What the evaluator needs to judge a surrogate that serves another task.

    Attributes:
        test: samples of the other task, on which the surrogate's worth is measured.
        head: name of the layer that gives the logits.
        trained: names of the layers that the attack trained, "" for all; an owner sees them by comparing weights.
        recovery: how the owner makes the surrogate answer as its verifier expects.
        schedule: of `retrain_head`.
    """

    test: Labelled
    head: str
    trained: tuple[str, ...]
    recovery: Recovery
    schedule: Schedule


@dataclass
class Outcome:
    """What an attack leaves behind.

    Attributes:
        surrogate: the attacker's model; None if the victim itself stays in use.
        restored: with `structure="changed"`, the surrogate in the victim's architecture again (factors multiplied out),
            from which an owner who reads weights reads them; None if it cannot be.
        rival: forged evidence in the same form as the owner's secret; judged by the same verifier.
        claims: evidence that was never embedded, maybe drawn one by one; the evaluator reads each on the victim and on
            `suspects`.
        suspects: further models by `<group>-<number>` (`unmarked-0`, `surrogate-0`, …).
        adapted: set if the surrogate serves another task than the victim.
        report: figures of a detection attack.
        structure: how the surrogate's architecture relates to the victim's.
        notes: remarks for the record.
    """

    surrogate: nn.Module | None = None
    restored: nn.Module | None = None
    rival: Secret | None = None
    claims: Iterable[Secret] = ()
    suspects: dict[str, nn.Module] = field(default_factory=dict)
    adapted: Adapted | None = None
    report: dict[str, float] = field(default_factory=dict)
    structure: Structure = "same"
    notes: list[str] = field(default_factory=list)


class Attack(ABC):
    """What an adversary does to a victim.

    Class attributes:
        key, title, source: its key, a name, and where it comes from.
        kind: removal (a surrogate), ambiguity (a rival secret), detection (a report) or verification (an error of the
            verifier: never-embedded claims, or the marks of peers; measured by the evaluator, who holds the secrets).
        needs: the most that it sees of the victim.
        needs_data: whether it trains on the attacker's data.
        cheap: takes about as long as an evaluation; cheap attacks on one victim travel together.
        version: raise it when results may change; part of every key.
        twin: its success is judged beside the same attack on the unmarked model of the same seed.
        laptop: overrides of the defaults under the `laptop` and `smoke` profiles.
        identity: settings under which the surrogate answers as the victim does; None if there are none.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    kind: ClassVar[Kind] = "removal"
    needs: ClassVar[Access]
    needs_data: ClassVar[bool] = False
    cheap: ClassVar[bool] = False
    version: ClassVar[int] = 1
    twin: ClassVar[bool] = False
    laptop: ClassVar[dict[str, Any]] = {}
    identity: ClassVar[dict[str, Any] | None] = None
    Config: ClassVar[type[AttackConfig]] = AttackConfig

    def __init__(self, config: AttackConfig) -> None:
        self.config: Any = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def supports(self, task: Task, method: Method) -> str | None:
        """Return why the attack does not apply to this pair, or None."""
        return None

    def datasets(self, task: Task) -> tuple[str, ...]:
        """Return the keys of the other data sets that the attack uses; `lab.other(key)` hands them out."""
        return ()

    def unmarked(self, task: Task, method: Method) -> tuple[str, ...]:
        """Return the roles of the unmarked models that the attack is given; `lab.unmarked(role)` hands out copies.

        `null-<i>` are models of the owner's task that took part in nothing else: no embedding, no calibration.
        """
        return ()

    def leaks_key(self) -> bool:
        """Return whether the owner's key is public (level 2); only then `victim.leaked` holds a copy of it."""
        return False

    def peers(self, task: Task) -> int:
        """Return how many marked models are compared with each other, the victim included; 0: none are.

        The evaluator reads every owner's mark from every model. The attack itself sees no peer and no secret.
        """
        return 0

    @abstractmethod
    def run(self, victim: Victim, data: Party, lab: Lab) -> Outcome:
        """Attack one victim with the attacker's own data; never sees a watermark score.

        `lab.probe(step, model)` lets the evaluator measure an intermediate state; nothing comes back.
        """
