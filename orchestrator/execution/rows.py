"""From plan and records to rows, curves and nulls, as the results package stores them; decisions are derived here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from assay.orchestrator.planning.plan import Cell, Plan
from assay.orchestrator.records import AttackRecord, MarkRecord, ModelRecord, NullRecord, ReadingRecord
from assay.orchestrator.store import Store
from assay.orchestrator.work.environment import environment_hash
from assay.results.decisions import Null, decided, null_points
from assay.results.schema import empty_row

Record = dict[str, Any]

_COSTS = ("wall_s", "device_s", "forward_samples", "backward_samples", "queries")


class Rows:
    """Builds the row of a cell from the committed records.

    Finished rows are kept, and the few records that many cells share; attack records and curves are read when needed,
    so that a sweep of ten thousand cells fits in the driver's memory.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store
        self._shared: dict[str, Record] = {}
        self._nulls: dict[str, Null] = {}
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

    def null(self, key: str | None) -> Null | None:
        """Return a committed null; the rows of one null share the object, and with it the thresholds."""
        if key is None or (key not in self._nulls and self.record(key) is None):
            return None
        if key not in self._nulls:
            found = NullRecord.model_validate(self._shared[key]["result"])
            self._nulls[key] = Null(found.scores, found.hits, found.trials, found.models)
        return self._nulls[key]

    def row(self, cell: Cell) -> dict[str, Any]:
        """Return one row: what was measured and what it means if the cell is done, else its status and the reason."""
        if cell.key in self._finished:
            return self._finished[cell.key]
        clean, embed = self.record(cell.clean_key), self.record(cell.embed_key)
        links = [self.record(key) for key in cell.chain]
        null = self.null(cell.null_key)
        done = [link for link in links if link is not None] if all(links) else []
        if cell.null_key is not None and null is None:
            done = []
        status, reason = self._status(cell, done)
        row = {**empty_row(), **cell.point, **_keys(cell), "status": status, "reason": reason}
        readings: dict[str, ReadingRecord] = {}
        if clean:
            row["main_clean"] = ModelRecord.model_validate(clean["result"]).main
        if embed:
            mark = MarkRecord.model_validate(embed["result"])
            row["main_before"] = mark.main
            readings = {"before": mark.reading, "clean": mark.on_clean}
        if clean and embed and done and status == "ok":
            attack = AttackRecord.model_validate(done[-1]["result"])
            readings.update(attack.readings)
            row["main_after"] = attack.main
            row |= _costs(done, clean, embed)
            row["metrics"] = _metrics(readings, attack, done) | _work(done, clean, embed)
        row["readings"] = {name: reading.as_row() for name, reading in readings.items()} or None
        row |= decided(row, null)
        if status == "ok":
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

    def nulls(self) -> Iterator[dict[str, Any]]:
        """Yield the committed nulls of the plan, a point for each model and key."""
        for key, stage in self.plan.stages.items():
            if stage.kind == "calibrate" and (null := self.null(key)) is not None:
                task = stage.identity["task"]
                name = f"{task['dataset']}-{task['model']}"
                yield from null_points(key, stage.identity["method"]["key"], name, null)

    def _status(self, cell: Cell, done: list[Record]) -> tuple[str, str]:
        if not cell.chain:
            return "not_applicable", cell.reason
        if done:
            why = done[-1]["result"]["not_applicable"]
            return ("not_applicable", why) if why else ("ok", "")
        if failure := self.store.failure(cell.chain[-1]):
            return "failed", failure["reason"]
        nearest = filter(None, (*cell.stages[::-1], cell.embed_key, cell.clean_key))
        for key in (*nearest, *self._ancestors(cell.stages)):
            if failure := self.store.failure(key):
                return "blocked", f"{self.plan.stages[key].label} failed: {failure['reason']}"
        return "pending", ""

    def _ancestors(self, keys: Iterable[str]) -> Iterable[str]:
        front, seen = list(keys), set[str]()
        while front:
            for parent in self.plan.stages[front.pop()].parents:
                if parent not in seen:
                    seen.add(parent)
                    front.append(parent)
        return sorted(seen)


def _keys(cell: Cell) -> dict[str, Any]:
    names = ("clean_key", "embed_key", "attack_key", "null_key")
    return {"cell_key": cell.key, **{name: getattr(cell, name) for name in names}}


def _costs(links: list[Record], clean: Record, embed: Record) -> dict[str, Any]:
    """Return what the attack cost, all links of a chain together, also relative to training an unmarked model."""
    whole, each = clean["costs"]["device_s"], [link["costs"] for link in links]
    own = {name: sum(costs[name] for costs in each) for name in _COSTS}
    own["unique_samples"] = max(costs["unique_samples"] for costs in each)  # links train on the same samples
    own["peak_mem_mb"] = max(costs["peak_mem_mb"] for costs in each)
    last = links[-1]
    own |= {
        "environment": environment_hash(last["environment"]),
        "started": links[0]["started"],
        "ended": last["ended"],
    }
    shares = {"cost_share": own["device_s"], "embed_cost_share": embed["costs"]["device_s"]}
    return own | {name: spent / whole if whole else None for name, spent in shares.items()}


def _metrics(readings: Mapping[str, ReadingRecord], attack: AttackRecord, links: list[Record]) -> dict[str, float]:
    """Return measured figures by name: those of the readings, of the surrogate beside the victim, of the attack."""
    found: dict[str, Any] = {}
    for name, reading in readings.items():
        if reading.applicable or name in ("before", "after"):
            found |= {f"{name}_{metric}": value for metric, value in reading.metrics.items()}
    found |= attack.compared | attack.report
    found |= _other_checkpoints(links[-1]["curves"])
    return {name: float(value) for name, value in found.items() if value is not None}


def _work(links: list[Record], clean: Record, embed: Record) -> dict[str, float]:
    """Return the passes of attack and embedding relative to training an unmarked model."""
    whole = _passes(clean["costs"])
    spent = {"work_share": sum(_passes(link["costs"]) for link in links), "embed_work_share": _passes(embed["costs"])}
    return {name: value / whole for name, value in spent.items()} if whole else {}


def _passes(costs: Mapping[str, Any]) -> float:
    """Return forward passes of one sample; a backward pass counts as two."""
    return float(costs["forward_samples"] + 2 * costs["backward_samples"])


def _other_checkpoints(curves: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return figures at two other choices of a checkpoint than the attacker's own (docs/protocol.md §10).

    `last`: the last state shown. `test_best`: the earliest of the highest test accuracy, as the papers very likely
    chose; only to compare with them. Both come from the curve of the attack.
    """
    shown = [point for point in curves if point["curve"] == "attack" and "main" in point]
    points = sorted(shown, key=lambda point: point["step"])
    if not points:
        return {}
    choices = {"last": points[-1], "test_best": max(points, key=lambda point: point["main"])}
    names = ("main", "score")
    return {f"{choice}_{name}": point[name] for choice, point in choices.items() for name in names if name in point}
