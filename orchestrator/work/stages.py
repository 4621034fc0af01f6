"""Running one stage: build what its identity names, train or attack, evaluate, commit."""

from __future__ import annotations

import datetime
import os
import platform
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from assay.attacks.base import Victim
from assay.methods.base import Secret
from assay.methods.suspect import Suspect
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.store import Store, out_of_room
from assay.orchestrator.work.bench import Bench, Context
from assay.orchestrator.work.environment import environment, prepare
from assay.orchestrator.work.judging import Judge
from assay.tasks.errors import AssayError, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.streams import stream_seed
from assay.tasks.training.trainer import evaluate

Status = Literal["executed", "cached", "failed"]


@dataclass
class Product:
    """What a stage commits: JSON results, and optionally a state dict and trees."""

    result: dict[str, Any]
    model: dict[str, torch.Tensor] | None = None
    trees: dict[str, Secret] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)


def _clean(bench: Bench) -> Product:
    """Train an unmarked model, the owner's or the attacker's; its role names the streams of weights and order."""
    if "processed" in bench.identity:
        return _processed(bench)
    identity, task = bench.identity, bench.task
    lab = bench.lab("train", identity["seed"], identity["train_seed"])
    splits = bench.splits
    party = splits.attacker_view(identity["attacker"]) if "attacker" in identity else splits.owner
    with bench.clock.running():
        trained = lab.fit(task.build(lab.train_seed), party.train, schedule=task.schedule)
    costs = bench.costs(lab.meter)
    main = evaluate(trained.model, bench.splits.test)
    notes = ["diverged: a loss is not finite"] if trained.diverged else []
    return Product({"main": main}, trained.model.state_dict(), {}, notes, costs, lab.curves)


def _processed(bench: Bench) -> Product:
    """Attack an unmarked model: thresholds shall hold for what comes out of that too."""
    identity, attack = bench.identity, bench.attack()
    lab = bench.lab(attack.key, stream_seed("attack", identity["seed"], identity["train_seed"]), identity["train_seed"])
    data = bench.splits.attacker_view(attack.config.split)
    victim = Victim(bench.network(identity["processed"]), attack.needs, bench.task, bench.method(), lab.meter)
    with bench.clock.running():
        outcome = attack.run(victim, data, lab)
    if outcome.surrogate is None:
        raise AssayError(f"{attack.key} leaves no model behind")
    costs, main = bench.costs(lab.meter), evaluate(outcome.surrogate.eval(), bench.splits.test)
    return Product({"main": main}, outcome.surrogate.state_dict(), {}, outcome.notes, costs, lab.curves)


def _calibrate(bench: Bench) -> Product:
    """Score never-embedded keys on unmarked models, once for all owners of the method on the task."""
    seed, task, method = bench.identity["seed"], bench.task, bench.method()
    lab = bench.lab(method.key, seed, f"train|{seed}")
    with bench.clock.running():
        null = method.null(task, bench.splits.owner, lab)
    return Product({"null": null.as_dict(), "spread": null.spread()}, costs=bench.costs(lab.meter))


def _embed(bench: Bench) -> Product:
    """Mark a model, and read the mark from the marked and the clean model; a scheme of its own kind calibrates too."""
    identity, task, method = bench.identity, bench.task, bench.method()
    lab = bench.lab(method.key, identity["seed"], f"train|{identity['seed']}")
    owner = bench.splits.owner
    with bench.clock.running():
        mark = method.embed(task, owner, lab)
    costs = bench.costs(lab.meter)
    verdict = method.verify(Suspect(mark.model, method.access, method.key), mark.secret)
    on_clean = method.verify(Suspect(lab.unmarked("clean"), method.access, method.key), mark.secret)
    result = {
        "main": evaluate(mark.model, bench.splits.test),
        "verdict": verdict.as_dict(),
        "verdict_clean": on_clean.as_dict(),
        "response": mark.response,
    }
    if not method.shares_null():
        result["thresholds"] = asdict(method.thresholds(task, owner, mark.secret, lab))
    trees = {"secret": mark.secret}
    return Product(result, mark.model.state_dict(), trees, mark.notes, costs, lab.curves)


def _attack(bench: Bench) -> Product:
    """Attack a marked model with what the attack may hold, then judge what is left, outside the attack."""
    identity, task = bench.identity, bench.task
    method, attack = bench.method(), bench.attack()
    seed = stream_seed("attack", identity["seed"], identity["attack_seed"])
    lab = bench.lab(attack.key, seed, f"attack|{attack.key}|{seed}")
    data = bench.splits.attacker_view(attack.config.split)
    judge = Judge(bench, method)
    lab.probe = judge.probe
    leaked = bench.store.tree(identity["embed"], "secret") if attack.leaks_key() else None
    victim = Victim(bench.network(identity["embed"]), attack.needs, task, method, lab.meter, leaked)
    try:
        with bench.clock.running():
            outcome = attack.run(victim, data, lab)
    except UnsupportedModel as why:  # known only when it meets the network; the cell says so like any other
        return Product({"not_applicable": str(why)}, costs=bench.costs(lab.meter))
    costs = bench.costs(lab.meter)
    result, curves = judge.result(attack.kind, outcome, data)
    result["query_share"] = costs["queries"] / len(bench.splits.owner.train)
    if "beside" in identity:
        alone = replace(bench.lab(attack.key, seed, lab.train_seed), scratch=lab.scratch / "beside")
        result["report"] |= _beside(bench, judge, alone, leaked)
    trees = {"rival": outcome.rival} if outcome.rival is not None else {}
    return Product(result, None, trees, outcome.notes, costs, [*lab.curves, *judge.points, *curves])


def _beside(bench: Bench, judge: Judge, lab: Lab, leaked: Secret | None) -> dict[str, float]:
    """Do the same to the unmarked model, off the clock, and return what the owner reads from what is left."""
    method, attack = bench.method(), bench.attack()
    lab.scratch.mkdir(parents=True, exist_ok=True)
    victim = Victim(bench.network(bench.identity["beside"]), attack.needs, bench.task, method, lab.meter, leaked)
    outcome = attack.run(victim, bench.splits.attacker_view(attack.config.split), lab)
    if outcome.surrogate is None or outcome.adapted is not None:
        return {}
    model = outcome.surrogate.to(bench.device).eval()
    found = {"main": evaluate(model, bench.splits.test)}
    verdict = judge.verdict(model, judge.owner.secret)
    if verdict["applicable"]:
        found |= {name: float(verdict[name]) for name in ("score", "p_value", "strict")} | verdict["metrics"]
    return {f"beside_{name}": value for name, value in found.items()}


_RUN: dict[str, Callable[[Bench], Product]] = {
    "clean": _clean,
    "calibrate": _calibrate,
    "embed": _embed,
    "attack": _attack,
}


def execute(stage: Stage, context: Context) -> Status:
    """Run one stage in this process and commit it, or note its failure in the store; a stage's own error never raises.

    A stage that is committed already is not run again.
    """
    store = Store(Path(context.out) / "store")
    if store.committed(stage.key):
        return "cached"
    store.begin(stage.key, f"{platform.node()}:{os.getpid()}")
    started = _utc()
    prepare(context)
    try:
        bench = Bench(stage, context)
        product = _RUN[stage.kind](bench)
        record = {
            "stage": stage.kind,
            "label": stage.label,
            "identity": stage.identity,
            "result": _finite(product.result),
            "notes": product.notes,
            "costs": product.costs,
            "curves": _finite(product.curves),
            "environment": environment(context.device),
            "started": started,
            "ended": _utc(),
        }
        store.commit(stage.key, record, product.model, product.trees)
    except Exception as error:
        if out_of_room(error):
            raise  # no fault of the stage, and nothing can be noted
        # A worker's error is data: the sweep goes on, the row says why.
        store.fail(stage.key, _error_kind(error), _one_line(error), traceback.format_exc())
        return "failed"
    return "executed"


def _error_kind(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "oom"
    return type(error).__name__ if isinstance(error, AssayError) else "error"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AssayError) else f"{type(error).__name__}: {text}"


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by null: a diverged loss is no number."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
