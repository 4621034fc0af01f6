"""The adversary who knows a method: it presses its own mark in, claims what is there, or denies a leaked secret.

The default does what public knowledge allows for each kind of evidence. A scheme whose author wrote no rival must
not look safer than one whose author did. Labels of triggers and free bits are read off the victim; what can be
neither is the best of many fresh keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from assay.methods.embedding import Mark, implant
from assay.methods.parts.forging import adversarial_secret, contradiction
from assay.methods.parts.signature import committed
from assay.methods.suspect import Suspect
from assay.tasks.errors import AssayError, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.training.schedule import Frozen, Schedule

if TYPE_CHECKING:
    from assay.methods.base import Method, Secret

_BITS = ("message", "bits")  # entries of a secret that spell bits


class RivalConfig(Frozen):
    """Base of every rival's configuration: the attacker's settings, which no owner's key contains."""


R = TypeVar("R", bound=RivalConfig)


@dataclass(frozen=True)
class Forgery:
    """What a forger is given.

    Attributes:
        procedure: `own`, the strongest that is known; or one of `Rival.procedures`.
        draws: tries of a search.
        leaked: the owner's secret, for a procedure that starts from it; else None.
    """

    procedure: str = "own"
    draws: int = 200
    leaked: dict[str, Any] | None = None


class Rival(Generic[R]):
    """An adversary who knows the method and its settings, and no key.

    Class attributes:
        procedures: ways of forging that the method's literature describes, besides `own`, `search` and `adversarial`.
        leaking: those of them that start from the owner's secret.
    """

    procedures: ClassVar[tuple[str, ...]] = ()
    leaking: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[RivalConfig]] = RivalConfig

    def __init__(self, method: Method[Any], config: R) -> None:
        self.method = method
        self.config = config

    def draw(self, victim: nn.Module, lab: Lab) -> Secret:
        """Draw a secret as somebody does who has the victim and none of the owner's unmarked models."""
        return self.method.draw(lab)

    def overwrite(self, victim: nn.Module, lab: Lab, schedule: Schedule) -> Mark:
        """Embed a new key into a copy of the victim with the attacker's data."""
        return implant(self.method, victim, self.draw(victim, lab), lab, schedule)

    def unbounded(self) -> Method[Any]:
        """Return the method without a bound on gradients of its own: the optimiser is the attacker's choice."""
        return self.method

    def forge(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Return counterfeit evidence for an unchanged victim.

        Each try of a search is a point of the curve `forge`.

        Args:
            victim: seen with all that a forger may see: usually its weights.
            lab: the attacker's.
            forgery: the procedure, and what it is given.

        Raises:
            UnsupportedModel: the method's evidence cannot be forged so.
        """
        if forgery.procedure == "own":
            return self.claim(victim, lab, forgery)
        if forgery.procedure == "search":
            return self.search(victim, lab, forgery.draws)
        if forgery.procedure == "adversarial":
            own = lab.for_key(0)
            drawn = self.draw(victim.module(), own)
            return adversarial_secret(drawn, victim.module(), own.stream("secret", "salt"))
        raise UnsupportedModel(f"{self.method.key} is not forged by {forgery.procedure}")

    def claim(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
        """Forge by the strongest procedure that is publicly known; the default follows the kind of evidence."""
        own = lab.for_key(0)
        secret = self.draw(victim.module(), own)
        family, pair = self.method.family, (secret.get("inputs"), secret.get("labels"))
        name = next((name for name in _BITS if isinstance(secret.get(name), Tensor)), None)
        if family == "triggers" and all(isinstance(part, Tensor) for part in pair):
            forged = {**secret, "labels": victim.labels(secret["inputs"]).to(secret["labels"])}
        elif family == "bits" and name:
            forged = self._read_off(victim, secret, name)
        else:
            return self.search(victim, lab, forgery.draws)
        return committed(forged, own.stream("secret", "salt")) if "commitment" in secret else forged

    def search(self, victim: Suspect, lab: Lab, draws: int) -> Secret:
        """Return the best of `draws` fresh keys."""
        best: tuple[float, Secret] | None = None
        for index in range(draws):
            secret = self.draw(victim.module(), lab.for_key(index))
            score = self.method.score(victim, secret)[0]
            lab.curve("forge", index, score=score)
            if best is None or score > best[0]:
                best = (score, secret)
        if best is None:
            raise AssayError("forge needs at least one draw")
        return best[1]

    def deny(self, secret: Secret, lab: Lab) -> Secret:
        """Return what is embedded to deny a leaked secret: triggers under other labels, complemented bits.

        Raises:
            UnsupportedModel: nobody has shown how this evidence is contradicted.
        """
        if self.method.family not in ("bits", "triggers"):
            raise UnsupportedModel(f"{self.method.key}: nobody has shown how to embed the contradiction of its secret")
        return contradiction(secret, lab.task.classes, lab.stream("contradict"))

    def _read_off(self, victim: Suspect, secret: Secret, name: str) -> Secret:
        """Return a fresh secret whose free bits are those that the victim already spells, found one by one."""
        bits = secret[name].clone()
        flat, best = bits.view(-1), self.method.score(victim, {**secret, name: bits})[0]
        for place in range(len(flat)):
            before = flat[place].clone()
            flat[place] = -before if bool((secret[name] < 0).any()) else 1 - before.int()
            score = self.method.score(victim, {**secret, name: bits})[0]
            if score > best:
                best = score
            else:
                flat[place] = before
        return {**secret, name: bits}
