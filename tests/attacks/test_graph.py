"""The channel-coupling graph: its groups, and that permuting along them never changes the function."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.parts.channels import Group, permute
from attacks.parts.graph import channel_groups, logit_layer
from tasks.architectures import ARCHITECTURES, Normalize, kind_of
from tasks.errors import UnsupportedModel
from tasks.networks.classic import MLP
from tasks.networks.residual import ResNet


def normalize() -> Normalize:
    """Return a layer of its own for each network, since a network moves its modules to its precision."""
    return Normalize((0.4, 0.5, 0.6), (0.3, 0.2, 0.25))


class ConvNet(nn.Module):
    """Convolutions with or without batch norm, then a flattened or an averaged map, then dense layers."""

    def __init__(self, widths: list[int], dense: int, norm: bool, average: bool) -> None:
        super().__init__()
        self.norm, self.average = norm, average
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise([3, *widths]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if norm else nn.Identity() for width in widths)
        self.fc1 = nn.Linear(widths[-1] * (1 if average else 16), dense)
        self.act = nn.PReLU(dense)
        self.fc2 = nn.Linear(dense, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        x = F.adaptive_avg_pool2d(x, 4)
        x = x.mean((2, 3)) if self.average else x.view(x.size(0), -1)
        return self.fc2(self.act(self.fc1(x)))


class Odd(nn.Module):
    """Concatenation, a depthwise layer, a gate, and a group norm that must freeze what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3)
        self.depthwise = nn.Conv2d(10, 10, 3, groups=10)
        self.gate = nn.Linear(10, 10)
        self.c = nn.Conv2d(10, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.d = nn.Conv2d(8, 7, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(7 * 16, 5), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.cat([self.a(x), F.silu(self.b(x))], 1))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3)))).unsqueeze(2).unsqueeze(3)
        return self.head(F.relu(self.d(self.norm(self.c(x)))))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and running statistic, so that a forgotten one shows."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 2, generator=draws)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(generator=draws)
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(-1, 1, generator=draws)
    return model.eval()


def shuffle(model: nn.Module, groups: list[Group], seed: int = 1) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(group.channels, generator=draws).roll(1) for group in groups]
    for group, order in zip(groups, orders, strict=True):
        permute(model, group, order)
    return orders


def error(model: nn.Module, groups: list[Group], dtype: torch.dtype = torch.float64, train: bool = False) -> float:
    """Return the relative change of the outputs after permuting `groups`."""
    model = model.to(dtype).train(train)
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad():
        before = model(x)
        shuffle(model, groups)
        return float((model(x) - before).norm() / before.norm())


WIDTHS = st.lists(st.integers(2, 7), min_size=1, max_size=3)
NETS = st.one_of(
    st.builds(lambda widths: MLP((3, 8, 8), 5, normalize(), tuple(widths), 0.0), WIDTHS),
    st.builds(ConvNet, WIDTHS, st.integers(2, 6), st.booleans(), st.booleans()),
    st.builds(
        lambda widths, blocks: ResNet((3, 8, 8), 5, normalize(), tuple(widths), tuple(blocks[: len(widths)])),
        WIDTHS,
        st.lists(st.integers(1, 2), min_size=3, max_size=3),
    ),
)


@settings(max_examples=40, deadline=None)
@given(model=NETS, train=st.booleans())
def test_permuting_every_group_preserves_the_function(model: nn.Module, train: bool) -> None:
    groups = channel_groups(model)
    assert groups
    before = {name: value.clone() for name, value in randomised(model).double().state_dict().items()}
    assert error(model, groups, train=train) < 1e-12
    for name, value in model.state_dict().items():
        if not train:  # a pass in train mode moves the running statistics itself
            assert torch.equal(value.flatten().sort()[0], before[name].flatten().sort()[0])


@pytest.mark.parametrize("key", sorted(key for key in ARCHITECTURES if kind_of(key) == "image"))
def test_shipped_networks_in_single_precision(key: str) -> None:
    model = randomised(ARCHITECTURES[key]((3, 32, 32), 10, normalize()))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = model(x)
        shuffle(model, channel_groups(model))
        assert float((model(x) - before).norm() / before.norm()) < 1e-5


def test_inverse_restores_every_bit() -> None:
    model = randomised(ResNet((3, 8, 8), 5, normalize(), (4, 6), (1, 2)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = channel_groups(model)
    orders = shuffle(model, groups)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for group, order in zip(groups, orders, strict=True):
        permute(model, group, order.argsort())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def without(group: Group, module: str = "", tensors: tuple[str, ...] = ()) -> Group:
    """Leave out some members of a group."""
    kept = [m for m in group.members if m.module != module and m.tensor not in tensors]
    assert len(kept) < len(group.members)
    return replace(group, members=tuple(kept))


@pytest.mark.parametrize("forgotten", [("running_mean", "running_var"), ("running_var",), ("bias",)])
def test_forgetting_batch_norm_breaks_the_function(forgotten: tuple[str, ...]) -> None:
    model = randomised(ResNet((3, 8, 8), 5, normalize(), (4, 6), (1, 2)))
    groups = [without(group, tensors=forgotten) for group in channel_groups(model)]
    assert error(model, groups) > 0.01


@pytest.mark.parametrize("producer", ["blocks.1.conv2", "blocks.1.shortcut.0", "blocks.2.conv2"])
def test_leaving_out_one_producer_of_a_stream_breaks_the_function(producer: str) -> None:
    model = randomised(ResNet((3, 8, 8), 5, normalize(), (4, 6), (1, 2)))
    stream = next(group for group in channel_groups(model) if producer in group.layers("producer"))
    assert stream.is_stream
    assert error(model, [without(stream, module=producer)]) > 0.01


def test_groups_of_a_residual_network() -> None:
    groups = {group.name: group for group in channel_groups(ResNet((3, 8, 8), 5, normalize(), (4, 6), (1, 2)))}
    stem, inner, last = groups["conv1"], groups["blocks.1.conv1"], groups["blocks.1.conv2"]
    assert stem.layers("producer") == ("conv1", "blocks.0.conv2")
    assert stem.layers("carrier") == ("bn1", "blocks.0.bn2")
    assert stem.layers("consumer") == ("blocks.0.conv1", "blocks.1.conv1", "blocks.1.shortcut.0")
    assert inner.layers("producer") == ("blocks.1.conv1",)
    assert inner.layers("consumer") == ("blocks.1.conv2",)
    assert not inner.is_stream
    assert last.layers("producer") == ("blocks.1.conv2", "blocks.1.shortcut.0", "blocks.2.conv2")
    assert last.layers("consumer") == ("blocks.2.conv1", "fc")
    assert len(groups) == 5
    assert all(group.scalable for group in groups.values())


def test_flattened_maps_own_blocks_of_columns() -> None:
    groups = channel_groups(ARCHITECTURES["lenet5"]((3, 32, 32), 10, normalize()))
    assert [group.channels for group in groups] == [6, 16, 120, 84]
    assert [member.block for member in groups[1].members] == [1, 1, 25]
    assert groups[1].members[-1].positions(torch.tensor([2, 0])).tolist() == [*range(50, 75), *range(25)]


def test_concatenation_depthwise_and_unknown_operations() -> None:
    model = randomised(Odd())
    groups = {group.name: group for group in channel_groups(model)}
    # The gate's unsqueeze is not known, so it freezes what it gates; the group norm freezes its input.
    assert set(groups) == {"d"}
    assert error(model, list(groups.values())) < 1e-12

    class Joined(Odd):
        def forward(self, x: Tensor) -> Tensor:
            x = self.depthwise(torch.cat([self.a(x), F.silu(self.b(x))], 1))
            return self.head(F.relu(self.d(self.norm(self.c(x)))))

    model = randomised(Joined())
    groups = {group.name: group for group in channel_groups(model)}
    assert set(groups) == {"a", "b", "d"}
    assert [member.start for member in groups["b"].members] == [0, 0, 4, 4, 4]
    assert not groups["b"].scalable
    assert error(model, list(groups.values())) < 1e-12


def test_a_layer_that_runs_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.again, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.again(F.relu(self.again(self.conv(x)))).mean((2, 3)))

    assert channel_groups(Twice()) == []


def test_saturating_activations_may_be_permuted_but_not_scaled() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    assert [group.scalable for group in channel_groups(model)] == [False, True]


def test_the_layer_of_the_logits() -> None:
    assert logit_layer(Odd()) == "head.1"
    assert logit_layer(ARCHITECTURES["resnet8"]((3, 8, 8), 5, normalize())) == "fc"
    with pytest.raises(UnsupportedModel, match="dense layer"):
        logit_layer(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()))


def test_a_forward_pass_that_depends_on_values_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedModel, match="cannot be traced"):
        channel_groups(Branching())
