"""The seam between an attack and the rest. An author writes `run`; what it may know of the victim is a type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import nn

from assay.methods.base import Method, Secret
from assay.methods.suspect import Access, Oracle
from assay.tasks.data.splits import Labelled, SplitMode
from assay.tasks.errors import BrokenOutcome
from assay.tasks.lab import Lab
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter
from assay.tasks.training.schedule import Frozen, Schedule

Structure = Literal["same", "changed", "other_arch"]
Recovery = Literal["none", "original_head", "retrain_head"]
Kind = Literal["removal", "ambiguity", "detection", "verification"]


class AttackConfig(Frozen):
    """Base of every attack's configuration."""

    split: SplitMode = "disjoint20"  # which data the attacker holds (docs/protocol.md); part of every row
    # Do the same to the unmarked model of the same seed, and read the owner's mark from that too: does a detector fire
    # at whatever was distilled or pruned? Removal attacks; the reading `beside`.
    beside_unmarked: bool = False


A = TypeVar("A", bound=AttackConfig)


@dataclass(frozen=True)
class Needs:
    """All that an attack may use of one victim; what is not declared is refused.

    Attributes:
        access: the most that it sees of the victim.
        data: whether it trains on the attacker's data.
        datasets: keys of further data sets; `lab.other(key)` hands them out.
        unmarked: roles of unmarked models; `lab.unmarked(role)` hands out copies. `null-<i>` are models of the owner's
            task that took part in nothing else: no embedding, no calibration.
        key: whether the owner's key is public; only then `victim.leaked` holds a copy of it.
        peers: how many marked models are compared with each other, the victim included. The evaluator reads every
            owner's mark from every model; the attack sees no peer and no secret.
        twin: whether its success is judged beside the same attack on the unmarked model of the same seed.
    """

    access: Access
    data: bool = False
    datasets: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()
    key: bool = False
    peers: int = 0
    twin: bool = False


class Victim(Oracle):
    """A stolen or served model, seen through the attack's declared access; the owner's secret is not in it.

    Attributes:
        task: public facts: shapes, classes, architectures, the training schedule.
        method: the scheme and its hyper-parameters, without any key.
        leaked: the owner's secret where the attack declares that it is public, else None.
    """

    def __init__(
        self,
        model: nn.Module,
        access: Access,
        task: Task,
        method: Method[Any],
        meter: Meter,
        leaked: Secret | None = None,
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


@dataclass(frozen=True)
class Claims:
    """Accusations that the evaluator counts: evidence that nobody embedded, read from the victim and from others.

    Attributes:
        evidence: secrets in the method's form, maybe drawn one by one.
        suspects: further models by `<group>-<number>` (`unmarked-0`, `surrogate-0`, …).
    """

    evidence: Iterable[Secret]
    suspects: Mapping[str, nn.Module]


@dataclass
class Outcome:
    """What an attack leaves behind.

    Attributes:
        surrogate: the attacker's model; None if the victim itself stays in use.
        structure: how the surrogate's architecture relates to the victim's.
        architecture: key of the surrogate's architecture, where `structure` is `other_arch` and it has one.
        restored: with `structure="changed"`, the surrogate in the victim's architecture again, from which an owner who
            reads weights reads them; None if it cannot be.
        adapted: set if the surrogate serves another task than the victim.
        rival: forged evidence in the form of the owner's secret; read by the same verifier.
        claims: accusations to be counted.
        report: figures of a detection attack, or further figures of any other.
        notes: remarks for the record.

    Example:
        >>> Outcome(rival={"bits": ...}).checked("ambiguity").structure
        'same'
    """

    surrogate: nn.Module | None = None
    structure: Structure = "same"
    architecture: str | None = None
    restored: nn.Module | None = None
    adapted: Adapted | None = None
    rival: Secret | None = None
    claims: Claims | None = None
    report: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def checked(self, kind: Kind) -> Outcome:
        """Return this outcome if it is one of the attack's kind.

        Raises:
            BrokenOutcome: it lacks what its kind leaves behind, holds what another kind does, or a part is of the wrong
                type; one line.
        """
        lacks = {
            "removal": self.surrogate is None and "no surrogate",
            "ambiguity": self.surrogate is None and self.rival is None and "neither a surrogate nor a rival claim",
            "detection": not self.report and "no report",
            "verification": False,
        }[kind]
        strange = [
            self.surrogate is not None and kind in ("detection", "verification") and "a surrogate",
            self.rival is not None and kind != "ambiguity" and "a rival claim",
            self.claims is not None and kind != "verification" and "claims",
        ]
        typed = (
            ("surrogate", self.surrogate, nn.Module),
            ("restored", self.restored, nn.Module),
            ("adapted", self.adapted, Adapted),
            ("rival", self.rival, dict),
            ("claims", self.claims, Claims),
            ("report", self.report, dict),
        )
        wrong = [
            f"{name} is {type(value).__name__}, not {cls.__name__}"
            for name, value, cls in typed
            if value is not None and not isinstance(value, cls)
        ]
        wrong += [
            f"report {name!r} is {type(value).__name__}, not a number"
            for name, value in (self.report.items() if isinstance(self.report, dict) else ())
            if isinstance(value, bool) or not isinstance(value, int | float)
        ]
        if self.structure not in ("same", "changed", "other_arch"):
            wrong.append(f"structure is {self.structure!r}, not same, changed or other_arch")
        faults = [f"it leaves {lacks}"] if lacks else []
        faults += [f"it leaves {what}, which another kind does" for what in strange if what]
        if faults + wrong:
            raise BrokenOutcome(f"the outcome is none of kind {kind}: {'; '.join(faults + wrong)}")
        return self


class Attack(ABC, Generic[A]):
    """What an adversary does to a victim.

    Class attributes:
        key, title, source: its key, a name, and where it comes from.
        kind: removal (a surrogate), ambiguity (a rival secret), detection (a report) or verification (an error of the
            verifier: never-embedded claims, or the marks of peers; measured by the evaluator, who holds the secrets).
        access: the most that it sees of any victim.
        uses_data: whether it trains on the attacker's data.
        cheap: takes about as long as an evaluation; cheap attacks on one victim travel together.
        version: raise it when results may change; part of every key.
        laptop: overrides of the defaults under the `laptop` and `smoke` profiles.
        identity: settings under which the surrogate answers as the victim does; None if there are none.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    kind: ClassVar[Kind] = "removal"
    access: ClassVar[Access]
    uses_data: ClassVar[bool] = False
    cheap: ClassVar[bool] = False
    version: ClassVar[int] = 1
    laptop: ClassVar[dict[str, Any]] = {}
    identity: ClassVar[dict[str, Any] | None] = None
    Config: ClassVar[type[AttackConfig]] = AttackConfig

    def __init__(self, config: A) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"

    def supports(self, task: Task, method: Method[Any]) -> str | None:
        """Return why the attack does not apply to this pair, or None."""
        return None

    def needs(self, task: Task, method: Method[Any]) -> Needs:
        """Return all that the attack may use; the default is its access and whether it uses data."""
        return Needs(self.access, data=self.uses_data)

    @abstractmethod
    def run(self, victim: Victim, lab: Lab) -> Outcome:
        """Attack one victim; never sees a watermark score.

        Args:
            victim: seen through the declared access; `labels(inputs)` are (N,), `logits(inputs)` (N, K). Its weights
                stay as they are: `victim.module()` is a copy.
            lab: the attacker's. `lab.data` holds its samples, none of them where the split mode says so;
                `lab.probe(step, model)` lets the evaluator measure an intermediate state, and nothing comes back.

        Returns:
            What the kind leaves behind; `Outcome.checked` is applied to it before anything is read.

        Raises:
            UnsupportedModel: the attack meets a network that it cannot attack; the cell is then not applicable.
            AccessDenied: more is asked than the attack declares; the cell fails.

        Example: halve every weight.
            >>> def run(self, victim, lab):
            ...     model = victim.module()
            ...     with torch.no_grad():
            ...         for parameter in model.parameters():
            ...             parameter.mul_(0.5)
            ...     return Outcome(model)
        """
