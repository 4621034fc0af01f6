"""Running one stage: build what its identity names, train or attack, evaluate, commit."""

from __future__ import annotations

import datetime
import os
import platform
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from assay.attacks.base import Attack, Kind, Needs, Outcome, Victim
from assay.methods.base import Secret
from assay.methods.embedding import embed, verify
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.records import AttackRecord, MarkRecord, ModelRecord, NullRecord, ReadingRecord, Record
from assay.orchestrator.store import Store, out_of_room
from assay.orchestrator.work.bench import Bench, Context
from assay.orchestrator.work.environment import environment, prepare
from assay.orchestrator.work.evaluator import Evaluator
from assay.tasks.errors import AssayError, BrokenOutcome, Diverged, UnsupportedModel
from assay.tasks.lab import Lab, Role
from assay.tasks.streams import stream_seed
from assay.tasks.training.trainer import evaluate

Status = Literal["executed", "cached", "failed"]


@dataclass
class Product:
    """What a stage commits: a typed record, and optionally a state dict and trees."""

    record: Record
    model: dict[str, torch.Tensor] | None = None
    trees: dict[str, Secret] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)


def _clean(bench: Bench) -> Product:
    """Train an unmarked model, the owner's or the attacker's; its role names the streams of weights and order."""
    if "processed" in bench.identity:
        return _processed(bench)
    identity, task, splits = bench.identity, bench.task, bench.splits
    party = splits.attacker_view(identity["attacker"]) if "attacker" in identity else splits.owner
    role: Role = "attacker" if "attacker" in identity else "owner"
    lab = bench.lab("train", identity["seed"], identity["train_seed"], role, party)
    with bench.clock.running():
        trained = lab.fit(task.build(lab.train_seed), party.train)
    if trained.diverged:
        raise Diverged(f"{task.key}: a loss is not finite after {_epochs(len(trained.history))}; lower the rate")
    costs = bench.costs(lab.meter)
    record = ModelRecord(main=evaluate(trained.model, splits.test))
    return Product(record, trained.model.state_dict(), costs=costs, curves=lab.curves)


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def _processed(bench: Bench) -> Product:
    """Attack an unmarked model: a null shall hold for what comes out of that too."""
    identity, attack = bench.identity, bench.attack()
    seed, name = stream_seed("attack", identity["seed"], identity["train_seed"]), identity["train_seed"]
    lab = bench.lab(attack.key, seed, name, "attacker", bench.splits.attacker_view(attack.config.split))
    victim = Victim(bench.network(identity["processed"]), attack.access, bench.task, bench.method(), lab.meter)
    with bench.clock.running():
        outcome = _ran(attack, victim, lab, "removal")
    assert outcome.surrogate is not None
    costs, main = bench.costs(lab.meter), evaluate(outcome.surrogate.eval(), bench.splits.test)
    return Product(
        ModelRecord(main=main), outcome.surrogate.state_dict(), notes=outcome.notes, costs=costs, curves=lab.curves
    )


def _calibrate(bench: Bench) -> Product:
    """Read never-embedded keys from unmarked models: once for all owners of a method, or for one owner."""
    seed, method = bench.identity["seed"], bench.method()
    lab = bench.lab(method.key, seed, f"train|{seed}", "claimant", bench.splits.owner)
    secret = bench.secret(bench.identity["embed"]) if "embed" in bench.identity else None
    with bench.clock.running():
        null = method.null(lab, secret)
    return Product(NullRecord.of(null), costs=bench.costs(lab.meter), curves=lab.curves)


def _embed(bench: Bench) -> Product:
    """Mark a model, and read the mark from what is served and from the unmarked model."""
    identity, method = bench.identity, bench.method()
    lab = bench.lab(method.key, identity["seed"], f"train|{identity['seed']}", "owner", bench.splits.owner)
    with bench.clock.running():
        mark = embed(method, lab)
    costs = bench.costs(lab.meter)
    served = method.served(mark.model, mark.secret).eval()
    record = MarkRecord(
        main=evaluate(served, bench.splits.test),
        reading=ReadingRecord.of(verify(method, served, mark.secret)),
        on_clean=ReadingRecord.of(verify(method, lab.unmarked("clean"), mark.secret)),
    )
    return Product(record, mark.model.state_dict(), {"secret": mark.secret}, mark.notes, costs, lab.curves)


def _attack(bench: Bench) -> Product:
    """Attack a marked model with what the attack may hold, then read what is left, outside the attack."""
    identity, task, method, attack = bench.identity, bench.task, bench.method(), bench.attack()
    seed = stream_seed("attack", identity["seed"], identity["attack_seed"])
    data = bench.splits.attacker_view(attack.config.split)
    name = f"attack|{attack.key}|{seed}" + (f"|link-{identity['link']}" if "link" in identity else "")
    lab = bench.lab(attack.key, seed, name, "attacker", data)
    evaluator = Evaluator(bench, method)
    lab.probe = evaluator.probe
    needs = attack.needs(task, method)
    leaked = bench.secret(identity["embed"]) if needs.key else None
    try:
        victim = Victim(bench.victim(needs.access), needs.access, task, method, lab.meter, leaked)
        with bench.clock.running():
            outcome = _ran(attack, victim, lab, attack.kind)
    except UnsupportedModel as why:  # known only when it meets the network; the cell says so like any other
        return Product(AttackRecord(not_applicable=str(why)), costs=bench.costs(lab.meter))
    costs = bench.costs(lab.meter)
    rival = outcome.rival if outcome.rival is not None else _earlier_rival(bench)
    record, curves = evaluator.record(outcome, rival, data, costs["queries"])
    if "beside" in identity:
        alone = bench.lab(attack.key, seed, lab.train_seed, "attacker", data)
        record = _beside(bench, evaluator, needs, replace(alone, scratch=lab.scratch / "beside"), leaked, record)
    kept = None
    if bench.stage.keep and record.architecture is not None:
        kept = bench.victim("weights") if outcome.surrogate is None else outcome.surrogate  # a forger leaves it in use
    return Product(
        record,
        None if kept is None else kept.state_dict(),
        {} if rival is None else {"rival": rival},
        outcome.notes,
        costs,
        [*lab.curves, *evaluator.points, *curves],
    )


def _ran(attack: Attack[Any], victim: Victim, lab: Lab, kind: Kind) -> Outcome:
    """Return what an attack leaves behind, checked before anything is read."""
    outcome = attack.run(victim, lab)
    if not isinstance(outcome, Outcome):
        raise BrokenOutcome(f"{attack.key}: run() returned {type(outcome).__name__}, not an Outcome")
    return outcome.checked(kind)


def _earlier_rival(bench: Bench) -> Secret | None:
    """Return the claim that an earlier link of the chain left, if one did."""
    parent = bench.identity.get("after")
    return bench.store.tree(parent, "rival") if parent and bench.store.has_tree(parent, "rival") else None


def _beside(
    bench: Bench, evaluator: Evaluator, needs: Needs, lab: Lab, leaked: Secret | None, record: AttackRecord
) -> AttackRecord:
    """Do the same to the unmarked model, off the clock, and read the owner's mark from what is left of that."""
    lab.scratch.mkdir(parents=True, exist_ok=True)
    victim = Victim(
        bench.network(bench.identity["beside"]), needs.access, bench.task, bench.method(), lab.meter, leaked
    )
    attack = bench.attack()
    outcome = _ran(attack, victim, lab, attack.kind)
    if outcome.surrogate is None or outcome.adapted is not None:
        return record
    model = outcome.surrogate.to(bench.device).eval()
    reading = evaluator.read(model, evaluator.secret)
    report = {**record.report, "beside_main": evaluate(model, bench.splits.test)}
    return record.model_copy(update={"readings": {**record.readings, "beside": reading}, "report": report})


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
    if stage.done(store):
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
            "result": _finite(product.record.model_dump(mode="json")),
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
