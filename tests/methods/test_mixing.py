"""Keys behind every clean batch: how often each is seen, and that the clean samples do not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assay.methods.parts.mixing import KeyBatches, MixKeys
from assay.tasks.lab import Lab
from assay.tasks.training.trainer import Batch


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def clean(size: int = 4) -> Batch:
    return Batch(torch.full((size, 1), -1.0), torch.zeros(size, dtype=torch.long), torch.arange(size), size)


def keys(count: int, per_step: int, bench: Any) -> KeyBatches:
    inputs = torch.arange(count).float().unsqueeze(1)
    return KeyBatches(inputs, torch.arange(count), per_step, bench.lab("mixing", bench.task()))


def exposure(source: KeyBatches, steps: int) -> torch.Tensor:
    seen = torch.cat([source.append(clean(), step).labels[4:] for step in range(steps)])
    return torch.bincount(seen, minlength=len(source.labels))


@pytest.mark.parametrize(("samples", "expected"), [(50_000, 10), (60_000, 12)])
def test_exposure_anchor(samples: int, expected: int, bench: Any) -> None:
    source = keys(100, 2, bench)
    source.shuffle(0)
    assert exposure(source, samples // 100).unique().tolist() == [expected]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 120), st.integers(0, 3))
def test_every_key_is_seen_equally_often(bench: Any, count: int, per_step: int, steps: int, epoch: int) -> None:
    source = keys(count, per_step, bench)
    source.shuffle(epoch)
    seen = exposure(source, steps)
    assert int(seen.max() - seen.min()) <= 1
    rounds = steps // -(-count // per_step)
    assert int(seen.min()) >= rounds


def test_keys_stand_behind_the_clean_part_with_their_own_labels(bench: Any) -> None:
    source = keys(10, 3, bench)
    source.shuffle(0)
    batch = clean()
    mixed = MixKeys(source).mix(batch, 5)
    assert mixed.clean == 4
    assert torch.equal(mixed.inputs[:4], batch.inputs)
    assert torch.equal(mixed.index, batch.index)
    assert torch.equal(mixed.inputs[4:, 0].long(), mixed.labels[4:])


def test_order_changes_with_the_epoch_and_survives_a_restart(bench: Any) -> None:
    def epoch(source: KeyBatches, number: int) -> list[int]:
        MixKeys(source).before_epoch(Identity(), number)
        return torch.cat([source.append(clean(), step).labels[4:] for step in range(4)]).tolist()

    running = keys(12, 3, bench)
    first, second = epoch(running, 0), epoch(running, 1)
    assert first != second
    assert epoch(keys(12, 3, bench), 1) == second
    assert sorted(first) == list(range(12))


def test_loss_anchor(bench: Any) -> None:
    lab = bench.lab("mixing", bench.task())
    recipe = MixKeys(KeyBatches(torch.tensor([[0.0, 0.0, 0.5]]), torch.tensor([0]), 1, lab))
    recipe.before_epoch(Identity(), 0)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    batch = recipe.mix(Batch(logits, torch.tensor([0, 1]), torch.arange(2), 2), 0)
    each = F.cross_entropy(batch.inputs, batch.labels, reduction="none")
    assert each.tolist() == pytest.approx([0.23954477, 0.55144471, 1.29437677], abs=1e-7)
    assert float(recipe.loss(Identity(), batch)["task"]) == pytest.approx(0.69512208, abs=1e-7)


def test_keys_that_cannot_be_mixed_are_refused(bench: Any) -> None:
    with pytest.raises(ValueError, match="0 per step"):
        keys(3, 0, bench)
    with pytest.raises(ValueError, match="0 keys"):
        keys(0, 1, bench)


def test_lab_names_the_stream(bench: Any) -> None:
    task = bench.task()
    labs: list[Lab] = [bench.lab("mixing", task), bench.lab("mixing", task, seed=1), bench.lab("other", task)]
    orders = []
    for lab in labs:
        source = KeyBatches(torch.zeros(50, 1), torch.arange(50), 50, lab)
        source.shuffle(0)
        orders.append(source.epoch_labels.tolist())
    assert orders[0] != orders[1] != orders[2] != orders[0]
