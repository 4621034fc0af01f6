"""Counterfeit evidence: each procedure reaches what its section of the literature says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.methods.parts.forging import adversarial_triggers, contradiction, solve_projection
from assay.tasks.errors import UnsupportedModel


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@settings(max_examples=30, deadline=None)
@given(bits=st.lists(st.integers(0, 1), min_size=1, max_size=40), size=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_solved_projection_reads_any_message(bits: list[int], size: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    weights, message = torch.randn(size, generator=draws), torch.tensor(bits)
    projected = solve_projection(weights, message, draws) @ weights.double()
    assert torch.equal((projected >= 0).long(), message)
    assert torch.allclose(projected.abs(), torch.full_like(projected, 2.0), atol=1e-9)


def test_a_zero_carrier_cannot_be_solved_for() -> None:
    with pytest.raises(UnsupportedModel, match="carrier is zero"):
        solve_projection(torch.zeros(5), torch.ones(3), torch.Generator())


def test_adversarial_triggers_reach_their_labels_within_bounds() -> None:
    model, draws = network(), torch.Generator().manual_seed(2)
    images, labels = torch.rand(20, 3, 4, 4, generator=draws), torch.randint(0, 4, (20,), generator=draws)
    before = [parameter.clone() for parameter in model.parameters()]
    with torch.no_grad():  # as inside a verifier
        triggers = adversarial_triggers(model, images, labels, epsilon=0.4)
    assert float((model(triggers).argmax(1) == labels).float().mean()) > 0.9
    assert float((model(images).argmax(1) == labels).float().mean()) < 0.6
    assert float((triggers - images).abs().max()) <= 0.4 + 1e-6
    assert float(triggers.min()) >= 0
    assert float(triggers.max()) <= 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_contradiction_differs_in_every_bit_and_every_label() -> None:
    labels = torch.arange(200) % 5
    secret: dict[str, Any] = {
        "inputs": torch.rand(200, 3),
        "labels": labels,
        "message": torch.tensor([0, 1, 1], dtype=torch.uint8),
        "layers": [{"bits": torch.tensor([1.0, -1.0])}, {"bits": torch.tensor([True, False])}],
        "classes": 5,
    }
    denied = contradiction(secret, 5, torch.Generator().manual_seed(0))
    assert bool((denied["labels"] != labels).all())
    assert set(denied["labels"].tolist()) == {0, 1, 2, 3, 4}
    assert denied["message"].tolist() == [1, 0, 0]
    assert denied["layers"][0]["bits"].tolist() == [-1.0, 1.0]
    assert denied["layers"][1]["bits"].tolist() == [False, True]
    assert denied["inputs"] is secret["inputs"]
    assert torch.equal(secret["labels"], labels)  # the owner's own secret stays
    with pytest.raises(UnsupportedModel, match="neither bits nor labels"):
        contradiction({"key": b"x"}, 5, torch.Generator())
