"""The plan on Ray Tune: a search algorithm that releases stages, and a trainable whose step runs one.

What Tune is held to (measured on Ray 2.60, kept by tests/orchestrator/test_tune_driver.py):

- trial dependencies work by `next_trial` returning None; with trials alive Tune asks again within 0.1 s;
- a trial may end without any callback (a failed reset), so `Trial.status` is polled;
- a bare search algorithm is limited by `TUNE_MAX_PENDING_TRIALS_PG` alone;
- Tune keeps warm only as many idle workers as trials are queued: `_KeepWarm` raises that to all.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import pickle
import re
import shutil
import signal
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Read when Ray is imported or started; whoever started the process may have chosen otherwise.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # a worker's death would be printed on our standard output
        "RAY_AIR_NEW_OUTPUT": "0",  # the old output is the one that `verbose=0` silences
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of data and plugins stay valid in workers
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a stage without a GPU sees none
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops within seconds
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's state is no truth: hardly ever written
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    }
)

import ray
import torch
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Experiment
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import SearchAlgorithm

from assay.orchestrator.execution.driver import (
    RESOURCES,
    Ledger,
    Listener,
    Options,
    Summary,
    attempt,
    new_scheduler,
    resolve_runner,
)
from assay.orchestrator.execution.scheduler import Capacity, Trial
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.tasks.errors import AssayError, BadInput

_REFRESH_S = 5.0  # between looks at a cluster's resources
_STEP_S = 0.25  # seconds for which a worker goes on before it reports; Tune spends some 10 ms on a report
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OBJECT_STORE_BYTES = 100 * 2**20  # keys and paths travel, never models or data


class Worker(tune.Trainable):  # type: ignore[misc]  # Ray is not typed
    """A warm worker: each trial hands it stages, each step runs one and reports its key and status."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start on a first trial."""
        self._load(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over the next trial; always possible (False would end the trial without a word)."""
        self._load(new_config)
        return True

    def _load(self, config: dict[str, Any]) -> None:
        self.stages, self.context, runner = _unpacked(config)
        self.runner = resolve_runner(runner)
        self.position = 0
        self.config: dict[str, Any] = {}  # otherwise each report sends it back
        if self.stages[0].resource == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
            self.context = dataclasses.replace(self.context, device="cpu")
        torch.set_num_threads(self.context.threads)

    def step(self) -> dict[str, Any]:
        """Run the trial's next stage, and further ones while they take no time: a report costs more than they do."""
        until = time.monotonic() + _STEP_S
        ended: list[tuple[str, str]] = []
        while not ended or (self.position < len(self.stages) and time.monotonic() < until):
            stage = self.stages[self.position]
            ended.append((stage.key, attempt(self.runner, stage, self.context)))
            self.position += 1
        return {"ended": ended, "done": self.position == len(self.stages)}


def _packed(stages: tuple[Stage, ...], context: Context, runner: str) -> dict[str, Any]:
    # Bytes, because Tune copies, flattens and scans configurations again and again.
    return {"work": pickle.dumps((stages, context, runner))}


def _unpacked(config: dict[str, Any]) -> tuple[tuple[Stage, ...], Context, str]:
    work: tuple[tuple[Stage, ...], Context, str] = pickle.loads(config["work"])  # noqa: S301 -- our own driver's
    return work


class DagSearch(SearchAlgorithm):  # type: ignore[misc]
    """Releases the ledger's stages to Tune as trials, and learns from their status and the store how they ended."""

    def __init__(self, ledger: Ledger, context: Context, options: Options, factories: Mapping[str, Any]) -> None:
        self.ledger, self.context, self.options, self.factories = ledger, context, options, factories
        self.interrupted = False
        self._experiment: Experiment | None = None
        self._running: dict[str, tuple[Trial, TuneTrial]] = {}
        self._started: set[str] = set()  # trials whose current stage was announced
        self._idle_deaths = 0  # workers in a row that died before they began any stage
        self._refreshed = time.monotonic()

    # --- Tune's side -----------------------------------------------------------------------------------------------

    def add_configurations(self, experiments: Any) -> None:
        """Remember the experiment that the trials belong to."""
        self._experiment = experiments[0]

    def next_trial(self) -> TuneTrial | None:
        """Return the next trial, None while nothing can be released; Tune asks about ten times a second.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM.
            Stuck: nothing is alive, nothing ready, and stages are left.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        self._poll()
        self._refresh()
        trial = self.ledger.scheduler.release()
        if trial is None:
            self.ledger.scheduler.check()
            return None
        assert self._experiment is not None, "Tune adds the experiment before it asks for trials"
        made = TuneTrial(
            self._experiment.run_identifier,
            trial_id=trial.name,
            config=_packed(trial.stages, self.context, self.options.runner),
            storage=self._experiment.storage,
            placement_group_factory=self.factories[trial.resource],
        )
        self._running[trial.name] = (trial, made)
        return made

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Book stages as soon as they are reported."""
        self._report(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Book the last stages of a trial; how the trial itself ended is polled."""
        self._report(trial_id, result or {})

    def is_finished(self) -> bool:
        """Return whether every stage has ended."""
        self._poll()
        return bool(self.ledger.scheduler.finished)

    # --- our side --------------------------------------------------------------------------------------------------

    def _report(self, trial_id: str, result: Mapping[str, Any]) -> None:
        if trial_id not in self._running or "ended" not in result:
            return
        trial, _ = self._running[trial_id]
        for key, status in result["ended"]:
            self._announce(trial)
            if self.ledger.settle(self.ledger.plan.stages[key], status):
                self._idle_deaths = 0
            self._started.discard(trial_id)
        self._announce(trial)

    def _announce(self, trial: Trial) -> None:
        stage = next((stage for stage in trial.stages if not self.ledger.settled(stage.key)), None)
        if stage is not None and trial.name not in self._started:
            self._started.add(trial.name)
            self.ledger.listener.on_start(stage)

    def _poll(self) -> None:
        """Look at every trial that is alive: callbacks alone would miss some ends."""
        for name, (trial, made) in list(self._running.items()):
            if made.status == TuneTrial.RUNNING:
                self._announce(trial)
            elif made.status in (TuneTrial.TERMINATED, TuneTrial.ERROR):
                del self._running[name]
                self._retire(trial, made)
                self._started.discard(name)
                made.config.clear()  # Tune keeps ended trials; they need not be large

    def _retire(self, trial: Trial, made: TuneTrial) -> None:
        died = made.status == TuneTrial.ERROR
        error = _error(made) if died else AssayError("reported done without a record")
        begun = {marker["key"] for marker in self.ledger.store.running()} if died else set()
        at_work = None
        for stage in trial.stages:
            # A worker may die, or be misunderstood, after a commit or a failure that it did not report any more.
            status = "failed" if self.ledger.store.failure(stage.key) else None
            if self.ledger.settle(stage, status) or at_work is not None:
                continue
            if not died or stage.key in begun or trial.name in self._started:
                at_work = stage.key
        if at_work is not None:
            self.ledger.store.clear_running(at_work)
        preempted = bool(getattr(error, "preempted", False))  # a node taken away is no fault of the stage
        self.ledger.retire(trial, None if preempted else at_work, _reason(error))
        if died and at_work is None:
            self._idle_deaths += 1
            if self._idle_deaths > self.options.max_deaths + self.ledger.scheduler.capacity.workers:
                raise AssayError(f"workers cannot start: {_reason(error)}")

    def _refresh(self) -> None:
        """Follow a cluster that grows or shrinks; nobody replaces this machine's own node."""
        if time.monotonic() - self._refreshed <= _REFRESH_S:
            return
        self._refreshed = time.monotonic()
        if self.options.address is not None:
            self.ledger.scheduler.capacity = _capacity(self.options, self.context)
        elif not any(node["Alive"] for node in ray.nodes()):
            raise AssayError("Ray has died on this machine; what is committed is kept, run the same command again")


class _KeepWarm(FIFOScheduler):  # type: ignore[misc]
    """First in, first out; and no idle worker is stopped while the sweep goes on.

    A new worker costs seconds (it imports torch). Only for sweeps of one resource class: an idle worker keeps its
    resources, which another class might need.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = workers

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Raise the limit of idle workers, once."""
        cache = getattr(tune_controller, "_actor_cache", None)  # private: without it workers restart, nothing else
        if self._workers and cache is not None:
            cache.increase_max(trial.placement_group_factory, by=self._workers)
        self._workers = 0


def run_tune(plan: Plan, context: Context, options: Options, listener: Listener, store: Store) -> Summary:
    """Execute a plan on Ray Tune; see `orchestrator.execution.driver.run`."""
    # Tune's state: temporary, removed at the end, never read again.
    folder = tempfile.mkdtemp(prefix="assay-tune-")
    try:
        with _quiet(), _cluster(options, context):
            capacity = _capacity(options, context)
            scheduler = new_scheduler(plan, store, capacity, options)
            for resource, lack in scheduler.infeasible().items():
                raise BadInput(f"stages of class {resource} need {lack} here; use a machine or cluster that has it")
            ledger = Ledger(plan, store, scheduler, listener)
            search = DagSearch(ledger, context, options, _factories())
            with _interruptible(search, listener):
                _fit(search, capacity.workers, folder)
            return ledger.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fit(search: DagSearch, workers: int, folder: str) -> None:
    plan, state = search.ledger.plan, search.ledger.scheduler.state
    classes = {plan.stages[key].resource for key in state}
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2 * workers)
    # `tune.run`, because a Tuner pickles its search algorithm; a new name each time, because nothing is restored.
    tune.run(
        Worker,
        name=f"{plan.name}-{uuid.uuid4().hex[:8]}",
        search_alg=search,
        scheduler=_KeepWarm(workers if len(classes) == 1 else 0),
        num_samples=-1,
        storage_path=folder,
        reuse_actors=True,
        max_failures=0,
        raise_on_failed_trial=False,
        verbose=0,
    )


def _factories() -> dict[str, Any]:
    # One object per class: Tune reuses workers among equal factories.
    return {name: PlacementGroupFactory([dict(needs)]) for name, needs in RESOURCES.items()}


def _capacity(options: Options, context: Context) -> Capacity:
    there = ray.cluster_resources()
    amounts = {name: float(there.get(name, 0.0)) for name in ("CPU", "GPU")}
    return Capacity(options.workers or max(1, int(amounts["CPU"])), amounts)


@contextmanager
def _cluster(options: Options, context: Context) -> Iterator[None]:
    """Join the cluster, or start Ray on this machine alone, reachable from this machine alone."""
    if ray.is_initialized():
        yield
        return
    how: dict[str, Any] = {"address": options.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        gpus = torch.cuda.device_count() if context.device == "cuda" else 0
        slots = math.ceil(gpus / RESOURCES["gpu.small"]["GPU"])
        how |= {
            "address": "local",  # never a cluster that happens to run here
            "num_cpus": max(options.workers or os.cpu_count() or 1, slots),
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    try:
        ray.init(**how)
    except Exception as error:  # Ray raises bare exceptions here
        if options.address is None:
            raise AssayError(f"Ray does not start on this machine ({_reason(error)})") from error
        raise BadInput(f"--address {options.address}: no Ray cluster there ({_reason(error)})") from None
    try:
        yield
    finally:
        ray.shutdown()  # ends the workers at once; what they had not committed runs again


@contextmanager
def _interruptible(search: DagSearch, listener: Listener) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a clean end, the second into an immediate one."""

    def stop(number: int, frame: Any) -> None:
        if search.interrupted:
            raise KeyboardInterrupt
        search.interrupted = True
        listener.on_note("stopping; finished stages are kept, the same command goes on from here")

    before: dict[int, Any] = {}
    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, stop)
    except ValueError:
        pass  # not the main thread: whoever owns it handles signals
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Only our own words on the terminal: Ray's loggers speak of errors that we report ourselves."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _error(made: TuneTrial) -> Exception:
    """What ended a trial; Tune leaves it in a file of our temporary folder."""
    try:
        with open(made.pickled_error_file, "rb") as file:
            error: Exception = ray.cloudpickle.load(file)
    except (OSError, TypeError, EOFError, pickle.UnpicklingError):
        return AssayError("Ray gave no reason")
    return error


def _reason(error: BaseException) -> str:
    """The first line that says something, short enough for a row."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in _COLOURS.sub("", str(cause)).splitlines() if line.strip()] or ["no message"]
    if "creation task" in lines[0]:
        return lines[-1][:300]  # of the trace of a worker that could not start
    return f"{type(cause).__name__}: {lines[0]}"[:300]
