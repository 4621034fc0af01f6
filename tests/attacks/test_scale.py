"""Scaling: what is multiplied and divided, what stays, and that the function does."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from math import log

import pytest
import torch
import torch.nn.functional as F
from attack_range import Range, SignMark, TriggerMark, Zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import assay.attacks.parts.channels as channels
from assay.attacks.parts.channels import Group, scale
from assay.attacks.parts.graph import scaling_groups
from assay.attacks.scale import Config, Scale, way
from assay.methods.base import MethodConfig
from assay.methods.embedding import verify
from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.architectures import ARCHITECTURES, Normalize
from assay.tasks.networks.residual import ResNet


class Net(nn.Module):
    """Residual, depthwise and plain blocks with PReLU, with or without batch norm; then a flattened map."""

    def __init__(self, widths: list[int], norm: bool, depthwise: bool, act: type[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise([3, *widths]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if norm else nn.Identity() for width in widths)
        self.inner = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width if depthwise else 1) for width in widths
        )
        self.act, self.slopes = act(), nn.PReLU(widths[0])
        self.fc1, self.fc2 = nn.Linear(widths[-1] * 4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for place, (conv, norm, inner) in enumerate(zip(self.convs, self.norms, self.inner, strict=True)):
            x = norm(conv(x))
            x = self.slopes(x) if place == 0 else self.act(x)
            x = x + inner(x)
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 2).flatten(1))))


def factors(group: Group, low: float = 0.1, high: float = 10.0) -> Tensor:
    draws = torch.Generator().manual_seed(group.channels)
    return torch.empty(group.channels, dtype=torch.float64).uniform_(log(low), log(high), generator=draws).exp()


def error(model: nn.Module, groups: list[Group], train: bool = False, low: float = 0.1) -> float:
    """Return the relative change of the outputs after scaling `groups`, in double precision."""
    model = model.double()
    after = copy.deepcopy(model)
    for group in groups:
        scale(after, group, factors(group, low=low))
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        before = model.train(train)(x)
        return float((after.train(train)(x) - before).norm() / before.norm())


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    norm=st.booleans(),
    depthwise=st.booleans(),
    act=st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.SiLU]),
)
def test_scaling_every_group_preserves_the_function(
    zoo: type[Zoo], widths: list[int], norm: bool, depthwise: bool, act: type[nn.Module]
) -> None:
    model = zoo.randomised(Net(widths, norm, depthwise, act))
    groups = scaling_groups(model)
    assert any(group.name == "fc1" for group in groups)
    signs = [parameter.sign() for parameter in model.parameters()]
    after = copy.deepcopy(model).double()
    for group in groups:
        scale(after, group, factors(group))
    assert all(torch.equal(a.sign().float(), b) for a, b in zip(after.parameters(), signs, strict=True))
    assert error(model, groups) < 1e-10


@pytest.mark.parametrize("key", sorted(ARCHITECTURES))
def test_registered_networks(zoo: type[Zoo], key: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = zoo.copy(key, dtype)
        groups = scaling_groups(model)
        assert groups
        for group in groups:
            scale(model, group, factors(group))
        assert zoo.change(key, model) < tolerance


@pytest.mark.parametrize("forgotten", ["running_mean", "running_var"])
def test_forgetting_a_statistic_breaks_the_function(zoo: type[Zoo], forgotten: str) -> None:
    model = zoo.randomised(ResNet((3, 8, 8), 5, Normalize((0.4,) * 3, (0.3,) * 3), (4, 6), (1, 2)))
    groups = scaling_groups(model)
    short = [replace(g, members=tuple(m for m in g.members if m.tensor != forgotten)) for g in groups]
    assert error(model, groups) < 1e-10
    assert error(model, short) > 0.01


def test_forgetting_epsilon_breaks_the_function(zoo: type[Zoo], monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.randomised(ResNet((3, 8, 8), 5, Normalize((0.4,) * 3, (0.3,) * 3), (4, 6), (1, 2)))
    groups = scaling_groups(model)
    assert error(model, groups, low=0.01) < 1e-10
    monkeypatch.setattr(channels, "_epsilon", lambda model, member: 0.0)
    assert error(model, groups, low=0.01) > 1e-5


def test_leaving_out_one_producer_of_a_stream_breaks_the_function(zoo: type[Zoo]) -> None:
    model = zoo.randomised(ResNet((3, 8, 8), 5, Normalize((0.4,) * 3, (0.3,) * 3), (4, 6), (1, 2)))
    stream = next(group for group in scaling_groups(model) if group.name == "blocks.1.bn2")
    assert stream.layers("producer") == ("blocks.1.bn2", "blocks.1.shortcut.1", "blocks.2.bn2")
    short = tuple(m for m in stream.members if m.module != "blocks.1.shortcut.1")
    assert error(model, [replace(stream, members=short)]) > 0.01


def test_one_and_back_restore_the_weights(zoo: type[Zoo]) -> None:
    model = zoo.copy("resnet8")
    before = copy.deepcopy(model.state_dict())
    for group in scaling_groups(model):
        scale(model, group, torch.ones(group.channels, dtype=torch.float64))
    assert all(torch.allclose(value, before[name], rtol=1e-7, atol=0) for name, value in model.state_dict().items())
    model = zoo.copy("resnet8", torch.float64)
    before = copy.deepcopy(model.state_dict())
    for group in scaling_groups(model):
        scale(model, group, 1 / scale(model, group, factors(group)))
    assert all(torch.allclose(value, before[name], rtol=1e-12) for name, value in model.state_dict().items())


def test_a_factor_that_would_make_a_variance_negative_is_raised() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 5, 6), nn.Flatten()).eval()
    variance = model.get_buffer("1.running_var")
    variance.copy_(torch.tensor([1e-6, 1.0]))
    before = copy.deepcopy(model)
    group = scaling_groups(model)[0]
    used = scale(model, group, torch.tensor([0.1, 0.1], dtype=torch.float64))
    # δ² (σ² + ε) ≥ ε with σ² = 1e-6 and ε = 1e-5 asks for δ ≥ sqrt(10 / 11).
    assert used.tolist() == pytest.approx([(10 / 11) ** 0.5, 0.1], rel=1e-5)
    assert bool((variance >= 0).all())
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(x), before(x), atol=1e-5)


def test_batch_statistics_absorb_a_factor_too(zoo: type[Zoo]) -> None:
    model = zoo.randomised(ResNet((3, 8, 8), 5, Normalize((0.4,) * 3, (0.3,) * 3), (4, 6), (1, 2)))
    groups = scaling_groups(model)
    assert error(model, [group for group in groups if way(model, group) == "bn_affine"], train=True) < 1e-12
    # In train mode only epsilon tells that the statistics were scaled.
    assert error(model, [group for group in groups if way(model, group) == "bn_stats"], train=True) < 0.05


def test_what_saturates_is_left_alone_up_to_the_norm_before_it(zoo: type[Zoo]) -> None:
    model = zoo.copy("mobilenetv2")
    ways = {group.name: way(model, group) for group in scaling_groups(model)}
    # ReLU6 follows the stem's norm, so the stem's filters are scaled, and its gamma and beta are not.
    assert ways["stem.0"] == "bn_stats"
    assert "stem.1" not in ways
    assert ways["blocks.0.body.7"] == "bn_affine"


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    one, two = before.state_dict(), after.state_dict()
    return {name for name in one if not torch.equal(one[name], two[name])}


def test_variants_reach_what_they_say(field: Range) -> None:
    found = {v: changed(field.model, field.run(Scale, variant=v).surrogate) for v in ("plain", "bn_affine", "bn_stats")}
    statistics = {"conv1.weight", "bn1.running_mean", "bn1.running_var", "conv2.weight", "bn2.running_mean"}
    assert found["bn_stats"] == {*statistics, "bn2.running_var"}
    assert found["bn_affine"] == {"bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias", "fc1.weight"}
    assert found["plain"] == {"fc1.weight", "fc1.bias", "fc2.weight"}


def test_the_constant_law_multiplies_and_divides(field: Range) -> None:
    after = field.run(Scale, factor=0.5, variant="plain").surrogate
    assert torch.equal(after.fc1.weight, field.model.fc1.weight / 2)
    assert torch.equal(after.fc2.weight, field.model.fc2.weight * 2)
    assert torch.equal(after.fc2.bias, field.model.fc2.bias)


def test_the_random_law_stays_in_its_range_and_depends_on_the_seed(field: Range) -> None:
    def ratios(seed: int) -> Tensor:
        surrogate = field.run(Scale, seed=seed, law="log-uniform", low=0.5, high=4, variant="plain").surrogate
        return (surrogate.fc1.bias / field.model.fc1.bias).detach()

    one, same, other = ratios(1), ratios(1), ratios(2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0.5 <= float(one.min()) < 1 < float(one.max()) <= 4


def test_signs_survive_and_targets_narrow(field: Range) -> None:
    method = SignMark(MethodConfig())
    model, secret = field.marked(method)
    victim = field.victim("weights", method, model)
    outcome = field.run(Scale, victim, law="log-uniform", targets="carrier")
    assert verify(method, outcome.surrogate, secret).accepted
    assert not {"conv1.weight", "fc1.bias", "fc2.weight"} & changed(model, outcome.surrogate)
    with pytest.raises(UnsupportedModel, match="nothing to scale at 'conv9'"):
        field.run(Scale, victim, targets="conv9")
    assert "no carrier layer" in str(Scale(Config(targets="carrier")).supports(field.task, TriggerMark(MethodConfig())))


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low: expected at most high = 1\.0, got 2\.0"):
        Config(low=2, high=1)
