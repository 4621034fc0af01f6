"""The seam between an attack and the rest. An author writes `run`; what it may know of the victim is a type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
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
    # Also attack the unmarked model of the same seed and read the owner's mark from the result (the reading `beside`).
    # It shows whether a detector fires at every distilled or pruned model. For attacks that leave a surrogate.
    beside_unmarked: bool = False


A = TypeVar("A", bound=AttackConfig)


@dataclass(frozen=True)
class Needs:
    """All that an attack may use of one victim; access, data sets, models and keys beyond it are refused.

    Attributes:
        access: the most that it sees of the victim.
        data: whether it trains on the attacker's data. A model that the attacker trains on them without the victim is
            then measured for comparison.
        datasets: keys of further data sets; `lab.other(key)` hands them out.
        unmarked: roles of unmarked models; `lab.unmarked(role)` hands out copies. `null-<i>` are models of the owner's
            task that took part in nothing else: no embedding, no calibration.
        key: whether the owner's secret is assumed to be public; only then `victim.leaked` holds a copy of it.
        peers: how many marked models are compared with each other, the victim included. The evaluator reads every
            owner's mark from every model; the attack sees no peer and no secret.
        twin: whether the same attack also runs on the unmarked model of the same seed, for comparison.
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
        leaked: a copy of the owner's secret if the attack declares `Needs.key`, else None.
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
        trained: names of the layers that the attack trained, "" for all. The owner finds them by comparing weights.
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
    """False accusations. The evaluator reads each piece of evidence from the victim and from every suspect, and counts.

    Attributes:
        evidence: secrets in the method's form that were never embedded; may be a generator.
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
        architecture: key of the surrogate's architecture, where it is a network that was built anew.
        restored: with `structure="changed"`, the surrogate turned back into the victim's architecture. An owner who
            reads weights reads them there. None if this is impossible.
        adapted: set if the surrogate serves another task than the victim.
        rival: forged evidence in the form of the owner's secret; read by the same verifier.
        claims: accusations to be counted.
        report: what a detection attack found, as named numbers; other kinds may add figures.
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

        removal: a surrogate. ambiguity: a surrogate, a rival claim, or both. detection: a report, and a surrogate if
        the attack removed what it found. verification: claims, or nothing if marks of peers are compared. Any kind
        may report figures.

        Raises:
            BrokenOutcome: it lacks what its kind leaves behind, holds what another kind does, or a part is of the wrong
                type; one line.
        """
        faults = [*self._missing(kind), *self._foreign(kind), *self._mistyped()]
        if faults:
            raise BrokenOutcome(f"the outcome is none of kind {kind}: {'; '.join(faults)}")
        return self

    def _missing(self, kind: Kind) -> Iterator[str]:
        none = self.surrogate is None
        if kind == "removal" and none:
            yield "it leaves no surrogate"
        if kind == "ambiguity" and none and self.rival is None:
            yield "it leaves neither a surrogate nor a rival claim"
        if kind == "detection" and not self.report:
            yield "it leaves no report"
        for name, part in (("restored", self.restored), ("adapted", self.adapted)):
            if none and part is not None:
                yield f"{name} describes a surrogate, and there is none"

    def _foreign(self, kind: Kind) -> Iterator[str]:
        parts: tuple[tuple[str, object, tuple[Kind, ...]], ...] = (
            ("a surrogate", self.surrogate, ("removal", "ambiguity", "detection")),
            ("a rival claim", self.rival, ("ambiguity",)),
            ("claims", self.claims, ("verification",)),
        )
        for name, part, kinds in parts:
            if part is not None and kind not in kinds:
                yield f"it leaves {name}, which another kind does"

    def _mistyped(self) -> Iterator[str]:
        typed: list[tuple[str, object, type]] = [
            ("surrogate", self.surrogate, nn.Module),
            ("restored", self.restored, nn.Module),
            ("adapted", self.adapted, Adapted),
            ("rival", self.rival, dict),
            ("claims", self.claims, Claims),
            ("report", self.report, dict),
        ]
        if isinstance(self.claims, Claims):
            typed.append(("evidence", self.claims.evidence, Iterable))
            typed += [(f"suspect {name!r}", model, nn.Module) for name, model in self.claims.suspects.items()]
        for name, value, cls in typed:
            if value is not None and not isinstance(value, cls):
                yield f"{name} is {type(value).__name__}, not {cls.__name__}"
        for name, figure in self.report.items() if isinstance(self.report, dict) else ():
            if isinstance(figure, bool) or not isinstance(figure, int | float):
                yield f"report {name!r} is {type(figure).__name__}, not a number"
        if self.structure not in ("same", "changed", "other_arch"):
            yield f"structure is {self.structure!r}, not same, changed or other_arch"


class Attack(ABC, Generic[A]):
    """What an adversary does to a victim.

    Class attributes:
        key, title, source: its key, a name, and where it comes from.
        kind: removal (it leaves a surrogate), ambiguity (a rival secret), detection (a report) or verification (claims,
            or peers: the evaluator, who holds the secrets, counts the verifier's errors). See `Outcome.checked`.
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
        """Attack one victim. No watermark score is visible here.

        Args:
            victim: seen through the declared access; `labels(inputs)` are (N,), `logits(inputs)` (N, K). Its weights
                stay as they are: `victim.module()` is a copy.
            lab: the attacker's. `lab.data` holds its samples; split mode `none` leaves it empty.
                `lab.probe(step, model)` shows an intermediate model to the evaluator and returns nothing.

        Returns:
            What the attack's kind leaves behind. `Outcome.checked` is applied before a mark is read.

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
