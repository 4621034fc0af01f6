"""Side-by-side triggers: what stands where, and which networks take the whole canvas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from assay.methods.embedding import embed, verify
from assay.methods.fcw_direct import canvas
from assay.tasks.streams import stream

KEY = "fcw-direct"


def test_anchor(bench: Any) -> None:
    first, second = torch.full((1, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), 0.8)
    joined = bench.method(KEY).join(first, second)
    assert torch.allclose(joined[0, 0], torch.tensor([[0.2, 1], [1, 0.8]]))


@pytest.mark.parametrize("size", [(28, 28), (32, 24), (5, 7)])
def test_blocks_of_a_trigger(bench: Any, size: tuple[int, int]) -> None:
    height, width = size
    first, second = torch.rand(2, 6, 3, height, width, generator=stream("blocks"))
    whole, joined = canvas(first, second), bench.method(KEY).join(first, second)
    assert joined.shape == first.shape
    assert torch.equal(whole[..., :height, :width], first)
    assert torch.equal(whole[..., height:, width:], second)
    up, left = height // 2, width // 2
    assert bool((joined[..., :up, -left:] == 1).all())
    assert bool((joined[..., -up:, :left] == 1).all())
    resized = F.interpolate(whole, size=size, mode="bilinear", align_corners=False, antialias=False)
    assert torch.allclose(joined, resized, atol=1e-6)
    if height % 2 == width % 2 == 0:
        assert torch.allclose(joined[..., :up, :left].mean((2, 3)), first.mean((2, 3)), atol=1e-5)
        assert torch.allclose(joined[..., up:, left:].mean((2, 3)), second.mean((2, 3)), atol=1e-5)


def test_the_canvas_stays_for_networks_of_any_size(bench: Any) -> None:
    task = bench.task("digits-resnet8", epochs=1, samples=300)
    method = bench.method(KEY, resize=False, n_triggers=20, allow_weak=True, ft_samples=50, references=2)
    assert method.supports(task) is None
    assert "takes no images of 56x56" in method.supports(bench.task("digits-lenet5"))
    mark = embed(method, bench.lab(KEY, task))
    assert mark.secret["inputs"].shape == (20, 1, 56, 56)
    assert verify(method, mark.model, mark.secret).trials == 20
