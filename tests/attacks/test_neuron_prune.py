"""Neuron pruning: exact counts, zeros that reach the next layer, and cutting out what is zero."""

from __future__ import annotations

import copy
from itertools import pairwise
from math import floor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_range import Range, Zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks.neuron_prune import Config, NeuronPrune
from assay.attacks.parts.channels import Group, cut, silence
from assay.attacks.parts.graph import channel_groups
from assay.attacks.parts.neurons import chosen, magnitudes
from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.architectures import ARCHITECTURES
from assay.tasks.training.trainer import predict


class Net(nn.Module):
    """Branches that are concatenated, a depthwise layer, a flattened map."""

    def __init__(self, widths: list[int], norm: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, width, 3) for width in widths)
        total = sum(widths)
        self.norm = nn.BatchNorm2d(total) if norm else nn.Identity()
        self.depthwise, self.slopes = nn.Conv2d(total, total, 3, groups=total), nn.PReLU(total)
        self.mix = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise([total, *widths]))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * 16, 6), nn.Tanh(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([branch(x) for branch in self.branches], 1)))
        x = self.slopes(self.depthwise(x))
        for mix in self.mix:
            x = F.relu(mix(x))
        return self.head(x)


def prune(model: nn.Module, groups: list[Group], picked: list[Tensor]) -> tuple[nn.Module, nn.Module]:
    """Return a copy with units zeroed, and one with them cut out."""
    zeroed = copy.deepcopy(model)
    for group, units in zip(groups, picked, strict=True):
        silence(zeroed, group, units)
    smaller = copy.deepcopy(zeroed)
    cut(smaller, list(zip(groups, picked, strict=True)))
    return zeroed, smaller


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    norm=st.booleans(),
    percent=st.integers(0, 99),
)
def test_cutting_out_equals_zeroing(zoo: type[Zoo], widths: list[int], norm: bool, percent: int) -> None:
    model = zoo.randomised(Net(widths, norm)).double()
    groups = channel_groups(model)
    picked = chosen([magnitudes(model, group) for group in groups], percent / 100, "layer")
    assert [len(units) for units in picked] == [percent * group.channels // 100 for group in groups]
    zeroed, smaller = prune(model, groups, picked)
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        assert torch.allclose(zeroed(x), smaller(x), rtol=1e-10, atol=1e-12)
    for group, units in zip(groups, picked, strict=True):
        for name in group.layers("producer"):
            assert len(smaller.get_parameter(f"{name}.weight")) == group.channels - len(units)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    percents=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    scope=st.sampled_from(["global", "layer"]),
    seed=st.integers(0, 99),
)
def test_counts_are_exact_and_choices_nest(sizes: list[int], percents: tuple[int, int], scope: Any, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    scores = [torch.randint(0, 4, (size,), generator=draws).double() for size in sizes]
    less, more = (chosen(scores, percent / 100, scope) for percent in sorted(percents))
    for picked, percent in zip((less, more), sorted(percents), strict=True):
        if scope == "global":
            assert sum(len(units) for units in picked) == percent * sum(sizes) // 100
        else:
            assert [len(units) for units in picked] == [min(percent * size // 100, size - 1) for size in sizes]
    for a, b, score in zip(less, more, scores, strict=True):
        assert set(a.tolist()) <= set(b.tolist())
        kept = [float(score[unit]) for unit in range(len(score)) if unit not in a.tolist()]
        assert not kept or not len(a) or float(score[a].max()) <= min(kept)


@pytest.mark.parametrize("key", sorted(ARCHITECTURES))
def test_registered_networks(field: Range, zoo: type[Zoo], key: str) -> None:
    """On every architecture zeroed units are zero for their readers, and cutting them out gives the same answers."""
    model = zoo.copy(key)
    groups = [group for group in channel_groups(model) if not group.is_stream and group.keeps_zero]
    groups = [g for g in groups if not isinstance(model.get_submodule(g.layers("producer")[0]), nn.Embedding | nn.LSTM)]
    if key == "lstm":
        assert not groups  # its hidden units are zeroed and stay
        return
    picked = chosen([magnitudes(model, group) for group in groups], 0.4, "layer")
    assert all(len(units) == floor(0.4 * group.channels) for group, units in zip(groups, picked, strict=True))
    zeroed, smaller = prune(model, groups, picked)
    inputs = zoo.inputs(key)
    with torch.no_grad():
        assert torch.allclose(zeroed(inputs), smaller(inputs), rtol=1e-4, atol=1e-5)
    # A zeroed unit says nothing: what its readers do with it does not matter.
    with torch.no_grad():
        before = zeroed(inputs)
        for group, units in zip(groups, picked, strict=True):
            for member in group.members:
                if member.role == "consumer":
                    member.of(zeroed).index_fill_(member.axis, member.positions(units), 1e3)
        assert torch.equal(before.argmax(1), zeroed(inputs).argmax(1))
        assert torch.allclose(before, zeroed(inputs), rtol=1e-4, atol=1e-5)


def test_zeroed_recurrent_units_are_silent(zoo: type[Zoo]) -> None:
    model = zoo.copy("lstm")
    group = next(group for group in channel_groups(model) if group.name == "lstm.weight_ih_l0")
    silence(model, group, torch.arange(100))
    with torch.no_grad():
        states = model.get_submodule("lstm")(model.get_submodule("embedding")(zoo.inputs("lstm")))[0]
    assert not states[..., :100].any()
    assert bool(states[..., 100:].all())


def test_the_mean_of_incoming_magnitudes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([1.0, -2, 3, -4, 0, 0, 0, 2]).view(2, 1, 2, 2))
        model.get_parameter("2.weight").copy_(torch.tensor([[1.0, -3], [0, 1]]))
    scores = [magnitudes(model, group).tolist() for group in channel_groups(model)]
    assert scores == [[2.5, 0.5], [2.0, 0.5]]
    # Both second units have the least mean; the earlier layer's goes first.
    assert [units.tolist() for units in chosen([torch.tensor(s) for s in scores], 0.25, "global")] == [[1], []]


def test_counts_on_the_victim(field: Range) -> None:
    after = field.run(NeuronPrune, ratio=0.29).surrogate
    gone = [~after.get_submodule(name).weight.flatten(1).any(1) for name in ("conv1", "conv2", "fc1")]
    assert sum(int(rows.sum()) for rows in gone) == (16 + 32 + 64) * 29 // 100
    for rows, name in zip(gone, ("bn1", "bn2"), strict=False):
        norm, old = after.get_submodule(name), field.model.get_submodule(name)
        assert not norm.weight[rows].any()
        assert not norm.bias[rows].any()
        assert torch.equal(norm.weight[~rows], old.weight[~rows])
        assert torch.equal(norm.running_var, old.running_var)
    assert torch.equal(after.fc2.weight, field.model.fc2.weight)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_compact_answers_as_zeroed(field: Range, scope: Any) -> None:
    inputs = field.splits.test.inputs
    for ratio in (0.3, 1.0):
        zeroed = field.run(NeuronPrune, ratio=ratio, scope=scope)
        compact = field.run(NeuronPrune, ratio=ratio, scope=scope, compact=True)
        assert (zeroed.structure, compact.structure, compact.notes) == ("same", "changed", [])
        assert torch.allclose(predict(zeroed.surrogate, inputs), predict(compact.surrogate, inputs), atol=1e-4)
        sizes = [sum(p.numel() for p in outcome.surrogate.parameters()) for outcome in (zeroed, compact)]
        assert sizes[1] < sizes[0]


def test_norms_whose_offset_stays_would_keep_a_constant(field: Range) -> None:
    """The negative control: a unit without weights, but with its beta, still speaks."""
    model = copy.deepcopy(field.model)
    with torch.no_grad():
        model.conv1.weight[:8] = 0
        model.bn1.bias[:8] = 1
        loud = F.relu(model.bn1(model.conv1(torch.rand(1, 1, 8, 8))))[:, :8]
        silence(model, channel_groups(model)[0], torch.arange(8))
        quiet = F.relu(model.bn1(model.conv1(torch.rand(1, 1, 8, 8))))[:, :8]
    assert loud.any()
    assert not quiet.any()


def test_what_is_no_unit(field: Range, zoo: type[Zoo]) -> None:
    def shares(key: str, **config: Any) -> list[float]:
        lab = field.lab("neuron-prune")
        victim = field.victim("weights", model=zoo.copy(key))
        NeuronPrune(Config(**config)).run(victim, lab)
        return [row["share"] for row in lab.curves]

    assert len(shares("resnet8", scope="layer")) == 3  # one inner group for each block
    assert len(shares("resnet8", scope="layer", streams=True)) == 6
    assert len(shares("lstm")) == 1  # word vectors are no neurons
    assert len(shares("textcnn")) == 3


def test_units_that_cannot_be_cut_are_named(field: Range) -> None:
    layers = (nn.Flatten(), nn.Linear(64, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 10))
    victim = field.victim("weights", model=nn.Sequential(*layers))
    outcome = field.run(NeuronPrune, victim, ratio=0.5, scope="layer", compact=True)
    assert outcome.notes == ["1: zeroed, not cut out"]
    assert [tuple(outcome.surrogate[place].weight.shape) for place in (1, 3, 5)] == [(6, 64), (2, 6), (10, 2)]


def test_a_network_without_hidden_neurons_is_refused(field: Range) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UnsupportedModel, match="no hidden neurons"):
        field.run(NeuronPrune, field.victim("weights", model=model))
