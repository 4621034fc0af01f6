"""Running one stage: build what its identity names, train or attack, evaluate, commit."""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from attacks.base import Victim
from attacks.protocol import ambiguity, classify
from methods.base import Method, Secret
from methods.suspect import Suspect
from methods.verdict import Thresholds, Verdict
from orchestrator.bench import Bench, Context
from orchestrator.keys import content_key
from orchestrator.plan import Stage
from orchestrator.store import Store, write_json
from tasks.errors import AssayError, UnsupportedModel
from tasks.streams import stream_seed
from tasks.trainer import evaluate, predict

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
    """Train an unmarked model; its role names the streams of initial weights and order."""
    identity, task = bench.identity, bench.task
    lab = bench.lab("train", identity["seed"], identity["train_seed"])
    with bench.clock.running():
        trained = lab.fit(task.build(lab.train_seed), bench.splits.owner.train, schedule=task.schedule)
    costs = bench.costs(lab.meter)
    main = evaluate(trained.model, bench.splits.test)
    notes = ["diverged: a loss is not finite"] if trained.diverged else []
    return Product({"main": main}, trained.model.state_dict(), {}, notes, costs, lab.curves)


def _embed(bench: Bench) -> Product:
    """Mark a model, calibrate the thresholds on unmarked models, read the mark from the marked and the clean model."""
    identity, task, method = bench.identity, bench.task, bench.method()
    lab = bench.lab(method.key, identity["seed"], f"train|{identity['seed']}")
    owner = bench.splits.owner
    with bench.clock.running():
        mark = method.embed(task, owner, lab)
    costs = bench.costs(lab.meter)
    thresholds = method.thresholds(task, owner, mark.secret, lab)
    verdict = method.verify(Suspect(mark.model, method.access, method.key), mark.secret)
    on_clean = method.verify(Suspect(lab.unmarked("clean"), method.access, method.key), mark.secret)
    result = {
        "main": evaluate(mark.model, bench.splits.test),
        "thresholds": {"paper": thresholds.paper, "sok": thresholds.sok, "strict": thresholds.strict},
        "verdict": _judged(verdict, thresholds),
        "verdict_clean": _judged(on_clean, thresholds),
        "response": mark.response,
    }
    trees = {"secret": mark.secret}
    return Product(result, mark.model.state_dict(), trees, mark.notes, costs, lab.curves)


def _attack(bench: Bench) -> Product:
    """Attack a marked model with the attacker's data, then judge what is left, with the secret, outside the attack."""
    identity, task = bench.identity, bench.task
    method, attack = bench.method(), bench.attack()
    seed = stream_seed("attack", identity["seed"], identity["attack_seed"])
    lab = bench.lab(attack.key, seed, f"attack|{attack.key}|{seed}")
    marked = bench.store.record(identity["embed"])["result"]
    thresholds = Thresholds(**marked["thresholds"])
    secret = bench.store.tree(identity["embed"], "secret", bench.device)
    test = bench.splits.test

    probes = _Probes(bench, method, secret)
    lab.probe = probes
    victim = Victim(bench.network(identity["embed"]), attack.needs, task, method, lab.meter)
    try:
        with bench.clock.running():
            outcome = attack.run(victim, bench.splits.attacker_view(attack.config.split), lab)
    except UnsupportedModel as why:  # known only when it meets the network; the cell says so like any other
        return Product({"not_applicable": str(why)}, costs=bench.costs(lab.meter))
    costs = bench.costs(lab.meter)
    left = outcome.surrogate.to(bench.device).eval() if outcome.surrogate else bench.network(identity["embed"])
    predicted = predict(left, test.inputs).argmax(1)
    main = float((predicted == test.labels).float().mean())
    verdict = method.verify(Suspect(left, method.access, method.key), secret)
    judged = _judged(verdict, thresholds)
    result = {"main": main, "verdict": judged, "structure": outcome.structure, "report": outcome.report}
    result["agreement"] = float((predicted == bench.answers(identity["embed"])).float().mean())
    if outcome.structure == "same":
        result["weight_change"] = _weight_change(bench.network(identity["embed"]), left)
    if marked["verdict"]["applicable"]:
        result["outcome"] = classify(marked["main"], main, judged["strict"])
    if outcome.rival is not None:
        rival = _judged(method.verify(Suspect(left, method.access, method.key), outcome.rival), thresholds)
        result["rival"] = rival
        result["ambiguity"] = ambiguity(judged["strict"], rival["strict"])
    trees = {"rival": outcome.rival} if outcome.rival is not None else {}
    return Product(result, None, trees, outcome.notes, costs, [*lab.curves, *probes.points])


class _Probes:
    """The evaluator's curve during an attack: accuracy and score per step, off the attack's clock, told to nobody.

    Points are kept in the stage's scratch folder, because a resumed attack does not pass its first steps again.
    """

    def __init__(self, bench: Bench, method: Method, secret: Secret) -> None:
        self.bench, self.method, self.secret = bench, method, secret
        self.file = bench.store.scratch(bench.stage.key) / "probes.json"
        self.points: list[dict[str, Any]] = json.loads(self.file.read_text("utf-8")) if self.file.exists() else []

    def __call__(self, step: int, model: nn.Module) -> None:
        with self.bench.clock.paused():
            measured = copy.deepcopy(model).eval()
            point = {"curve": "attack", "step": step, "main": evaluate(measured, self.bench.splits.test)}
            with suppress(UnsupportedModel):  # another architecture has no score, only an accuracy
                if self.secret:
                    point["score"] = self.method.score(Suspect(measured, self.method.access, "probe"), self.secret)[0]
            self.points = [*(old for old in self.points if old["step"] != step), point]
            write_json(self.file, self.points)


_RUN: dict[str, Callable[[Bench], Product]] = {"clean": _clean, "embed": _embed, "attack": _attack}


def _judged(verdict: Verdict, thresholds: Thresholds) -> dict[str, Any]:
    return {**verdict.as_dict(), **thresholds.decide(verdict)}


def _weight_change(before: nn.Module, after: nn.Module) -> float:
    """Return ||after - before|| / ||before|| over all parameters and statistics."""
    old, new = before.state_dict(), after.state_dict()
    names = [name for name, value in old.items() if value.is_floating_point()]
    moved = torch.stack([(new[name].double() - old[name].double()).square().sum() for name in names]).sum()
    size = torch.stack([old[name].double().square().sum() for name in names]).sum()
    return float((moved / size).sqrt()) if size else 0.0


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
        # A worker's error is data: the sweep goes on, the row says why.
        store.fail(stage.key, _error_kind(error), _one_line(error), traceback.format_exc())
        return "failed"
    return "executed"


def prepare(context: Context) -> None:
    """Set this process's threads and determinism; cheap, so it is done before every stage."""
    if torch.get_num_threads() != context.threads:
        torch.set_num_threads(context.threads)
    if context.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False  # `fp32` means fp32: permuted networks must agree to 1e-5


@lru_cache(maxsize=1)
def environment(device: str) -> dict[str, str]:
    """Return what the figures may depend on: versions, processor, device."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def environment_hash(facts: dict[str, str]) -> str:
    """Return a short name of an environment."""
    return content_key(facts)[:12]


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
