"""What holds on the CPU holds on a GPU: every promise of every plugin, and whole sweeps that share one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from assay.methods.embedding import verify
from assay.orchestrator.checks.contracts import run_checks
from assay.orchestrator.checks.workbench import Workbench, laptop
from assay.orchestrator.command.cli import main
from assay.orchestrator.planning.registry import Plugin, Registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
REGISTRY = Registry()
METHODS = sorted(REGISTRY.methods)
SWEEP: dict[str, Any] = {
    "name": "shared-gpu",
    "tasks": ["digits-cnn-mini"],
    "methods": [{key: {"allow_weak": True}} for key in METHODS if REGISTRY.methods[key].access != "nothing"],
    "attacks": ["none", "fine-tune", "prune", "distill", "overwrite"],
    "seeds": 1,
    "profile": "laptop",
    "train": {"references": 2, "processed": 0, "calibration_keys": 20, "epochs": 3},
}


@pytest.fixture(scope="session")
def bench() -> Iterator[Workbench]:
    with Workbench(REGISTRY, "cuda") as made:
        yield made


def _broken(bench: Workbench, cls: type[Plugin]) -> list[str]:
    return [f"{result.name}: {result.reason}" for result in run_checks(cls, bench) if not result.ok]


@pytest.mark.parametrize("key", METHODS)
def test_a_method_keeps_its_promises_on_a_gpu(bench: Workbench, key: str) -> None:
    assert _broken(bench, REGISTRY.methods[key]) == []


@pytest.mark.parametrize("key", sorted(REGISTRY.attacks))
def test_an_attack_keeps_its_promises_on_a_gpu(bench: Workbench, key: str) -> None:
    assert _broken(bench, REGISTRY.attacks[key]) == []


@pytest.mark.parametrize("key", [key for key in METHODS if REGISTRY.methods[key].access != "nothing"])
def test_a_mark_made_on_a_gpu_reads_the_same_on_the_cpu(bench: Workbench, key: str) -> None:
    """An owner embeds on a cluster and verifies on a laptop; a score may differ by what a sum's order moves."""
    cls = REGISTRY.methods[key]
    mark = bench.marked(cls)
    method = laptop(cls)
    served = method.served(mark.model, mark.secret)
    there = verify(method, served, mark.secret)
    here = verify(method, served.cpu(), mark.secret)
    assert here.accepted == there.accepted
    assert here.score == pytest.approx(there.score, abs=0.02)


def test_stages_share_a_gpu_and_a_second_sweep_gives_the_same_bits(tmp_path: Path) -> None:
    """Quarters of one GPU under Ray: no cell fails, and neither neighbours nor order change a digest."""
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump(SWEEP), "utf-8")
    digests = []
    for workers in (4, 2):
        out = tmp_path / f"workers-{workers}"
        assert main(["run", str(grid), "-o", str(out), "--device", "cuda", "--workers", str(workers), "--json"]) == 0
        records = [json.loads(path.read_text("utf-8")) for path in (out / "store").glob("??/*/record.json")]
        assert {record["identity"]["numerics"]["device"] for record in records} == {"cuda"}
        weights = sorted((out / "store").glob("??/*/*.safetensors"))
        digests.append({(path.parent.name, path.name): path.read_bytes() for path in weights})
    assert digests[0] == digests[1]
