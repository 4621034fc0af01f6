"""The evaluator's side of an attack: with the secrets and the test set, which no attack sees."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from assay.attacks.base import Kind, Outcome
from assay.attacks.protocol import ambiguity, classify, sok_norm, succeeded
from assay.methods.base import Method
from assay.methods.parts.calibration import Null, limits
from assay.methods.suspect import Suspect
from assay.methods.verdict import Thresholds, Verdict
from assay.orchestrator.store import Store, write_json
from assay.orchestrator.work.adapted import Seen, seen
from assay.orchestrator.work.bench import Bench
from assay.orchestrator.work.verification import Owner, cross_verify, false_claims
from assay.tasks.data.splits import Party
from assay.tasks.errors import UnsupportedModel
from assay.tasks.training.trainer import evaluate, predict

_OTHER_HEAD = "the surrogate answers with another task's classes"
_RARE = 1e-6  # a second false-positive rate, whose threshold is logged beside that of `strict`


class Judge:
    """Judges one attack by the owner's secret.

    Attributes:
        points: the curve of the attack so far: accuracy and score per step.
    """

    def __init__(self, bench: Bench, method: Method) -> None:
        self.bench, self.method = bench, method
        self.key = bench.identity["embed"]
        self.marked = bench.store.record(self.key)["result"]
        calibration = bench.identity.get("calibrate")
        self.owner = owner(bench.store, method, self.key, calibration)
        self._points = bench.store.scratch(bench.stage.key) / "probes.json"
        # In the scratch folder, because a resumed attack does not pass its first steps again.
        self.points: list[dict[str, Any]] = json.loads(self._points.read_text("utf-8")) if self._points.exists() else []

    def probe(self, step: int, model: nn.Module) -> None:
        """Measure an intermediate state, off the attack's clock; nothing is told to anybody."""
        with self.bench.clock.paused():
            measured = copy.deepcopy(model).eval()
            point = {"curve": "attack", "step": step, "main": evaluate(measured, self.bench.splits.test)}
            with suppress(UnsupportedModel):  # another architecture has no score, only an accuracy
                if self.owner.secret:
                    suspect = Suspect(measured, self.method.access, "probe")
                    point["score"] = self.method.score(suspect, self.owner.secret)[0]
            self.points = [*(old for old in self.points if old["step"] != step), point]
            write_json(self._points, self.points)

    def verdict(self, model: nn.Module | None, secret: dict[str, Any]) -> dict[str, Any]:
        """Return a reading with its three decisions, as plain values; None: there is nothing to query."""
        if model is None:
            return _decided(Verdict.not_applicable(_OTHER_HEAD, 0.0, 1.0, "none"), self.owner.thresholds)
        found = self.method.verify(Suspect(model, self.method.access, self.method.key), secret)
        return _decided(found, self.owner.thresholds)

    def result(self, kind: Kind, outcome: Outcome, data: Party) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what the protocol logs of an attack (2.9), and further curves."""
        thresholds, test = self.owner.thresholds, self.bench.splits.test
        victim = self.bench.network(self.key)
        left = outcome.surrogate.to(self.bench.device).eval() if outcome.surrogate else victim
        adapted = seen(self.bench, outcome, victim, self.method.access)
        left = left if adapted is None else adapted.old
        answers = self.bench.answers(self.key)
        predicted = predict(left, test.inputs).argmax(1) if outcome.surrogate else answers
        main = float((predicted == test.labels).float().mean())
        # An owner who reads weights multiplies factors out first; `detected_as_left` is the reading without that.
        restored = outcome.restored if self.method.access == "weights" else None
        looked = left if restored is None else restored.to(self.bench.device).eval()
        judged = self.verdict(looked if adapted is None else adapted.suspect, self.owner.secret)
        result: dict[str, Any] = {
            "main": main,
            "verdict": judged,
            "before": _decided(Verdict(**self.marked["verdict"]), thresholds),
            "unmarked": _decided(Verdict(**self.marked["verdict_clean"]), thresholds),
            "thresholds": {**asdict(thresholds), "rare": self.owner.rare},
            "structure": outcome.structure,
            "report": dict(outcome.report),
            "agreement": float((predicted == answers).float().mean()),
            "data_share": len(data.train) / len(self.bench.splits.owner.train),
        }
        if restored is not None:
            result["report"]["detected_as_left"] = float(self.verdict(left, self.owner.secret)["strict"])
        if outcome.surrogate is not None:
            result["parameters_share"] = _size(left) / _size(victim)
            if len(data.held_out):
                result["main_held_out"] = evaluate(left, data.held_out)
        if outcome.structure == "same":
            result["weight_change"], result["weight_change_most"] = _weight_change(victim, left)
        result |= self._classes(kind, outcome, left, main, judged, adapted)
        result |= self._scratch(main) if adapted is None else {}
        report, curves = self._verification(outcome)
        result["report"] |= report | (_worth(adapted) if adapted else {})
        return result, curves

    def _classes(
        self, kind: Kind, outcome: Outcome, left: nn.Module, main: float, judged: dict[str, Any], adapted: Seen | None
    ) -> dict[str, Any]:
        """Return the outcome class, what a rival claim leads to, and whether the attack succeeded."""
        found: dict[str, Any] = {}
        before, tau = self.marked["main"], self.owner.thresholds.sok
        if adapted is not None:  # its worth is that on its own task, beside the same transfer of an unmarked model
            main, before = adapted.worth[0], adapted.worth[0] if adapted.worth[1] is None else adapted.worth[1]
        if outcome.rival is not None:
            found["rival"] = self.verdict(left, outcome.rival)
            found["ambiguity"] = ambiguity(judged["strict"], found["rival"]["strict"])
        if self.marked["verdict"]["applicable"]:
            found["outcome"] = classify(before, main, judged["strict"])
            found["score_sok"] = sok_norm(judged["score"], tau)
            if judged["chance"] < 1:
                found["score_chance"] = max((judged["score"] - judged["chance"]) / (1 - judged["chance"]), 0.0)
            rival = found["rival"]["strict"] if outcome.rival is not None else None
            found["success"] = succeeded(kind, before, main, judged["strict"], rival)
        return found

    def _scratch(self, main: float) -> dict[str, Any]:
        """Return what the attacker reaches on its data without the victim; no more than that is a pointless attack."""
        if (key := self.bench.identity.get("scratch")) is None:
            return {}
        alone = self.bench.store.record(key)["result"]["main"]
        return {"main_scratch": alone, "pointless": main <= alone}

    def _verification(self, outcome: Outcome) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the errors of the verifier that the attack asks to be measured."""
        bench, identity = self.bench, self.bench.identity
        if peers := identity.get("peers"):
            calibration = identity.get("calibrate")
            owners = [owner(bench.store, self.method, key, calibration) for key in peers]
            models = [lambda key=key: bench.network(key) for key in (*peers, *identity.get("unmarked", {}).values())]
            return cross_verify(self.method, owners, models)
        suspects = {"marked-0": bench.network(self.key), **outcome.suspects}
        return false_claims(self.method, outcome.claims, suspects, self.owner.thresholds)


def owner(store: Store, method: Method, embed: str, calibration: str | None) -> Owner:
    """Return the owner of a committed mark: its secret and its decision thresholds."""
    marked = store.record(embed)["result"]
    secret = store.tree(embed, "secret")
    if calibration is None:
        return Owner(secret, Thresholds(**marked["thresholds"]), None)
    null = Null(**store.record(calibration)["result"]["null"])
    on_clean = Verdict(**marked["verdict_clean"])
    rare = limits(method.family, null, on_clean, _RARE).strict
    return Owner(secret, limits(method.family, null, on_clean), rare)


def _worth(adapted: Seen) -> dict[str, float]:
    own, twin = adapted.worth
    return {"target_acc": own} | ({} if twin is None else {"target_acc_unmarked": twin})


def _decided(verdict: Verdict, thresholds: Thresholds) -> dict[str, Any]:
    return {**verdict.as_dict(), **thresholds.decide(verdict)}


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _weight_change(before: nn.Module, after: nn.Module) -> tuple[float, float]:
    """Return ||after - before|| / ||before|| over all parameters and statistics, and the largest of one tensor."""
    old, new = before.state_dict(), after.state_dict()
    names = [name for name, value in old.items() if value.is_floating_point()]
    moved = torch.stack([(new[name].double() - old[name].double()).square().sum() for name in names])
    size = torch.stack([old[name].double().square().sum() for name in names])
    if not size.any():
        return 0.0, 0.0
    return float((moved.sum() / size.sum()).sqrt()), float((moved / size)[size > 0].max().sqrt())
