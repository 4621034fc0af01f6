"""Blended triggers: the weight of either image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.tasks.streams import stream

KEY = "fcw-invisible"


def images() -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.rand(2, 6, 3, 8, 8, generator=stream("blend"))
    return first, second


def test_anchor(bench: Any) -> None:
    first, second = torch.full((1, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), 0.8)
    blend = bench.method(KEY, r=0.7).join(first, second)
    assert blend.flatten().tolist() == pytest.approx([0.38] * 4)


@given(st.floats(0.01, 0.99))
def test_pixels_stay_between_the_sources(bench: Any, r: float) -> None:
    first, second = images()
    blend = bench.method(KEY, r=r).join(first, second)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    assert bool(((blend >= low - 1e-6) & (blend <= high + 1e-6)).all())
    assert bool(((blend - first).abs() <= (1 - r) * (second - first).abs() + 1e-6).all())


def test_half_is_symmetric_and_one_is_the_first(bench: Any) -> None:
    first, second = images()
    half = bench.method(KEY, r=0.5)
    assert torch.equal(half.join(first, second), half.join(second, first))
    assert torch.allclose(bench.method(KEY, r=1 - 1e-7).join(first, second), first, atol=1e-6)
