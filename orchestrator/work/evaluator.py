"""What the evaluator, who holds secret and test set, measures of an attack. It decides nothing."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from assay.attacks.base import Outcome
from assay.methods.base import Method
from assay.methods.embedding import verify
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect
from assay.orchestrator.records import AttackRecord, MarkRecord, ReadingRecord
from assay.orchestrator.store import write_json
from assay.orchestrator.work.adapted import Seen, seen
from assay.orchestrator.work.bench import Bench
from assay.orchestrator.work.verifier_errors import Owner, cross_verify, false_claims
from assay.results.decisions import Null, Rules, thresholds
from assay.tasks.data.splits import Party
from assay.tasks.errors import UnsupportedModel
from assay.tasks.training.trainer import evaluate, predict

_OTHER_HEAD = "the surrogate answers with another task's classes"

Points = list[dict[str, Any]]


class Evaluator:
    """Reads the owner's mark from what one attack makes of a victim.

    Attributes:
        points: the curve of the attack so far: accuracy and score per step.
    """

    def __init__(self, bench: Bench, method: Method[Any]) -> None:
        self.bench, self.method = bench, method
        self.key = bench.identity["embed"]
        self.secret = bench.secret(self.key)
        self._points = bench.store.scratch(bench.stage.key) / "probes.json"
        # In the scratch folder, because a resumed attack does not pass its first steps again.
        self.points: Points = json.loads(self._points.read_text("utf-8")) if self._points.exists() else []

    def probe(self, step: int, model: nn.Module) -> None:
        """Measure an intermediate state, off the attack's clock; the attack is told nothing."""
        with self.bench.clock.paused():
            measured = copy.deepcopy(model).eval()
            point = {"curve": "attack", "step": step, "main": evaluate(measured, self.bench.splits.test)}
            with suppress(UnsupportedModel):  # another architecture has no score, only an accuracy
                if self.secret:
                    suspect = Suspect(measured, self.method.access, "probe")
                    point["score"] = self.method.score(suspect, self.secret)[0]
            self.points = [*(old for old in self.points if old["step"] != step), point]
            write_json(self._points, self.points)

    def read(self, model: nn.Module | None, secret: dict[str, Any]) -> ReadingRecord:
        """Read a mark from a model; None: the verifier's access shows it nothing to query."""
        if model is None:
            return ReadingRecord.of(Reading.not_applicable(_OTHER_HEAD))
        return ReadingRecord.of(verify(self.method, model, secret))

    def record(
        self, outcome: Outcome, rival: dict[str, Any] | None, data: Party, queries: float
    ) -> tuple[AttackRecord, Points]:
        """Return all that is measured of an attack, and further curves.

        Args:
            outcome: what the attack left behind, checked against its kind.
            rival: the claim that is read from what is left: the outcome's, or that of an earlier link of a chain.
            data: the attacker's samples.
            queries: answers that the attack asked of its victim.
        """
        bench, test = self.bench, self.bench.splits.test
        victim = bench.network(self.key)
        surrogate = outcome.surrogate.to(bench.device).eval() if outcome.surrogate else None
        adapted = seen(bench, outcome, victim, self.method.access)
        left = adapted.old if adapted else surrogate if surrogate is not None else bench.victim("labels")
        answers = bench.answers(self.key)
        predicted = predict(left, test.inputs).argmax(1)
        compared: dict[str, float | None] = {
            "agreement": float((predicted == answers).float().mean()),
            "data_share": len(data.train) / len(bench.splits.owner.train),
            "query_share": queries / len(bench.splits.owner.train),
        }
        if surrogate is not None:
            compared["parameters_share"] = _size(left) / _size(victim)
            if len(data.held_out):
                compared["main_held_out"] = evaluate(left, data.held_out)
        if outcome.structure == "same" and _alike(victim, left):
            compared["weight_change"], compared["weight_change_most"] = _weight_change(victim, left)
        if adapted is None and (scratch := bench.identity.get("scratch")) is not None:
            # What the attacker reaches on its own data without the victim.
            compared["main_scratch"] = bench.store.record(scratch)["result"]["main"]
        errors, curves = self._verifier_errors(outcome)
        return (
            AttackRecord(
                main=float((predicted == test.labels).float().mean()),
                readings=self._readings(outcome, rival, left, adapted),
                architecture=_architecture(outcome, bench.architecture),
                compared=compared,
                report={**outcome.report, **errors, **(_worth(adapted) if adapted else {})},
            ),
            curves,
        )

    def _readings(
        self, outcome: Outcome, rival: dict[str, Any] | None, left: nn.Module, adapted: Seen | None
    ) -> dict[str, ReadingRecord]:
        """Read the owner's mark, and the rival's claim, from what is left."""
        # An owner who reads weights multiplies factors out first; `as_left` is the reading without that.
        restored = outcome.restored if self.method.access == "weights" else None
        looked = left if restored is None else restored.to(self.bench.device).eval()
        found: dict[str, ReadingRecord] = {"after": self.read(adapted.suspect if adapted else looked, self.secret)}
        if restored is not None:
            found["as_left"] = self.read(left, self.secret)
        if rival is not None:
            found["rival"] = self.read(left, rival)
        return found

    def _verifier_errors(self, outcome: Outcome) -> tuple[dict[str, float], Points]:
        """Count the errors of the verifier that the attack asks to be measured, at the default rules."""
        bench, identity = self.bench, self.bench.identity
        if peers := identity.get("peers"):
            owners = [self._owner(key) for key in peers]
            models = [lambda key=key: bench.served(key) for key in peers]
            models += [lambda key=key: bench.network(key) for key in identity.get("unmarked", {}).values()]
            return cross_verify(self.method, owners, models)
        if outcome.claims is None:
            return {}, []
        suspects = {"marked-0": bench.served(self.key), **outcome.claims.suspects}
        return false_claims(self.method, outcome.claims.evidence, suspects, self._owner(self.key).thresholds)

    def _owner(self, embed: str) -> Owner:
        """Return the owner of a committed mark: its secret and its thresholds at the default rules."""
        store = self.bench.store
        mark = MarkRecord.model_validate(store.record(embed)["result"])
        null = Null(**store.record(self.bench.identity["nulls"][embed])["result"])
        return Owner(
            self.bench.secret(embed), thresholds(self.method.family, null, mark.on_clean.as_row(), Rules()), Rules()
        )


def _architecture(outcome: Outcome, own: str) -> str | None:
    """Return the key of what is in use from now on; `own` is that of what was attacked."""
    if outcome.adapted is not None or outcome.structure == "changed":
        return None
    return outcome.architecture or (own if outcome.structure == "same" else None)


def _worth(adapted: Seen) -> dict[str, float]:
    own, twin = adapted.worth
    return {"target_acc": own} | ({} if twin is None else {"target_acc_unmarked": twin})


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _alike(before: nn.Module, after: nn.Module) -> bool:
    old, new = before.state_dict(), after.state_dict()
    return old.keys() == new.keys() and all(new[name].shape == value.shape for name, value in old.items())


def _weight_change(before: nn.Module, after: nn.Module) -> tuple[float, float]:
    """Return ||after - before|| / ||before|| over all parameters and statistics, and the largest of one tensor."""
    old, new = before.state_dict(), after.state_dict()
    names = [name for name, value in old.items() if value.is_floating_point()]
    moved = torch.stack([(new[name].double() - old[name].double()).square().sum() for name in names])
    size = torch.stack([old[name].double().square().sum() for name in names])
    if not size.any():
        return 0.0, 0.0
    return float((moved.sum() / size.sum()).sqrt()), float((moved / size)[size > 0].max().sqrt())
