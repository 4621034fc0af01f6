"""What an attack can reach in a real stage: a spy in its place looks at everything that it was handed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from inline_sweep import Silent, planned
from torch import nn

from assay.attacks.base import Outcome, Victim
from assay.attacks.distill import Distill
from assay.orchestrator.execution.driver import Options, run
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.work.bench import Bench, Context
from assay.tasks.errors import AccessDenied, AssayError
from assay.tasks.lab import Lab

GRID: dict[str, Any] = {
    "name": "isolation",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"adi": {"allow_weak": True}}],
    "attacks": [{"distill": {"split": ["disjoint20", "same", "pir5k", "limited-5", "none"]}}],
    "seeds": 1,
    "profile": "smoke",
    "train": {"samples": 500, "epochs": 1, "test_samples": 100, "references": 1, "calibration_keys": 10},
}


def reachable(*roots: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor on a public path from the roots, through attributes, containers and modules."""
    front, seen = list(roots), set[int]()
    while front:
        one = front.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, nn.Module):
            front += one.state_dict().values()
        elif isinstance(one, dict):
            front += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            front += one
        elif hasattr(one, "__dict__"):
            front += [value for name, value in vars(one).items() if not name.startswith("_")]


def samples(inputs: torch.Tensor) -> set[bytes]:
    return {row.cpu().numpy().tobytes() for row in inputs}


@pytest.fixture(scope="module")
def spied(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Bench]:
    """Run the grid with a spy instead of distillation; return what it saw by split mode, and an evaluator's bench."""
    folder = tmp_path_factory.mktemp("isolation")
    seen: dict[str, Any] = {}
    context = Context(str(folder / "out"))

    def spy(self: Distill, victim: Victim, lab: Lab) -> Outcome:
        denied = []
        for look in (victim.weights, victim.module):
            try:
                look()
            except AccessDenied:
                denied.append(look.__name__)
        for ask in (lambda: lab.unmarked("clean"), lambda: lab.unmarked("reference-0"), lambda: lab.other("digits")):
            try:
                ask()
            except AssayError as error:
                denied.append(str(error))
        tensors = [tensor.clone() for tensor in reachable(victim, lab)]
        seen[self.config.split] = {"denied": denied, "tensors": tensors, "data": lab.data}
        return Outcome(victim.task.build("spy"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distill, "run", spy)
        patch.setattr(Distill, "supports", lambda *_: None)
        _, plan = planned(GRID, folder)
        summary = run(plan, context, Options(executor="inline"), Silent())
    assert (summary.failed, summary.blocked) == (0, 0)
    stage: Stage = next(stage for stage in plan.stages.values() if stage.kind == "attack")
    return seen, Bench(stage, context)


MODES = GRID["attacks"][0]["distill"]["split"]


@pytest.mark.parametrize("mode", MODES)
def test_no_part_of_the_secret_is_reached(spied: tuple[dict[str, Any], Bench], mode: str) -> None:
    seen, bench = spied
    secret = bench.store.tree(bench.identity["embed"], "secret")
    hidden = [tensor for tensor in reachable(secret) if tensor.numel() >= 16]
    assert hidden, "there is something to find"
    for tensor in seen[mode]["tensors"]:
        assert not any(tensor.shape == part.shape and torch.equal(tensor, part) for part in hidden)


@pytest.mark.parametrize("mode", MODES)
def test_no_weight_of_a_served_victim_is_reached(spied: tuple[dict[str, Any], Bench], mode: str) -> None:
    seen, bench = spied
    weights = [value for value in bench.store.model(bench.identity["embed"]).values() if value.numel() >= 16]
    assert seen[mode]["denied"][:2] == ["weights", "module"]
    for tensor in seen[mode]["tensors"]:
        assert not any(tensor.shape == part.shape and torch.equal(tensor, part) for part in weights)


@pytest.mark.parametrize("mode", MODES)
def test_the_split_mode_decides_what_data_are_reached(spied: tuple[dict[str, Any], Bench], mode: str) -> None:
    seen, bench = spied
    splits = bench.splits
    owner = samples(splits.owner.train.inputs) | samples(splits.owner.held_out.inputs)
    images = [t for t in seen[mode]["tensors"] if t.dim() == 4 and t.dtype == splits.test.inputs.dtype]
    found = set().union(*(samples(tensor) for tensor in images))
    assert not found & (samples(splits.test.inputs) - owner - samples(splits.attacker.train.inputs)), "no test data"
    assert bool(found & owner) == (mode in ("same", "pir5k"))
    assert not found & samples(splits.owner.held_out.inputs), "the owner's own validation data are nobody else's"
    assert bool(found) == (mode != "none")


@pytest.mark.parametrize("mode", MODES)
def test_undeclared_models_and_data_are_refused(spied: tuple[dict[str, Any], Bench], mode: str) -> None:
    refused = spied[0][mode]["denied"][2:]
    assert [text.split(" (")[0] for text in refused] == [
        "distill declares no unmarked model 'clean'",
        "distill declares no unmarked model 'reference-0'",
        "the stage declares no data set 'digits'",
    ]


def test_an_unmarked_model_handed_out_is_a_copy(spied: tuple[dict[str, Any], Bench], tmp_path: Path) -> None:
    bench = spied[1]
    embed = bench.store.record(bench.identity["embed"])["identity"]["unmarked"]["clean"]
    bench.identity["unmarked"] = {"null-0": embed}
    lab = bench.lab("spy", 0, "spy", "attacker", bench.splits.attacker)
    with torch.no_grad():
        for parameter in lab.unmarked("null-0").parameters():
            parameter.zero_()
    assert any(bool(parameter.any()) for parameter in lab.unmarked("null-0").parameters())
