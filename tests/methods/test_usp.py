"""Unified soft-label perturbation: what it shares with the customized scheme, its reductions, and what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.csp import CSP
from methods.parts.detector import Detector, detector_loss
from methods.parts.soft_label import SoftLabelRecipe, divergence
from methods.suspect import Suspect
from methods.usp import USP
from tasks.data import Splits
from tasks.lab import Lab
from tasks.task import Task, resolve_task
from tasks.trainer import Recipe, fit

CPU = torch.device("cpu")
TASK = resolve_task("digits-cnn-mini", "laptop", {"references": 2, "processed": 0})


def method(**config: Any) -> USP:
    return USP(USP.Config.model_validate({**USP.laptop, **config}))


@pytest.fixture(scope="module")
def data() -> Splits:
    torch.set_num_threads(1)
    return TASK.data(None, 0, CPU)


@pytest.fixture(scope="module")
def models(data: Splits) -> dict[str, nn.Module]:
    def trained(name: str) -> nn.Module:
        return fit(TASK.build(name), data.owner.train, Recipe(), TASK.schedule, seed=name).model

    return {role: trained(f"train|{role}") for role in ("reference-0", "reference-1", "adversary")}


def lab(models: dict[str, nn.Module], folder: Path, seed: int = 0) -> Lab:
    return Lab("usp", seed, CPU, folder, f"train|{seed}", unmarked=lambda role: _copy(models[role]))


def _copy(model: nn.Module) -> nn.Module:
    copied = TASK.build("copy")
    copied.load_state_dict(model.state_dict())
    return copied


def test_equal_answers_feel_no_divergence() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    marked = logits.clone().requires_grad_()
    value = divergence(marked, logits, 4.0)
    value.backward()
    assert marked.grad is not None
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert float(marked.grad.abs().max()) < 1e-6


@pytest.mark.parametrize(("kind", "moves"), [("log_softmax", False), ("logits", True)])
def test_a_common_shift_is_seen_by_raw_logits_alone(kind: Any, moves: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Detector(4, [8], kind)
    marked, unmarked = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))

    def terms(shift: float) -> Tensor:
        moved = marked + shift
        return torch.stack([divergence(moved, unmarked, 4.0), detector_loss(detector, moved)]).detach()

    assert torch.allclose(terms(0.0), terms(3.0), atol=1e-5) is not moves


def test_ablations_leave_their_term_out(models: dict[str, nn.Module], data: Splits, tmp_path: Path) -> None:
    for config, names in (({"alpha": 0.0}, {"detection"}), ({"use_detector_loss": False}, {"divergence"})):
        recipe = method(**config).recipe(TASK, data.owner, {}, lab(models, tmp_path))
        assert isinstance(recipe, SoftLabelRecipe)
        assert set(recipe.perturbation(torch.randn(2, 10), torch.randn(2, 10))) == names


def test_owners_know_their_models_but_not_each_others(
    models: dict[str, nn.Module], data: Splits, tmp_path: Path
) -> None:
    own = method(n_probe=200)
    first, second = (own.embed(TASK, data.owner, lab(models, tmp_path / str(seed), seed)) for seed in (0, 1))
    assert first.secret["key"] != second.secret["key"]
    for mark in (first, second):
        verdict = own.verify(Suspect(mark.model, "logits", "usp"), mark.secret)
        assert verdict.detected
        assert verdict.p_value < 1e-6
        assert verdict.threshold == 0.85
    clean = own.verify(Suspect(_copy(models["reference-0"]), "logits", "usp"), first.secret)
    assert not clean.detected
    foreign = own.verify(Suspect(second.model, "logits", "usp"), first.secret)
    assert foreign.metrics["det_rate"] > clean.metrics["det_rate"], (
        "the paper's own table: usp cannot tell owners apart"
    )


def test_only_csp_has_a_signal() -> None:
    task: Task = TASK
    assert "signal" not in USP.Config.model_fields
    assert USP(USP.Config()).config.beta == 1.0
    assert CSP(CSP.Config()).config.beta == 0.1
    assert "reference" in (method().supports(task.but(references=1)) or "")
