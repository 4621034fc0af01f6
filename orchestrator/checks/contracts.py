"""Contract checks: `assay check FILE` runs them on a plugin, the tests on every registered method and attack."""

from __future__ import annotations

import inspect
import itertools
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from assay.attacks.base import Attack
from assay.methods.base import Method
from assay.orchestrator.checks.common import COMMON_CHECKS
from assay.orchestrator.checks.of_attacks import ATTACK_CHECKS
from assay.orchestrator.checks.of_methods import METHOD_CHECKS
from assay.orchestrator.checks.workbench import ContractBroken, NotTested, Workbench
from assay.orchestrator.planning.registry import Plugin, Registry, load_plugin, plugin_classes
from assay.orchestrator.work.environment import require
from assay.tasks.errors import BadInput

Check = Callable[[Workbench, Any], None]


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check of one plugin.

    Attributes:
        subject: the plugin's key.
        name: the check's name.
        promise: what every plugin promises, in one sentence.
        status: kept, broken, or skipped (the promise has no meaning for this plugin).
        reason: why it is broken and what to do, or why it was skipped.
        wall_s: seconds that the check took, shared models included for the first that asks for them.
    """

    subject: str
    name: str
    promise: str
    status: Literal["kept", "broken", "skipped"]
    reason: str
    wall_s: float

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return self.status != "broken"

    @property
    def text(self) -> str:
        """The promise; behind it the reason, if it is broken. Of a skipped check the reason alone."""
        both = f"{self.promise} Broken: {self.reason}"
        return {"kept": self.promise, "broken": both, "skipped": self.reason}[self.status]


def checks_of(cls: type[Plugin]) -> tuple[Check, ...]:
    """Return the checks that apply to a class: the common ones, then its kind's."""
    return (*COMMON_CHECKS, *(METHOD_CHECKS if issubclass(cls, Method) else ATTACK_CHECKS))


def run_check(cls: type[Plugin], check: Check, bench: Workbench) -> CheckResult:
    """Run one check; what a plugin raises is a broken promise, with the line of the plugin where it happened."""
    started = time.perf_counter()
    status: Literal["kept", "broken", "skipped"] = "kept"
    reason = ""
    try:
        with _one_thread():
            check(bench, cls)
    except NotTested as why:
        status, reason = "skipped", str(why)
    except ContractBroken as why:
        status, reason = "broken", str(why)
    except Exception as error:
        status, reason = "broken", f"{type(error).__name__}: {_first_line(error)}{_place(error, cls)}"
    promise = (check.__doc__ or "").strip().splitlines()[0]
    name: str = getattr(check, "__name__", "check")
    return CheckResult(cls.key, name.replace("_", "-"), promise, status, reason, time.perf_counter() - started)


def run_checks(cls: type[Plugin], bench: Workbench | None = None) -> Iterator[CheckResult]:
    """Run all checks of a class in order, yielding each result as it is known."""
    if bench is None:
        with Workbench(Registry()) as own:
            yield from run_checks(cls, own)
        return
    known: dict[str, str] = {}  # the first check that met each fault
    for check in checks_of(cls):
        result = run_check(cls, check, bench)
        if result.status == "broken" and result.reason in known:
            result = replace(result, status="skipped", reason=f"the same fault as in {known[result.reason]}")
        elif result.status == "broken":
            known[result.reason] = result.name
        yield result


def check_file(
    path: Path, report: Callable[[CheckResult], None] | None = None, device: str = "cpu"
) -> list[CheckResult]:
    """Run all checks of every method and attack that a file defines.

    Args:
        path: a plugin file, or the file of a registered method or attack.
        report: called with each result as it is known.
        device: `cpu` or `cuda`.

    Raises:
        BadInput: the file cannot be imported, or defines neither a method nor an attack; or there is no such device.
    """
    registry = Registry()
    known: list[type[Plugin]] = [*registry.methods.values(), *registry.attacks.values()]
    classes = [cls for cls in known if Path(inspect.getfile(cls)).resolve() == path.resolve()]
    if not classes:
        registry = Registry([path])
        module, where = load_plugin(path), f"plugin {path}"
        classes = [*plugin_classes(module, Method, where), *plugin_classes(module, Attack, where)]
    if not classes:
        raise BadInput(f"plugin {path}: defines no subclass of methods.base.Method or attacks.base.Attack")
    results = []
    require(device)
    with Workbench(registry, device) as bench:
        for result in itertools.chain.from_iterable(run_checks(cls, bench) for cls in classes):
            results.append(result)
            if report is not None:
                report(result)
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: bits must not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")


def _place(error: Exception, cls: type[Plugin]) -> str:
    file = inspect.getfile(cls)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    place = (own or frames)[-1:]  # the plugin's own line if there is one, else where it was raised
    return f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
