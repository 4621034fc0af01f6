"""Pruning: exact counts, nested masks, untouched rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from assay.attacks.parts.pruning import zero_smallest
from assay.attacks.prune import Config, Prune

WEIGHTS = ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")


def pruned(field: Range, **config: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = field.run(Prune, **config).surrogate.state_dict()
    return state


def test_ties_go_to_the_earlier_entry() -> None:
    tensors = [torch.tensor([1.0, -1.0, 3.0]), torch.tensor([[1.0, 0.5]])]
    zero_smallest(tensors, 2)
    assert tensors[0].tolist() == [0.0, -1.0, 3.0]
    assert tensors[1].tolist() == [[1.0, 0.0]]


@given(
    st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=8), min_size=1, max_size=4),
    st.data(),
)
def test_counts_are_exact_and_masks_nest(values: list[list[int]], data: st.DataObject) -> None:
    total = sum(map(len, values))
    more = data.draw(st.integers(0, total))
    less = data.draw(st.integers(0, more))
    gone = []
    for count in (less, more):
        tensors = [torch.tensor(row, dtype=torch.float32) + 0.01 for row in values]  # no zeros of their own
        kept = torch.cat(tensors)
        zero_smallest(tensors, count)
        after = torch.cat(tensors)
        assert int((after == 0).sum()) == count
        assert torch.equal(after[after != 0], kept[after != 0])
        assert count in (0, total) or kept[after == 0].abs().max() <= kept[after != 0].abs().min()
        gone.append(after == 0)
    assert not (gone[0] & ~gone[1]).any()


def test_global_scope(field: Range) -> None:
    before, after = field.model.state_dict(), pruned(field, ratio=0.29)
    total = sum(before[name].numel() for name in WEIGHTS)
    assert sum(int((after[name] == 0).sum()) for name in WEIGHTS) == int(total * 29 / 100)
    for name, value in before.items():
        kept = after[name] != 0 if name in WEIGHTS else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(after[name][kept], value[kept])


def test_layer_scope_prunes_each_layer_alone(field: Range) -> None:
    after = pruned(field, ratio=0.5, scope="layer")
    assert [int((after[name] == 0).sum()) for name in WEIGHTS] == [after[name].numel() // 2 for name in WEIGHTS]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_skip_last_spares_the_layer_of_the_logits(field: Range, scope: Any) -> None:
    after = pruned(field, ratio=1.0, scope=scope, skip_last=True)
    assert torch.equal(after["fc2.weight"], field.model.fc2.weight)
    assert not any(after[name].any() for name in WEIGHTS[:3])


@pytest.mark.parametrize("scope", ["global", "layer", "wrt", "all"])
def test_ratio_zero_is_the_identity(field: Range, scope: Any) -> None:
    assert field.digest(field.run(Prune, ratio=0.0, scope=scope).surrogate) == field.digest(field.model)


def test_comparison_scopes_reach_beyond_weights(field: Range) -> None:
    everything, toolkit = pruned(field, ratio=1.0, scope="all"), pruned(field, ratio=1.0, scope="wrt")
    assert not everything["bn1.weight"].any()
    assert torch.equal(everything["bn1.running_var"], field.model.bn1.running_var)
    assert torch.equal(toolkit["bn1.weight"], field.model.bn1.weight)
    assert not toolkit["fc1.bias"].any()
    # The toolkit rounds up in each tensor, the paper's rule down over all of them.
    assert int((pruned(field, ratio=0.05, scope="wrt")["fc2.bias"] == 0).sum()) == 1


def test_the_curve_holds_the_share_of_zeros(field: Range) -> None:
    lab = field.lab("prune")
    Prune(Config(ratio=0.5, scope="layer")).run(field.victim("weights"), lab)
    assert [row["share"] for row in lab.curves] == [0.5] * 4


def test_a_share_is_meant_in_decimal(field: Range) -> None:
    model = torch.nn.Linear(100, 1)
    assert 0.29 * 100 < 29
    surrogate = field.run(Prune, field.victim("weights", model=model), ratio=0.29).surrogate
    assert int((surrogate.weight == 0).sum()) == 29
    assert torch.equal(surrogate.bias, model.bias)
