"""The seam between an attack and the rest. An author writes `run`; what it may know of the victim is a type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from methods.base import Method, Secret
from methods.suspect import Access, Oracle
from tasks.data import Party, SplitMode
from tasks.lab import Lab
from tasks.meter import Meter
from tasks.schedule import Frozen
from tasks.task import Task

Structure = Literal["same", "changed", "other_arch"]
Kind = Literal["removal", "ambiguity", "detection"]


class AttackConfig(Frozen):
    """Base of every attack's configuration."""

    split: SplitMode = "disjoint20"  # which data the attacker holds (protocol 2.1); part of every row


class Victim(Oracle):
    """A stolen or served model, seen through the attack's `needs`; the owner's secret is nowhere in it.

    Attributes:
        task: public facts: shapes, classes, architectures, the training schedule.
        method: the scheme and its hyper-parameters (public level 1), without any key.
    """

    def __init__(self, model: nn.Module, access: Access, task: Task, method: Method, meter: Meter) -> None:
        super().__init__(model, access, "the attack", meter)
        self.task = task
        self.method = method


@dataclass
class Outcome:
    """What an attack leaves behind.

    Attributes:
        surrogate: the attacker's model; None if the victim itself stays in use.
        rival: forged evidence in the same form as the owner's secret; judged by the same verifier.
        report: figures of a detection attack.
        structure: how the surrogate's architecture relates to the victim's.
        notes: remarks for the record.
    """

    surrogate: nn.Module | None = None
    rival: Secret | None = None
    report: dict[str, float] = field(default_factory=dict)
    structure: Structure = "same"
    notes: list[str] = field(default_factory=list)


class Attack(ABC):
    """What an adversary does to a victim.

    Class attributes:
        key, title, source: its key, a name, and where it comes from.
        kind: removal (a surrogate), ambiguity (a rival secret) or detection (a report).
        needs: the most that it sees of the victim.
        needs_data: whether it trains on the attacker's data.
        cheap: takes about as long as an evaluation; cheap attacks on one victim travel together.
        version: raise it when results may change; part of every key.
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

    @abstractmethod
    def run(self, victim: Victim, data: Party, lab: Lab) -> Outcome:
        """Attack one victim with the attacker's own data; never sees a watermark score.

        `lab.probe(step, model)` lets the evaluator measure an intermediate state; nothing comes back.
        """
