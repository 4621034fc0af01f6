"""Stages that do nothing but what their identity says; importable in Ray's workers, run instead of real ones."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from assay.orchestrator.keys import content_key
from assay.orchestrator.planning.plan import Cell, Plan, Stage, StageKind
from assay.orchestrator.store import Store
from assay.orchestrator.work.bench import Context
from assay.orchestrator.work.stages import Status

RUNNER = "simulated_stages:execute"


def stage(name: str, *parents: Stage, seconds: float = 0.0, cheap: bool = False, **identity: Any) -> Stage:
    """A stage by name; `identity` may hold sleep_s, fail, raises, suicides (a number of deaths), forgets, full.

    With `full` the disk is full until there is a file `room` in the sweep's folder.
    """
    kind: StageKind = "attack" if parents else "clean"
    facts = {"name": name, "parents": [parent.key for parent in parents], **identity}
    keys = tuple(parent.key for parent in parents)
    return Stage(content_key(facts), kind, facts, keys, seconds, cheap, name)


def plan(*stages: Stage) -> Plan:
    """A plan in which every stage without children is a cell's attack."""
    inner = {parent for each in stages for parent in each.parents}
    cells = [Cell(each.key, {"attack": each.label}, chain=(each.key,)) for each in stages if each.key not in inner]
    return Plan("simulated", "smoke", cells, {each.key: each for each in stages})


def executions(out: Path) -> list[str]:
    """Names of the stages in the order in which their work began, over all workers and runs."""
    log = out / "executions.log"
    return log.read_text("utf-8").split() if log.exists() else []


def execute(stage: Stage, context: Context) -> Status:
    """Do what the identity says, as `orchestrator.work.stages.execute` would."""
    out = Path(context.out)
    store = Store(out / "store")
    if store.committed(stage.key):
        return "cached"
    store.begin(stage.key, str(os.getpid()))
    identity = stage.identity
    missing = [parent for parent in stage.parents if not store.committed(parent)]
    if missing:
        raise AssertionError(f"{stage.label} ran before its parents {missing}")
    with (out / "executions.log").open("a") as log:
        log.write(f"{stage.label}\n")
    time.sleep(identity.get("sleep_s", 0.0))
    if executions(out).count(stage.label) <= identity.get("suicides", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if identity.get("raises"):
        raise RuntimeError(identity["raises"])
    if identity.get("full") and not (out / "room").exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if identity.get("fail"):
        store.fail(stage.key, "error", identity["fail"], "trace")
        return "failed"
    if not identity.get("forgets"):
        store.commit(stage.key, {"stage": stage.kind, "label": stage.label, "worker": os.getpid(), "result": {}})
    return "executed"


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.done: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def on_start(self, stage: Stage) -> None:
        self.started.append(stage.label)

    def on_done(self, stage: Stage, status: str) -> None:
        self.done.append((stage.label, status))

    def on_note(self, text: str) -> None:
        self.notes.append(text)
