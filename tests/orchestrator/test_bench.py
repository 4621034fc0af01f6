"""What a stage is handed: what its identity declares, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.bench import Bench, Context
from orchestrator.keys import content_key
from orchestrator.plan import Stage
from tasks.errors import AssayError
from tasks.task import resolve_task


@pytest.fixture
def bench_of(tmp_path: Path) -> Any:
    def build(**declared: Any) -> Bench:
        identity = {"task": resolve_task("digits-cnn-mini", "smoke", {}).model_dump(mode="json"), "seed": 0, **declared}
        return Bench(Stage(content_key(identity), "attack", identity, (), 1.0, True, "stage"), Context(str(tmp_path)))

    return build


def test_a_declared_data_set_is_handed_out_whole(bench_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(other={"digits": "fingerprint"})
    monkeypatch.setattr(bench, "task", bench.task.but(dataset="mnist"))
    train, test = bench.lab("attack", 0, "attack").other("digits")
    assert len(train) + len(test) == 1797
    assert train.inputs.dtype == torch.uint8


def test_of_the_victims_own_data_set_an_attack_gets_what_nobody_holds(bench_of: Any) -> None:
    bench = bench_of(other={"digits": "fingerprint"})
    rest, test = bench.lab("attack", 0, "attack").other("digits")
    assert (len(rest), len(test)) == (1438 - 512, 0)
    splits = bench.splits
    parts = (splits.owner.train, splits.owner.held_out, splits.attacker.train, splits.attacker.held_out, splits.test)
    held = {row.numpy().tobytes() for part in parts for row in part.inputs}
    assert not held & {row.numpy().tobytes() for row in rest.inputs}


def test_images_of_the_owner_under_another_name_are_not_handed_out(
    bench_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(other={"cifar10": "fingerprint"})
    monkeypatch.setattr(bench, "task", bench.task.but(dataset="cifar5"))
    with pytest.raises(AssayError, match="the owner's among them"):
        bench.lab("attack", 0, "attack").other("cifar10")


def test_what_is_not_declared_is_not_handed_out(bench_of: Any) -> None:
    lab = bench_of(other={"digits": "fingerprint"}).lab("attack", 0, "attack")
    with pytest.raises(AssayError, match=r"no data set 'mnist' \(declared: digits\)"):
        lab.other("mnist")
    with pytest.raises(AssayError, match=r"no unmarked model 'clean' \(declared: none\)"):
        lab.unmarked("clean")
