"""Which stages run next, and what follows when they end: a state machine without Ray, clocks or files.

A stage is *waiting* (a parent is not committed), *ready*, *released* (travels in a trial), and ends *committed*,
*failed* or *blocked* (an ancestor failed). A released stage whose worker died becomes ready again.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from assay.orchestrator.planning.plan import Plan, Stage
from assay.tasks.errors import AssayError

State = Literal["waiting", "ready", "released", "committed", "failed", "blocked"]

_MOST_STAGES = 32  # of one trial: a wrong estimate of the durations must not leave one worker with everything
_SPREAD = 2  # a trial takes at most this fraction (1/2) of a worker's fair share, so that the last ones end together
_ROUNDING = 1e-6  # fractions of a GPU are summed


class Stuck(AssayError):
    """Nothing runs and nothing can start, but stages are left: a bug of the plan or the driver, never waited for."""


@dataclass(frozen=True)
class Capacity:
    """What trials may use at once.

    Attributes:
        workers: number of trials at work.
        resources: logical amounts, e.g. `{"CPU": 8, "GPU": 1}`.
    """

    workers: int
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """Stages of one resource class that one worker runs in this order; none is a parent of another."""

    name: str
    resource: str
    stages: tuple[Stage, ...]


class Scheduler:
    """Releases the stages of a plan, longest critical path first, and keeps account of what became of each.

    Args:
        plan: the sweep.
        committed: keys of stages that are in the store already.
        capacity: what trials may use at once; may be replaced while running, as a cluster grows and shrinks.
        needs: logical resources of each resource class.
        pack: let several short stages travel in one trial.
        pack_s: estimated seconds of such a trial.
        max_deaths: deaths of its worker after which a stage counts as failed.
    """

    def __init__(
        self,
        plan: Plan,
        committed: Iterable[str],
        capacity: Capacity,
        needs: Mapping[str, Mapping[str, float]],
        *,
        pack: bool = True,
        pack_s: float = 60.0,
        max_deaths: int = 5,
    ) -> None:
        self.plan = plan
        self.capacity = capacity
        self.needs = needs
        self.pack, self.pack_s, self.max_deaths = pack, pack_s, max_deaths
        self.had = set(committed) & plan.stages.keys()  # in the store before this run
        missing = plan.missing(self.had)
        self.state: dict[str, State] = {key: "waiting" for key in plan.stages if key in missing}
        self.deaths: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self.alive: dict[str, Trial] = {}
        self._names = 0
        self._open = len(self.state)
        self._waits = {key: sum(parent in missing for parent in plan.stages[key].parents) for key in self.state}
        self._order = {key: number for number, key in enumerate(plan.stages)}
        self._heaps: dict[str, list[tuple[float, int, str]]] = {}
        self._ready_s: defaultdict[str, float] = defaultdict(
            float
        )  # estimated seconds of the ready stages, by resource class
        self._homes: dict[str, list[str]] = {}  # cheap ready stages by the parent they are specific to
        for key, waits in self._waits.items():
            if waits == 0:
                self._make_ready(key)

    # --- release ---------------------------------------------------------------------------------------------------

    def release(self) -> Trial | None:
        """Return the next trial that fits beside those alive, None if nothing is ready or nothing fits."""
        heads = [
            (-self.needs[resource].get("GPU", 0.0), head, resource)
            for resource in self._heaps
            if (head := self._head(resource)) is not None and self._fits(resource)
        ]
        if not heads:
            return None
        _, (_, _, key), resource = min(heads)  # GPU classes first: the scarcer worker must not wait for a CPU stage
        first = self.plan.stages[key]
        limit = self._limit(resource)
        chosen = [self._take(key)]
        seconds = first.seconds
        if self.pack:
            seconds = self._add_siblings(first, chosen, seconds, limit)
            self._add_next(resource, chosen, seconds, limit)
        self._names += 1
        trial = Trial(f"{self._names:05d}", resource, tuple(chosen))
        self.alive[trial.name] = trial
        return trial

    def _limit(self, resource: str) -> float:
        """Seconds that may travel together; the share leaves work for workers that are idle now or soon."""
        slots = self._slots(resource)
        return self.pack_s if slots == 1 else min(self.pack_s, self._ready_s[resource] / (_SPREAD * slots))

    def _add_siblings(self, first: Stage, chosen: list[Stage], seconds: float, limit: float) -> float:
        """Add cheap ready stages of the first one's own parent: their worker has it loaded."""
        if not first.cheap:
            return seconds
        siblings = self._homes.get(self._home(first), [])
        while siblings and len(chosen) < _MOST_STAGES:
            stage = self.plan.stages[siblings[-1]]
            if self.state[stage.key] != "ready" or stage.resource != first.resource:
                siblings.pop()
            elif seconds + stage.seconds > limit:
                break
            else:
                chosen.append(self._take(siblings.pop()))
                seconds += stage.seconds
        return seconds

    def _add_next(self, resource: str, chosen: list[Stage], seconds: float, limit: float) -> None:
        """Add the next ready stages of the class while they fit into the limit."""
        while len(chosen) < _MOST_STAGES and (head := self._head(resource)) is not None:
            stage = self.plan.stages[head[2]]
            if seconds + stage.seconds > limit:
                return
            chosen.append(self._take(stage.key))
            seconds += stage.seconds

    def _head(self, resource: str) -> tuple[float, int, str] | None:
        heap = self._heaps[resource]
        while heap and self.state[heap[0][2]] != "ready":
            heapq.heappop(heap)  # taken as a sibling
        return heap[0] if heap else None

    def _take(self, key: str) -> Stage:
        stage = self.plan.stages[key]
        self.state[key] = "released"
        self._ready_s[stage.resource] -= stage.seconds
        return stage

    def _make_ready(self, key: str) -> None:
        stage = self.plan.stages[key]
        self.state[key] = "ready"
        self._ready_s[stage.resource] += stage.seconds
        heap = self._heaps.setdefault(stage.resource, [])
        heapq.heappush(heap, (-self.plan.critical[key], self._order[key], key))
        if stage.cheap and stage.parents:
            self._homes.setdefault(self._home(stage), []).append(key)

    def _home(self, stage: Stage) -> str:
        """The parent that a stage is most specific to: the one with the fewest children, e.g. the marked model."""
        return min(stage.parents, key=lambda parent: len(self.plan.children[parent]), default="")

    def _fits(self, resource: str) -> bool:
        if len(self.alive) >= self.capacity.workers:
            return False
        return all(
            amount + sum(self.needs[trial.resource].get(name, 0.0) for trial in self.alive.values())
            <= self.capacity.resources.get(name, 0.0) + _ROUNDING
            for name, amount in self.needs[resource].items()
        )

    def _slots(self, resource: str) -> int:
        """Trials of one class that the capacity holds at once, at least one."""
        counts = [
            math.floor(self.capacity.resources.get(name, 0.0) / amount + _ROUNDING)
            for name, amount in self.needs[resource].items()
            if amount > 0
        ]
        return max(1, min([self.capacity.workers, *counts]))

    # --- what became of a stage ------------------------------------------------------------------------------------

    def commit(self, key: str) -> None:
        """The stage's record is in the store; its children may become ready."""
        self._end(key, "committed")
        for child in self.plan.children[key]:
            if child in self._waits:
                self._waits[child] -= 1
                if self._waits[child] == 0 and self.state[child] == "waiting":
                    self._make_ready(child)

    def fail(self, key: str, reason: str) -> list[str]:
        """The stage failed by itself; return its descendants, which are blocked from now on."""
        self._end(key, "failed")
        self.reasons[key] = reason
        blocked: list[str] = []
        front = list(self.plan.children[key])
        while front:
            child = front.pop()
            if self.state.get(child) == "waiting":
                self._end(child, "blocked")
                self.reasons[child] = f"blocked by {self.plan.stages[key].label}: {reason}"
                blocked.append(child)
                front.extend(self.plan.children[child])
        return blocked

    def retire(self, trial: Trial, died_at: str | None = None) -> str | None:
        """A trial ended; release again what it left unsettled.

        Args:
            trial: one of `alive`.
            died_at: the stage that was at work when the worker died, None if none had begun.

        Returns:
            `died_at` if it has now killed its worker `max_deaths` times; the caller fails it.
        """
        del self.alive[trial.name]
        for stage in trial.stages:
            if self.state[stage.key] == "released":
                self._make_ready(stage.key)
        if died_at is None:
            return None
        self.deaths[died_at] += 1
        return died_at if self.deaths[died_at] >= self.max_deaths else None

    def _end(self, key: str, state: State) -> None:
        if self.state[key] in ("committed", "failed", "blocked"):
            raise ValueError(f"stage {key[:12]} is {self.state[key]} already, cannot become {state}")
        if self.state[key] == "ready":
            self._ready_s[self.plan.stages[key].resource] -= self.plan.stages[key].seconds
        self.state[key] = state
        self._open -= 1

    # --- account ---------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every stage has ended and no trial is alive."""
        return self._open == 0 and not self.alive

    def infeasible(self) -> dict[str, str]:
        """Return, for each resource class that could never run, what it lacks."""
        lacking: dict[str, str] = {}
        for resource in {self.plan.stages[key].resource for key in self.state}:
            for name, amount in self.needs[resource].items():
                if amount > self.capacity.resources.get(name, 0.0) + _ROUNDING:
                    lacking[resource] = f"{amount:g} {name} of {self.capacity.resources.get(name, 0.0):g}"
        return lacking

    def check(self) -> None:
        """Raise `Stuck`, naming what waits for what, if nothing is alive and nothing ready but stages are left."""
        if self.alive or self._open == 0 or any(self._head(resource) for resource in self._heaps):
            return
        left = [key for key, state in self.state.items() if state in ("waiting", "released")]
        lines = []
        for key in left[:10]:
            parents = self.plan.stages[key].parents
            waits = ", ".join(f"{parent[:8]} ({self.state.get(parent, 'not planned')})" for parent in parents)
            lines.append(f"{self.plan.stages[key].label} [{self.state[key]}] waits for {waits or 'nothing'}")
        raise Stuck(f"{len(left)} stages are left and none can start: {'; '.join(lines)}")
