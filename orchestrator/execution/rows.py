"""From plan and records to rows and curves: what the results package stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from assay.orchestrator.planning.plan import Cell, Plan
from assay.orchestrator.store import Store
from assay.orchestrator.work.environment import environment_hash

Record = dict[str, Any]

# Figures of an attack's result that become entries of a row's `metrics`.
_COMPARED = (
    "agreement", "weight_change", "weight_change_most", "parameters_share", "data_share", "query_share", "main_scratch",
    "main_held_out", "pointless", "success", "score_sok", "score_chance",
)  # fmt: skip


class Rows:
    """Builds the row of a cell from the committed records.

    Finished rows are kept, and the few records that many cells share; attack records and curves are read when needed,
    so that a sweep of ten thousand cells fits in the driver's memory.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store
        self._shared: dict[str, Record] = {}
        self._finished: dict[str, dict[str, Any]] = {}
        self.environments: dict[str, dict[str, str]] = {}

    def record(self, key: str | None) -> Record | None:
        """Return a committed stage's record, None if there is none."""
        if key is None:
            return None
        if key not in self._shared:
            try:
                record = self.store.record(key)
            except KeyError:
                return None
            self.environments.setdefault(environment_hash(record["environment"]), record["environment"])
            if self.plan.stages[key].kind == "attack":
                return record
            self._shared[key] = {name: value for name, value in record.items() if name != "curves"}
        return self._shared[key]

    def row(self, cell: Cell) -> dict[str, Any]:
        """Return one row: results if the cell is done, else its status and the reason."""
        if cell.key in self._finished:
            return self._finished[cell.key]
        clean, embed, attack = (self.record(key) for key in (cell.clean_key, cell.embed_key, cell.attack_key))
        status, reason = self._status(cell, attack)
        row = {**_EMPTY, **_point(cell), "status": status, "reason": reason}
        if clean:
            row["main_clean"] = clean["result"]["main"]
        if embed:
            row |= _before(embed["result"])
        if clean and embed and attack and status == "ok":
            row |= _after(attack) | _costs(attack, clean, embed)
            row["metrics"] = _metrics(clean, embed, attack) | self._null(cell)
            self._finished[cell.key] = row
        return row

    def all(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of all cells that are done, failed, blocked or impossible (not those still to come)."""
        for cell in self.plan.cells:
            row = self.row(cell)
            if row["status"] != "pending":
                yield row

    def curves(self) -> Iterator[dict[str, Any]]:
        """Yield the curves of all committed stages of the plan, in long form."""
        for key, stage in self.plan.stages.items():
            if not self.store.committed(key):
                continue
            for point in self.store.record(key)["curves"]:
                for metric, value in point.items():
                    if metric not in ("curve", "step") and value is not None:  # a diverged loss is no number
                        where = {"stage_key": key, "stage": stage.kind, "curve": point["curve"]}
                        yield {**where, "step": point["step"], "metric": metric, "value": value}

    def _null(self, cell: Cell) -> dict[str, float]:
        """How never-embedded keys score on unmarked models: mean, and deviations of the keys' and the models' means."""
        calibration = self.record(self.plan.stages[str(cell.attack_key)].identity.get("calibrate"))
        spread = calibration["result"]["spread"] if calibration else {}
        return {f"null_{name}": float(value) for name, value in spread.items()}

    def _status(self, cell: Cell, attack: Record | None) -> tuple[str, str]:
        if cell.attack_key is None:
            return "not_applicable", cell.reason
        if attack is not None:
            why = attack["result"].get("not_applicable")
            return ("not_applicable", why) if why else ("ok", "")
        if failure := self.store.failure(cell.attack_key):
            return "failed", failure["reason"]
        for key in self._ancestors(cell.attack_key):
            if failure := self.store.failure(key):
                return "blocked", f"{self.plan.stages[key].label} failed: {failure['reason']}"
        return "pending", ""

    def _ancestors(self, key: str) -> Iterable[str]:
        front, seen = list(self.plan.stages[key].parents), set[str]()
        while front:
            parent = front.pop()
            if parent not in seen:
                seen.add(parent)
                front.extend(self.plan.stages[parent].parents)
        return sorted(seen)


_EMPTY: Mapping[str, Any] = dict.fromkeys(
    (
        "main_clean", "main_before", "main_after", "score_before", "score_after", "chance", "p_before", "p_after",
        "detected_before", "detected_after", "verdict_paper", "verdict_sok", "outcome", "rival_score", "rival_p",
        "rival_verified", "wall_s", "device_s", "forward_samples", "backward_samples", "queries", "unique_samples",
        "peak_mem_mb", "cost_share", "embed_cost_share", "environment", "started", "ended",
    )
) | {"metrics": {}}  # fmt: skip


def _point(cell: Cell) -> dict[str, Any]:
    names = (
        "clean_key", "embed_key", "attack_key", "task", "dataset", "model", "profile", "split", "method",
        "method_config", "attack", "attack_config", "victim_seed", "attack_seed",
    )  # fmt: skip
    return {"cell_key": cell.key, **{name: getattr(cell, name) for name in names}}


def _read(verdict: Mapping[str, Any], name: str) -> Any:
    """A figure of a verdict; None where the mark cannot be read at all, so that no number stands in its place."""
    return verdict[name] if verdict["applicable"] else None


def _before(embed: Mapping[str, Any]) -> dict[str, Any]:
    verdict = embed["verdict"]
    return {
        "main_before": embed["main"],
        "score_before": _read(verdict, "score"),
        "chance": _read(verdict, "chance"),
        "p_before": _read(verdict, "p_value"),
    }


def _after(attack: Record) -> dict[str, Any]:
    result = attack["result"]
    verdict, rival = result["verdict"], result.get("rival")
    after = {
        "main_after": result["main"],
        "score_after": _read(verdict, "score"),
        "p_after": _read(verdict, "p_value"),
        "detected_before": result["before"]["strict"],
        "detected_after": verdict["strict"],
        "verdict_paper": verdict["paper"],
        "verdict_sok": verdict["sok"],
        "outcome": result.get("outcome"),
        "environment": environment_hash(attack["environment"]),
        "started": attack["started"],
        "ended": attack["ended"],
    }
    if rival is not None:
        after |= {"rival_score": _read(rival, "score"), "rival_p": _read(rival, "p_value")}
        after["rival_verified"] = rival["strict"]
    return after


def _costs(attack: Record, clean: Record, embed: Record) -> dict[str, Any]:
    costs, whole = attack["costs"], clean["costs"]["device_s"]
    own = {name: costs[name] for name in ("wall_s", "device_s", "forward_samples", "backward_samples", "queries")}
    own |= {name: costs.get(name) for name in ("unique_samples", "peak_mem_mb")}  # older records lack them
    shares = {"cost_share": costs, "embed_cost_share": embed["costs"]}
    return own | {name: spent["device_s"] / whole if whole else None for name, spent in shares.items()}


def _metrics(clean: Record, embed: Record, attack: Record) -> dict[str, float]:
    """Further figures by name: thresholds, the reading on the unmarked model, the paper's own verdicts, work shares."""
    before, after = embed["result"], attack["result"]
    found: dict[str, Any] = {f"threshold_{name}": value for name, value in after["thresholds"].items()}
    on_clean = after["unmarked"]
    if on_clean["applicable"]:
        found |= {f"clean_{name}": on_clean[name] for name in ("score", "p_value", "paper", "sok", "strict")}
        found |= {f"clean_{name}": value for name, value in on_clean["metrics"].items()}
        found |= {f"before_{name}": after["before"][name] for name in ("paper", "sok")}
    found |= {f"before_{name}": value for name, value in before["verdict"]["metrics"].items()}
    found |= {f"after_{name}": value for name, value in after["verdict"]["metrics"].items()}
    found |= {name: after[name] for name in _COMPARED if name in after} | dict(after["report"])
    if rival := after.get("rival"):
        found |= {f"rival_{name}": rival[name] for name in ("paper", "sok")}
        found |= {f"ambiguity_{after['ambiguity']}": 1.0}
    found |= _other_checkpoints(attack["curves"])
    work = clean["costs"]["forward_samples"] + 2 * clean["costs"]["backward_samples"]
    spent = attack["costs"]["forward_samples"] + 2 * attack["costs"]["backward_samples"]
    found["work_share"] = spent / work if work else None
    marking = embed["costs"]["forward_samples"] + 2 * embed["costs"]["backward_samples"]
    found["embed_work_share"] = marking / work if work else None
    return {name: float(value) for name, value in found.items() if value is not None}


def _other_checkpoints(curves: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Figures at two other choices of a checkpoint than the attacker's own (protocol 2.4), from the attack's curve.

    `last`: the last state shown. `test_best`: the earliest of the highest test accuracy, as the papers very likely
    chose; only to compare with them.
    """
    shown = [point for point in curves if point["curve"] == "attack" and "main" in point]
    points = sorted(shown, key=lambda point: point["step"])
    if not points:
        return {}
    choices = {"last": points[-1], "test_best": max(points, key=lambda point: point["main"])}
    names = ("main", "score")
    return {f"{choice}_{name}": point[name] for choice, point in choices.items() for name in names if name in point}
