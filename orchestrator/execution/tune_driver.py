"""The plan on Ray Tune: a search algorithm that releases stages, and a trainable whose step runs one.

What Tune is held to (measured on Ray 2.60, kept by tests/orchestrator/test_tune_driver.py):

- trial dependencies work by `next_trial` returning None; with trials alive Tune asks again within 0.1 s;
- a trial may end without any callback (a failed reset), so `Trial.status` is polled;
- a bare search algorithm is limited by `TUNE_MAX_PENDING_TRIALS_PG` alone;
- Tune keeps warm only as many idle workers as trials are queued, and one.
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
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when Ray is imported or started; whoever started the process may have chosen otherwise.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` workers would wait for an environment of their own
        "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # a worker's death would be printed on our standard output
        "RAY_AIR_NEW_OUTPUT": "0",  # the old output is the one that `verbose=0` silences
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # we choose the workers' folder
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
from ray.tune.search import SearchAlgorithm

from assay.orchestrator.execution.executor import Listener, Options, Summary
from assay.orchestrator.execution.ledger import RESOURCES, Ledger, attempt, new_scheduler, resolve_runner
from assay.orchestrator.execution.scheduler import Capacity, Trial
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.tasks.errors import AssayError, BadInput

_REFRESH_S = 5.0  # between looks at a cluster's resources
_STEP_S = 0.25  # seconds for which a worker goes on before it reports; Tune spends some 10 ms on a report
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
STALL_S = 60.0  # without any stage at work, after which a person is told
# Of a folder whose sockets have names that the system takes: 107 bytes on Linux, 103 on macOS.
_LONGEST_FOLDER = 103 - len("/session_2026-11-28_11-32-51_504729_1234567/sockets/plasma_store")
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
        self.stages, self.context, runner, folder = _unpacked(config)
        if folder:
            os.chdir(folder)
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


_Work = tuple[tuple[Stage, ...], Context, str, str]  # stages, context, runner, working folder (empty: the worker's)


def _packed(work: _Work) -> dict[str, Any]:
    # Bytes, because Tune copies, flattens and scans configurations again and again.
    return {"work": pickle.dumps(work)}


def _unpacked(config: dict[str, Any]) -> _Work:
    work: _Work = pickle.loads(config["work"])  # noqa: S301 -- our own driver's
    return work


class DagSearch(SearchAlgorithm):  # type: ignore[misc]
    """Releases the ledger's stages to Tune as trials, and learns from their status and the store how they ended."""

    def __init__(
        self,
        ledger: Ledger,
        context: Context,
        options: Options,
        factories: Mapping[str, Any],
        begun: threading.Event,
    ) -> None:
        self.ledger, self.context, self.options, self.factories = ledger, context, options, factories
        self.interrupted = False
        self.begun = begun  # set when some worker begins a stage
        # Relative paths mean the same to a plugin in a worker on this machine as in the driver.
        self._folder = str(Path.cwd()) if options.address is None else ""
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
            AssayError: nothing can be committed any more, or no worker can start.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        self._poll()
        self._refresh()
        self.ledger.check()
        trial = self.ledger.scheduler.release()
        if trial is None:
            return None
        assert self._experiment is not None, "Tune adds the experiment before it asks for trials"
        made = TuneTrial(
            self._experiment.run_identifier,
            trial_id=trial.name,
            config=_packed((trial.stages, self.context, self.options.runner, self._folder)),
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
            self.begun.set()
            self._started.add(trial.name)
            self.ledger.listener.on_start(stage)

    def _poll(self) -> None:
        """Look at every trial that is alive: callbacks alone would miss some ends."""
        if self.ledger.halted:
            return  # what has ended without a record is nobody's fault
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


def run_tune(plan: Plan, context: Context, options: Options, listener: Listener, store: Store) -> Summary:
    """Execute a plan on Ray Tune; see `orchestrator.execution.executor.Executor`."""
    # Tune's state: temporary, removed at the end, never read again.
    folder = tempfile.mkdtemp(prefix="assay-tune-")
    begun = threading.Event()
    try:
        with _quiet(), _warned(begun, listener) as place, _cluster(options, context, listener, place, folder):
            capacity = _capacity(options, context)
            scheduler = new_scheduler(plan, store, capacity, options)
            for resource, lack in scheduler.infeasible().items():
                raise BadInput(f"stages of class {resource} need {lack} here; use a machine or cluster that has it")
            ledger = Ledger(plan, store, scheduler, listener)
            search = DagSearch(ledger, context, options, _factories(), begun)
            with _interruptible(search, listener):
                _fit(search, capacity.workers, folder)
            return ledger.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fit(search: DagSearch, workers: int, folder: str) -> None:
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2 * workers)
    # `tune.run`, because a Tuner pickles its search algorithm; a new name each time, because nothing is restored.
    tune.run(
        Worker,
        name=f"sweep-{uuid.uuid4().hex[:8]}",
        search_alg=search,
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
def _cluster(
    options: Options, context: Context, listener: Listener, place: dict[str, str], folder: str
) -> Iterator[None]:
    """Join the cluster, or start Ray on this machine alone, reachable from this machine alone.

    Args:
        options, context: of the sweep.
        listener: told if Ray's files cannot lie where they usually do.
        place: takes the folder of Ray's log under `logs`, for a person to look into.
        folder: an empty one, where Ray's processes start.
    """
    if ray.is_initialized():
        yield
        return
    how: dict[str, Any] = {"address": options.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        gpus = torch.cuda.device_count() if context.device == "cuda" else 0
        slots = math.ceil(gpus / RESOURCES["gpu.small"]["GPU"])
        own = _ray_folder(listener)
        place["logs"] = str(own / "session_latest" / "logs")
        how |= {
            "address": "local",  # never a cluster that happens to run here
            "num_cpus": max(options.workers or os.cpu_count() or 1, slots),
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": str(own),
        }
    try:
        with _outside(folder):
            session = ray.init(**how).address_info.get("session_dir")
    except Exception as error:  # Ray raises bare exceptions here
        if options.address is None:
            raise AssayError(f"Ray does not start on this machine ({_reason(error)})") from error
        raise BadInput(f"--address {options.address}: no Ray cluster there ({_reason(error)})") from None
    if session:
        place["logs"] = str(Path(session) / "logs")
    try:
        yield
    finally:
        ray.shutdown()  # ends the workers at once; what they had not committed runs again


def _ray_folder(listener: Listener) -> Path:
    """Return where Ray on this machine keeps its sockets and logs: where it would by itself, unless that is too long.

    Raises:
        BadInput: no folder is short enough.
    """
    # Ray's own choice, e.g. /tmp/ray.
    usual = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None) or "/tmp"  # noqa: S108
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = Path(usual).absolute() / "ray"
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return folder
    what = f"{name} is {len(os.fsencode(usual))} characters long, Ray's sockets take at most {_LONGEST_FOLDER - 4}"
    short = Path("/tmp")  # noqa: S108 -- Ray's own default
    if not os.access(short, os.W_OK | os.X_OK):
        raise BadInput(f"{what}, and /tmp cannot be written; set RAY_TMPDIR to a folder with a short path")
    listener.on_note(f"{what}: they lie in /tmp/ray; RAY_TMPDIR names another folder")
    return short / "ray"


@contextmanager
def _outside(folder: str) -> Iterator[None]:
    """Keep the user's working folder off the workers' import path, while Ray starts or is joined.

    Ray puts the driver's working folder at the head of it, where a `torch.py` of the user's would be taken for torch.
    What `PYTHONPATH` names stays, by absolute paths. Workers return to the user's folder (`Worker.setup`).

    Args:
        folder: where Ray's processes start instead; it must stay while they live.
    """
    before, path = Path.cwd(), os.environ.get("PYTHONPATH")
    if path:
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in path.split(os.pathsep))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        if path:
            os.environ["PYTHONPATH"] = path


@contextmanager
def _warned(begun: threading.Event, listener: Listener) -> Iterator[dict[str, str]]:
    """Say so, once, if no stage has begun for a while, whatever the cause; the value takes the place of Ray's log."""
    place = {"logs": ""}
    over = threading.Event()

    def wait() -> None:
        until = time.monotonic() + STALL_S
        while time.monotonic() < until:
            if over.wait(min(1.0, STALL_S)) or begun.is_set():
                return
        where = f"; Ray's log: {place['logs']}" if place["logs"] else ""
        listener.on_note(f"no stage has begun for {STALL_S:g} s: no worker is free or can start{where}")

    watch = threading.Thread(target=wait, name="stall-watch", daemon=True)
    watch.start()
    try:
        yield place
    finally:
        over.set()
        watch.join()


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
