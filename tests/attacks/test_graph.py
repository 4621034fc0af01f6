"""The channel-coupling graph: its groups, and that permuting along them never changes the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_range import Zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks.parts.channels import Group, permute, scale
from assay.attacks.parts.graph import channel_groups, logit_layer, scaling_groups
from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.architectures import ARCHITECTURES, Normalize
from assay.tasks.networks.classic import MLP
from assay.tasks.networks.residual import ResNet


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

    def __init__(self, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3)
        self.depthwise = nn.Conv2d(10, 10, 3, groups=10)
        self.squeeze, self.gate = nn.Linear(10, 3), nn.Linear(3, 10)
        self.c = nn.Conv2d(10, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.d = nn.Conv2d(8, 7, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(7 * 16, 5), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.cat([self.a(x), F.silu(self.b(x))], 1))
        if self.gated:
            gate = self.squeeze(x.mean((2, 3))).relu()
            x = x * torch.sigmoid(self.gate(gate)).unsqueeze(2).unsqueeze(3)
        return self.head(F.relu(self.d(self.norm(self.c(x)))))


class GatedConv(nn.Module):
    """A squeeze-and-excitation block whose gate has the gated channels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.squeeze, self.gate = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.b, self.fc = nn.Conv2d(6, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x)))
        x = x * torch.sigmoid(self.gate(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc(F.relu(self.b(x)).amax((-1, -2)))


class Shuffled(nn.Module):
    """Halves, one of which passes a block, then a channel shuffle by hand or by a module."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 1)
        self.depthwise, self.outer = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(8, 5)
        self.shuffle = nn.ChannelShuffle(2) if module else None

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat((left, self.outer(self.depthwise(F.relu(self.inner(right))))), 1)
        if self.shuffle is not None:
            x = self.shuffle(x)
        else:
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(x).mean((2, 3)))


class Padded(nn.Module):
    """An option-A shortcut: every second pixel, and channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.conv2, self.fc = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x))) + short).mean((2, 3)))


Kind = type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]


class Recurrent(nn.Module):
    """Word vectors, a recurrent network, and one of the ways to read it."""

    def __init__(self, kind: Kind, levels: int, both: bool, read: str) -> None:
        super().__init__()
        self.words, self.read, self.both = nn.Embedding(20, 6, padding_idx=0), read, both
        self.rnn = kind(6, 5, levels, batch_first=True, bidirectional=both)
        self.norm = nn.LayerNorm(5 * (1 + both))
        self.fc = nn.Linear(5 * (1 + both), 5)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.rnn(self.words(x))
        last = last[0] if isinstance(self.rnn, nn.LSTM) else last
        if self.read == "last":
            return self.fc(torch.cat([last[-2], last[-1]], 1) if self.both else last[-1])
        states = self.norm(states)
        return self.fc({"end": states[:, -1], "mean": states.mean(1), "maximum": states.max(1)[0]}[self.read])


def shuffle(model: nn.Module, groups: list[Group], seed: int = 1) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(group.channels, generator=draws).roll(1) for group in groups]
    for group, order in zip(groups, orders, strict=True):
        permute(model, group, order)
    return orders


def error(model: nn.Module, groups: list[Group], train: bool = False, x: Tensor | None = None) -> float:
    """Return the relative change of the outputs after permuting `groups`, in double precision."""
    model = model.double().train(train)
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double() if x is None else x
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
def test_permuting_every_group_preserves_the_function(zoo: type[Zoo], model: nn.Module, train: bool) -> None:
    groups = channel_groups(model)
    assert groups
    before = {name: value.clone() for name, value in zoo.randomised(model).double().state_dict().items()}
    assert error(model, groups, train=train) < 1e-12
    for name, value in model.state_dict().items():
        if not train:  # a pass in train mode moves the running statistics itself
            assert torch.equal(value.flatten().sort()[0], before[name].flatten().sort()[0])


@pytest.mark.parametrize("key", sorted(ARCHITECTURES))
def test_registered_networks(zoo: type[Zoo], key: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = zoo.copy(key, dtype)
        shuffle(model, channel_groups(model))
        assert zoo.change(key, model) < tolerance


@pytest.mark.parametrize("key", sorted(ARCHITECTURES))
def test_every_layer_but_the_last_is_moved(zoo: type[Zoo], key: str) -> None:
    model = zoo.copy(key)
    weighted = (nn.Linear, nn.modules.conv._ConvNd, nn.LSTM, nn.Embedding)
    layers = {name for name, layer in model.named_modules() if isinstance(layer, weighted)}
    groups = channel_groups(model)
    moved = {name for group in groups for role in ("producer", "carrier") for name in group.layers(role)}
    if key == "shufflenetv2":
        # Where units are joined, split and shuffled, nobody may move: the last convolution of each branch writes there.
        joints = {name for name in layers if name.endswith((".body.5", ".shortcut.2"))}
        # In units without a shortcut layer the body's input is half of such channels, and free behind its first layer.
        later = {n for n in layers if n.endswith(".shortcut.0") and n != "units.0.shortcut.0"}
        assert layers - moved == {"fc"} | joints | later
    else:
        assert layers - moved == {logit_layer(model)}


def test_inverse_restores_every_bit(zoo: type[Zoo]) -> None:
    model = zoo.randomised(ResNet((3, 8, 8), 5, normalize(), (4, 6), (1, 2)))
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
def test_forgetting_batch_norm_breaks_the_function(zoo: type[Zoo], forgotten: tuple[str, ...]) -> None:
    model = zoo.randomised(ResNet((3, 8, 8), 5, normalize(), (4, 6), (1, 2)))
    groups = [without(group, tensors=forgotten) for group in channel_groups(model)]
    assert error(model, groups) > 0.01


@pytest.mark.parametrize("producer", ["blocks.1.conv2", "blocks.1.shortcut.0", "blocks.2.conv2"])
def test_leaving_out_one_producer_of_a_stream_breaks_the_function(zoo: type[Zoo], producer: str) -> None:
    model = zoo.randomised(ResNet((3, 8, 8), 5, normalize(), (4, 6), (1, 2)))
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
    assert all(group.keeps_zero for group in groups.values())


def test_flattened_maps_own_blocks_of_columns() -> None:
    groups = channel_groups(ARCHITECTURES["lenet5"]((3, 32, 32), 10, normalize()))
    assert [group.channels for group in groups] == [6, 16, 120, 84]
    assert [member.block for member in groups[1].members] == [1, 1, 25]
    assert groups[1].members[-1].positions(torch.tensor([2, 0])).tolist() == [*range(50, 75), *range(25)]


def test_pre_activation_blocks_carry_the_norm_that_opens_them(zoo: type[Zoo]) -> None:
    groups = {group.name: group for group in channel_groups(zoo.copy("preresnet20"))}
    last = groups["blocks.6.conv2"]
    assert last.layers("producer") == ("blocks.6.conv2", "blocks.6.shortcut", "blocks.7.conv2", "blocks.8.conv2")
    assert last.layers("carrier") == ("blocks.7.bn1", "blocks.8.bn1", "bn")
    assert last.layers("consumer") == ("blocks.7.conv1", "blocks.8.conv1", "fc")


def test_concatenation_depthwise_and_group_norm(zoo: type[Zoo]) -> None:
    model = zoo.randomised(Odd(gated=False))
    groups = {group.name: group for group in channel_groups(model)}
    assert set(groups) == {"a", "b", "d"}
    assert [member.start for member in groups["b"].members] == [0, 0, 4, 4, 4]
    assert error(model, list(groups.values())) < 1e-12


def test_a_gate_moves_with_what_it_gates(zoo: type[Zoo]) -> None:
    groups = {group.name: group for group in channel_groups(GatedConv())}
    assert groups["a"].layers("producer") == ("a", "gate")
    assert error(zoo.randomised(GatedConv()), list(groups.values())) < 1e-12
    # A gate that meets two variables laid end to end does not match either: all three stay.
    odd = channel_groups(Odd())
    assert {group.name for group in odd} == {"squeeze", "d"}
    assert error(zoo.randomised(Odd()), odd) < 1e-12


@pytest.mark.parametrize("model", [Shuffled(True), Shuffled(False)], ids=["module", "by hand"])
def test_shuffled_streams_stay_and_inner_channels_are_free(model: nn.Module) -> None:
    groups = channel_groups(model)
    assert [group.layers("producer") + group.layers("carrier") for group in groups] == [("inner", "depthwise")]
    assert error(model.eval(), groups) < 1e-12


def test_channel_padding_freezes_both_streams() -> None:
    model = Padded()
    groups = channel_groups(model)
    assert [group.name for group in groups] == ["conv1"]
    assert error(model.eval(), groups) < 1e-12


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("levels", "both"), [(1, False), (2, True)])
@pytest.mark.parametrize("read", ["last", "end", "mean", "maximum"])
def test_recurrent_units_move_gate_by_gate(kind: Kind, levels: int, both: bool, read: str) -> None:
    model = Recurrent(kind, levels, both, read)
    groups = channel_groups(model)
    assert len(groups) == len({group.name for group in groups}) == 1 + levels * (1 + both)
    words = torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(1))
    assert error(model, groups, x=words) < 1e-12
    units = groups[1]
    gates = {member.start // 5 for member in units.members if member.tensor == "weight_ih_l0"}
    assert len(gates) == {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    short = replace(units, members=tuple(m for m in units.members if m.tensor != "weight_hh_l0" or m.axis == 0))
    assert error(model, [short], x=words) > 0.001


class Applied(nn.Module):
    """One operation between a convolution and a dense layer, with values per channel at hand that are no parameters."""

    def __init__(self, operation: Callable[[Any, Any], Any], columns: int) -> None:
        super().__init__()
        self.conv, self.operation, self.fc = nn.Conv2d(3, 4, 3), operation, nn.Linear(columns, 5)
        self.register_buffer("values", torch.linspace(0.5, 1.5, 4).view(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.operation(self.conv(x), self.values))


# The operation, the dense layer's columns, and whether channels may be permuted and scaled through it.
CASES: list[tuple[Callable[[Any, Any], Any], int, bool, bool]] = [
    (lambda x, _: x.mean((2, 3)), 4, True, True),
    (lambda x, _: x.amax((-1, -2)), 4, True, True),
    (lambda x, _: x.sum(dim=3).sum(-1), 4, True, True),
    (lambda x, _: x.max(3)[0].max(2).values, 4, True, True),
    (lambda x, _: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(-1), 4, True, True),
    (lambda x, _: x.mean((2, 3))[:, :, None, None].relu().flatten(1), 4, True, True),
    (lambda x, _: x[:, :, 1:, ::2].mean((2, 3)), 4, True, True),
    (lambda x, _: x.view(x.size(0), -1), 144, True, True),
    (lambda x, _: x.reshape(x.shape[0], -1), 144, True, True),
    (lambda x, _: torch.flatten(x, start_dim=1), 144, True, True),
    (lambda x, _: (2 * x / 3).mean((2, 3)), 4, True, True),
    (lambda x, _: (x + x.relu()).mean((2, 3)), 4, True, True),
    (lambda x, _: torch.cat([x, x.relu()], 1).mean((2, 3)), 8, True, True),
    (lambda x, _: torch.cat([x, x.relu()], -3).mean((2, 3)), 8, True, True),
    (lambda x, _: torch.cat([x, x.relu()], 2).mean((2, 3)), 4, False, False),
    (lambda x, _: (1 - x).mean((2, 3)), 4, True, False),
    (lambda x, _: (1 / (9 + x)).mean((2, 3)), 4, False, False),
    (lambda x, _: (x * x.sigmoid()).mean((2, 3)), 4, True, False),
    (lambda x, _: (x * x).mean((2, 3)), 4, True, False),
    (lambda x, _: torch.mul(input=x, other=x).mean((2, 3)), 4, True, False),
    (lambda x, _: (x / x + x).mean((2, 3)), 4, False, False),
    (lambda x, _: (x / (9 + x.relu())).mean((2, 3)), 4, False, False),
    (lambda x, values: (x * values).mean((2, 3)), 4, False, False),
    (lambda x, values: (x + values).mean((2, 3)), 4, False, False),
    (lambda x, _: x.mean((1, 2)), 6, False, False),
    (lambda x, _: x.mean((2, 3)).mean(1, keepdim=True), 1, False, False),
    (lambda x, _: x.softmax(1).mean((2, 3)), 4, False, False),
    (lambda x, _: x.flip(1).mean((2, 3)), 4, False, False),
    (lambda x, _: x.transpose(1, 2).mean((2, 3)), 6, False, False),
    (lambda x, _: x.view(-1, 4, 36).mean(2), 4, False, False),
    (lambda x, _: x.flatten(2).mean(2), 4, False, False),
    (lambda x, _: x[:, 1:].mean((2, 3)), 3, False, False),
    (lambda x, _: x[:, 0].mean(2), 6, False, False),
]


@pytest.mark.parametrize("case", CASES, ids=[str(place) for place in range(len(CASES))])
def test_operations(case: tuple[Callable[[Any, Any], Any], int, bool, bool]) -> None:
    """Whatever is moved or scaled, the function stays; and what is known to commute is moved."""
    operation, columns, permutes, scales = case
    model = Applied(operation, columns).double()
    groups, scalings = channel_groups(model), scaling_groups(model)
    assert (len(groups), len(scalings)) == (permutes, scales)
    assert error(model, groups) < 1e-12
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        before = model(x)
        for group in scalings:
            scale(model, group, torch.linspace(0.3, 4, group.channels, dtype=torch.float64))
        assert torch.allclose(model(x), before, rtol=1e-10)


def test_recurrent_layers_of_other_forms_are_left_alone() -> None:
    class Projected(nn.Module):
        def __init__(self, **form: Any) -> None:
            super().__init__()
            self.words, self.rnn, self.fc = nn.Embedding(9, 6), nn.LSTM(6, 4, **form), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(self.words(x))[0][:, -1])

    assert [group.name for group in channel_groups(Projected(batch_first=True))] == ["words", "rnn.weight_ih_l0"]
    assert channel_groups(Projected(batch_first=False)) == []


def test_parameters_that_two_layers_share_are_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self, outside: bool) -> None:
            super().__init__()
            self.outside = outside
            self.a, self.b, self.c, self.d = (nn.Linear(192 if i == 0 else 6, 6 if i < 3 else 5) for i in range(4))
            if not outside:
                self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.c(F.relu(self.b(F.relu(self.a(x.flatten(1))))))
            return self.d(x @ self.b.weight if self.outside else x)

    for outside in (False, True):
        model = Tied(outside)
        groups = channel_groups(model)
        assert not {"b"} & {member.module for group in groups for member in group.members}
        assert error(model, groups) < 1e-12


def test_a_layer_that_runs_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.again, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.again(F.relu(self.again(self.conv(x)))).mean((2, 3)))

    assert channel_groups(Twice()) == []


def test_groups_know_what_zero_becomes() -> None:
    layers = (nn.Linear(192, 4), nn.Sigmoid(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    assert [group.keeps_zero for group in channel_groups(nn.Sequential(nn.Flatten(), *layers))] == [False, True]


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
