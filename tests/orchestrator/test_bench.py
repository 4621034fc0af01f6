"""What a stage is handed: what its identity declares, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assay.orchestrator.keys import content_key
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.work.bench import Bench, Clock, Context
from assay.tasks.errors import AssayError
from assay.tasks.lab import Lab
from assay.tasks.task import resolve_task


@pytest.fixture
def bench_of(tmp_path: Path) -> Any:
    def build(**declared: Any) -> Bench:
        identity = {"task": resolve_task("digits-cnn-mini", "smoke", {}).model_dump(mode="json"), "seed": 0, **declared}
        return Bench(Stage(content_key(identity), "attack", identity, (), 1.0, True, "stage"), Context(str(tmp_path)))

    return build


def attackers(bench: Bench) -> Lab:
    return bench.lab("attack", 0, "attack", "attacker", bench.splits.attacker)


def test_a_declared_data_set_is_handed_out_whole(bench_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(other={"digits": "fingerprint"})
    lab = attackers(bench)
    monkeypatch.setattr(bench, "task", bench.task.but(dataset="mnist"))
    train, test = lab.other("digits")
    assert len(train) + len(test) == 1797
    assert train.inputs.dtype == torch.uint8


def test_of_the_victims_own_data_set_an_attack_gets_what_nobody_holds(bench_of: Any) -> None:
    bench = bench_of(other={"digits": "fingerprint"})
    rest, test = attackers(bench).other("digits")
    assert (len(rest), len(test)) == (1438 - 512, 0)
    splits = bench.splits
    parts = (splits.owner.train, splits.owner.held_out, splits.attacker.train, splits.attacker.held_out, splits.test)
    held = {row.numpy().tobytes() for part in parts for row in part.inputs}
    assert not held & {row.numpy().tobytes() for row in rest.inputs}


def test_images_of_the_owner_under_another_name_are_not_handed_out(
    bench_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(other={"cifar10": "fingerprint"})
    lab = attackers(bench)
    monkeypatch.setattr(bench, "task", bench.task.but(dataset="cifar5"))
    with pytest.raises(AssayError, match="the owner's among them"):
        lab.other("cifar10")


def test_what_is_not_declared_is_not_handed_out(bench_of: Any) -> None:
    lab = attackers(bench_of(other={"digits": "fingerprint"}))
    with pytest.raises(AssayError, match=r"no data set 'mnist' \(declared: digits\)"):
        lab.other("mnist")
    with pytest.raises(AssayError, match=r"no unmarked model 'clean' \(declared: none\)"):
        lab.unmarked("clean")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets the peak of a process")
def test_the_peak_of_memory_is_that_of_the_work_alone() -> None:
    def peak(before: int = 0, inside: int = 0, evaluating: int = 0) -> float:
        """MiB that a clock notes, where so many MiB are taken and given back."""

        def take(mib: int) -> None:
            np.ones(mib * 2**17)  # pages that are not touched are not resident

        take(before)
        clock = Clock(torch.device("cpu"))
        with clock.running():
            take(inside)
            with clock.paused():
                take(evaluating)
            np.ones(2**17)
        return clock.peak_mib

    idle = peak()
    assert idle > 1
    assert peak(before=128) < idle + 32
    assert peak(evaluating=128) < idle + 32
    assert idle + 96 < peak(inside=128) < idle + 160


def test_costs_have_every_figure_of_the_record(bench_of: Any) -> None:
    bench, lab = bench_of(), attackers(bench_of())
    with bench.clock.running():
        lab.meter.touch(torch.rand(3, 2).repeat(2, 1))
    costs = bench.costs(lab.meter)
    assert set(costs) == {
        "wall_s", "device_s", "peak_mem_mb", "forward_samples", "backward_samples", "steps", "queries",
        "unique_samples",
    }  # fmt: skip
    assert costs["unique_samples"] == 3
    assert costs["peak_mem_mb"] > 1
