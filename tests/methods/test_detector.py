"""Detectors of soft-label perturbation: losses, gradients, training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.methods.parts.detector import Detector, DetectorTraining, detector_loss
from assay.methods.parts.soft_label import divergence


def test_anchor_divergence() -> None:
    unmarked = torch.tensor([[2.0, 0.0, -1.0]])
    marked = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    loss = divergence(marked, unmarked, 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(1.030230, abs=1e-5)
    assert marked.grad is not None
    torch.testing.assert_close(marked.grad, torch.tensor([[-0.6353, 0.3572, 0.2782]]), atol=1e-4, rtol=0)
    assert divergence(marked, unmarked, 4.0, reverse=True).item() == pytest.approx(1.088009, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.floats(-20, 20))
def test_a_common_shift_of_the_logits_changes_nothing(seed: int, shift: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    marked, unmarked = torch.randn(5, 6, generator=draws), torch.randn(5, 6, generator=draws)
    torch.manual_seed(seed)
    detector = Detector(6, [8, 4], "log_softmax")
    for function in (lambda x: divergence(x, unmarked, 4.0), lambda x: detector_loss(detector, x), detector):
        torch.testing.assert_close(function(marked + shift), function(marked), atol=2e-4, rtol=1e-3)
    # Probabilities are as good as logits at verification.
    probabilities = marked.softmax(1).clamp_min(1e-12).log()
    torch.testing.assert_close(detector(probabilities), detector(marked), atol=1e-4, rtol=1e-3)


def test_raw_logits_do_show_a_shift() -> None:
    torch.manual_seed(0)
    detector, logits = Detector(6, [8, 4], "logits"), torch.randn(5, 6)
    assert not torch.allclose(detector(logits + 5), detector(logits))


def test_equal_outputs_have_no_divergence_and_no_gradient() -> None:
    marked = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = divergence(marked, marked.detach().clone(), 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert marked.grad is not None
    assert marked.grad.abs().max() < 1e-6


def test_who_receives_gradients() -> None:
    torch.manual_seed(0)
    training = DetectorTraining(Detector(5, [8], "log_softmax"), 1e-2, 140)
    marked, unmarked = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    detector_loss(training.detector, marked).backward()
    assert marked.grad is not None
    assert marked.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in training.detector.parameters())
    before = [weight.clone() for weight in training.detector.parameters()]
    training.step(marked.detach(), unmarked)
    assert any(not torch.equal(a, b) for a, b in zip(before, training.detector.parameters(), strict=True))


def test_a_perfect_detector_rests_until_it_errs() -> None:
    torch.manual_seed(0)
    training = DetectorTraining(Detector(3, [8], "log_softmax"), 1e-2, 2)
    marked, unmarked = torch.randn(8, 3), torch.randn(8, 3)

    def moved() -> bool:
        before = [weight.clone() for weight in training.detector.parameters()]
        training.step(marked, unmarked)
        return any(not torch.equal(a, b) for a, b in zip(before, training.detector.parameters(), strict=True))

    training.accuracy = 1.0
    assert not moved()
    training.start_epoch(1)  # reads what the resting detector got right: not all
    assert training.accuracy < 1
    assert moved()
    assert training.optimizer.param_groups[0]["lr"] == 1e-2
    training.start_epoch(2)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
