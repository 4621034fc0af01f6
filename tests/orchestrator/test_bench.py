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


def test_a_declared_data_set_is_handed_out_whole(bench_of: Any) -> None:
    lab = bench_of(other={"digits": "fingerprint"}).lab("attack", 0, "attack")
    train, test = lab.other("digits")
    assert len(train) + len(test) == 1797
    assert train.inputs.dtype == torch.uint8


def test_what_is_not_declared_is_not_handed_out(bench_of: Any) -> None:
    lab = bench_of(other={"digits": "fingerprint"}).lab("attack", 0, "attack")
    with pytest.raises(AssayError, match=r"no data set 'mnist' \(declared: digits\)"):
        lab.other("mnist")
    with pytest.raises(AssayError, match=r"no unmarked model 'clean' \(declared: none\)"):
        lab.unmarked("clean")
