"""Every registered method and attack keeps every promise; new ones are included by being registered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.attacks.base import Attack
from assay.methods.base import Method
from assay.orchestrator.checks.common import COMMON_CHECKS
from assay.orchestrator.checks.contracts import Check, check_file, checks_of, run_check
from assay.orchestrator.checks.of_attacks import runs_on, runs_or_says_why
from assay.orchestrator.checks.of_methods import (
    marked_model_is_detected,
    p_values_are_honest,
    unmarked_model_is_not_detected,
    wrong_secret_is_not_detected,
)
from assay.orchestrator.checks.workbench import NotTested, Workbench
from assay.orchestrator.planning.registry import Plugin, Registry
from assay.tasks.errors import BadInput

REGISTRY = Registry()
_FULLY_TRAINED = (
    marked_model_is_detected,
    unmarked_model_is_not_detected,
    wrong_secret_is_not_detected,
    p_values_are_honest,
)


def named(check: Check) -> str:
    return str(getattr(check, "__name__", check))


@pytest.fixture(scope="session")
def bench() -> Iterator[Workbench]:
    with Workbench(REGISTRY) as made:
        yield made


def _cases(classes: Iterable[type[Plugin]]) -> Iterator[Any]:
    for cls in classes:
        for check in checks_of(cls):
            if check is not runs_or_says_why:  # its pairs are tests of their own
                marks = [pytest.mark.xdist_group(cls.key)]
                marks += [pytest.mark.slow] if check in _FULLY_TRAINED else []
                yield pytest.param(cls, check, id=f"{cls.key}-{named(check)}", marks=marks)


@pytest.mark.parametrize(("cls", "check"), list(_cases([*REGISTRY.methods.values(), *REGISTRY.attacks.values()])))
def test_promise_is_kept(bench: Workbench, cls: type[Plugin], check: Check) -> None:
    result = run_check(cls, check, bench)
    if result.status == "skipped":
        pytest.skip(result.reason)
    assert result.ok, result.reason


def _pairs() -> Iterator[Any]:
    for attack in REGISTRY.attacks.values():
        for method in REGISTRY.methods.values():
            yield pytest.param(
                attack, method, id=f"{attack.key}-{method.key}", marks=pytest.mark.xdist_group(method.key)
            )


@pytest.mark.parametrize(("attack", "method"), list(_pairs()))
def test_attack_runs_on_method_or_says_why(
    bench: Workbench, attack: type[Attack[Any]], method: type[Method[Any]]
) -> None:
    try:
        runs_on(bench, attack, method)
    except NotTested as why:
        reason = str(why)
    else:
        return
    assert reason.strip(), f"{attack.key}.supports refuses {method.key} without a reason"
    pytest.skip(reason)


def test_every_check_states_its_promise() -> None:
    classes: list[type[Plugin]] = [*REGISTRY.methods.values(), *REGISTRY.attacks.values()]
    for cls in classes:
        checks = checks_of(cls)
        assert set(COMMON_CHECKS) < set(checks)
        for check in checks:
            assert check.__doc__
            assert check.__doc__.splitlines()[0].rstrip().endswith("."), named(check)


def test_a_gpu_that_is_not_there_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="--device cuda: torch finds no CUDA device"):
        check_file(Path("methods/uchida.py"), device="cuda")
