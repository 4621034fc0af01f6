"""Expansion: full rank changes nothing, ranks and costs follow the formulas, and factors multiply out again."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from attack_range import Range, SignMark, Zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.attacks.expand import Config, Expand, cost, eligible, responses, restored
from assay.attacks.parts.low_rank import Factors, channel_factors, full_rank, rank_for, recompose, spatial_factors
from assay.methods.base import MethodConfig
from assay.methods.embedding import verify
from assay.tasks.errors import UnsupportedModel
from assay.tasks.networks.architectures import ARCHITECTURES
from assay.tasks.training.meter import Meter
from assay.tasks.training.norms import refresh_statistics
from assay.tasks.training.trainer import predict

LAYERS = st.builds(
    lambda inputs, outputs, kernel, stride, padding, dilation, bias: nn.Conv2d(
        inputs, outputs, kernel, stride, padding, dilation, bias=bias
    ).double(),
    st.integers(1, 5), st.integers(1, 6), st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)), st.booleans(),
)  # fmt: skip


def images(layer: nn.Conv2d, count: int = 3) -> torch.Tensor:
    return torch.rand(count, layer.in_channels, 11, 12, generator=torch.Generator().manual_seed(1)).to(layer.weight)


def factored(layer: nn.Conv2d, scheme: str, rank: int) -> Factors:
    return spatial_factors(layer, rank) if scheme == "spatial" else channel_factors(layer, rank)


@settings(max_examples=60, deadline=None)
@given(layer=LAYERS, scheme=st.sampled_from(["spatial", "channel"]), data=st.data())
def test_full_rank_is_exact_and_factors_multiply_out(layer: nn.Conv2d, scheme: Any, data: st.DataObject) -> None:
    full, x = full_rank(layer, scheme), images(layer)
    with torch.no_grad():
        assert torch.allclose(factored(layer, scheme, full)(x), layer(x), rtol=1e-10, atol=1e-12)
        part = factored(layer, scheme, data.draw(st.integers(1, full)))
        assert torch.allclose(recompose(part)(x), part(x), rtol=1e-10, atol=1e-12)
        whole = recompose(factored(layer, scheme, full))
    assert torch.allclose(whole.weight, layer.weight, rtol=1e-10, atol=1e-12)
    assert (whole.bias is None) == (layer.bias is None)
    assert whole.bias is None or layer.bias is None or torch.equal(whole.bias, layer.bias)


def test_string_padding_and_single_precision() -> None:
    for padding in ("same", "valid"):
        layer = nn.Conv2d(3, 5, (5, 3), padding=padding, dilation=(1, 2))
        with torch.no_grad():
            after = spatial_factors(layer, full_rank(layer, "spatial"))(images(layer))
            assert torch.allclose(after, layer(images(layer)), atol=1e-6)


@pytest.mark.parametrize("scheme", ["spatial", "channel"])
def test_the_error_falls_with_the_rank(scheme: Any) -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1).double()
    with torch.no_grad():
        errors = [
            float((recompose(factored(layer, scheme, rank)).weight - layer.weight).norm())
            for rank in range(1, full_rank(layer, scheme) + 1)
        ]
    assert all(a >= b - 1e-12 for a, b in pairwise(errors))
    assert errors[-1] < 1e-12 < errors[0]


def test_a_bias_in_the_first_factor_breaks_the_function() -> None:
    """The negative control: zero padding of the inner map does not commute with a bias."""
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    column, row = spatial_factors(layer, full_rank(layer, "spatial"))
    assert column.bias is None
    shift = torch.ones(column.out_channels).double()
    with torch.no_grad():
        column.bias = nn.Parameter(shift)
        row.bias -= row.weight.sum((2, 3)) @ shift  # right everywhere but at the border
        difference = (row(column(images(layer))) - layer(images(layer))).abs()
    assert float(difference[..., :, 1:-1].max()) < 1e-12
    assert float(difference.max()) > 1e-3


def test_ranks_by_hand() -> None:
    layer = nn.Conv2d(16, 32, 3)
    # floor(32 · 16 · 3 / (2.5 · 48)) = 12; floor(32 · 16 · 9 / (2.5 · (144 + 32))) = 10
    assert rank_for(layer, "spatial", 2.5) == 12
    assert rank_for(layer, "channel", 2.5) == 10
    assert [full_rank(layer, scheme) for scheme in ("spatial", "channel")] == [48, 32]
    assert rank_for(nn.Conv2d(1, 1, 3), "spatial", 100) == 1
    assert rank_for(nn.Conv2d(1, 50, 3), "channel", 1) == min(7, 9)


def test_principal_components_of_the_responses(field: Range) -> None:
    """On the data they come from, no other projection of that rank does better; the constant term makes it affine."""
    model, inputs = field.model, field.splits.attacker.train.inputs[:50]
    mean, covariance = responses(model, ["conv2"], inputs, Meter())["conv2"]
    seen: list[torch.Tensor] = []
    with model.conv2.register_forward_hook(lambda _layer, args, _output: seen.append(args[0].double())):
        predict(model, inputs)
    x, layer = torch.cat(seen), copy.deepcopy(model.conv2).double()
    with torch.no_grad():
        y = layer(x)
        rows = y.movedim(1, -1).flatten(0, 2)
        assert torch.allclose(rows.mean(0), mean, atol=1e-5)
        assert torch.allclose(rows.T.cov(correction=0), covariance, atol=1e-4)
        by_data, by_weights = channel_factors(layer, 8, (mean, covariance)), channel_factors(layer, 8)
        errors = [float((factors(x) - y).square().mean()) for factors in (by_data, by_weights)]
        residual = torch.linalg.eigvalsh(covariance)[: 32 - 8].clamp(min=0).sum() / 32
    assert errors[0] == pytest.approx(float(residual), rel=1e-3)
    assert errors[0] < errors[1]
    assert by_data[1].bias is not None


@pytest.mark.parametrize("key", sorted(ARCHITECTURES))
def test_registered_networks_at_full_rank(zoo: type[Zoo], key: str) -> None:
    if not eligible(zoo.copy(key)):
        assert key in ("lstm", "textcnn", "mobilenetv2", "shufflenetv2") or key.startswith("mlp")
        return
    # Both precisions start from the same decomposition, which is in double anyway.
    exact = zoo.copy(key, torch.float64)
    for name, layer in eligible(exact).items():
        if layer.weight.numel() <= 600_000:  # wider ones take many seconds each, and are no different
            exact.set_submodule(name, spatial_factors(layer, full_rank(layer, "spatial")))
    assert zoo.change(key, exact) < 1e-10
    assert zoo.change(key, exact.float()) < 1e-5


@pytest.mark.parametrize("scheme", ["spatial", "channel", "channel-data", "both"])
def test_the_surrogate_and_what_an_owner_makes_of_it(field: Range, scheme: Any) -> None:
    outcome = field.run(Expand, scheme=scheme, inputs=100)
    inputs = field.splits.test.inputs
    assert outcome.structure == "changed"
    assert isinstance(outcome.surrogate.conv2, Factors)
    assert len(outcome.surrogate.conv2) == (3 if scheme == "both" else 2)
    assert torch.equal(outcome.surrogate.conv1.weight, field.model.conv1.weight)
    assert torch.allclose(predict(outcome.surrogate, inputs), predict(outcome.restored, inputs), atol=1e-3)
    assert outcome.restored.conv2.weight.shape == field.model.conv2.weight.shape
    full = field.run(Expand, scheme=scheme, rank="full")
    change = predict(full.surrogate, inputs) - predict(field.model, inputs)
    assert float(change.norm() / predict(field.model, inputs).norm()) < 1e-5


def test_costs_follow_the_formula(field: Range) -> None:
    outcome = field.run(Expand, speedup=2.5)
    before, after = cost(field.model, field.task), cost(outcome.surrogate, field.task)
    # conv2 is 16 -> 32 channels, 3x3, on 14x14 maps; rank 12 takes 12 · 3 · (16 + 32) weights
    assert before["conv2"] == 32 * 16 * 9 * 196
    assert after["conv2.0"] + after["conv2.1"] == 12 * 3 * 48 * 196
    left = sum(before.values()) - before["conv2"] + 12 * 3 * 48 * 196
    assert outcome.report["multiplications"] == pytest.approx(left / sum(before.values()))
    assert outcome.report["layers"] == 1


def test_several_layers_the_costliest_first(zoo: type[Zoo]) -> None:
    model = zoo.copy("resnet8")
    layers = list(eligible(model))
    assert Expand(Config(layers="all"))._chosen(model, {}) == layers

    def several(costs: dict[str, int], **config: Any) -> list[str]:
        attack = Expand(Config(layers="several", **config))
        return attack._chosen(model, {**dict.fromkeys(layers, 0), **costs})

    assert several({"blocks.1.conv1": 100}) == ["blocks.1.conv1"]
    assert several({"blocks.1.conv1": 40, "blocks.0.conv2": 60}) == ["blocks.0.conv2", "blocks.1.conv1"]
    assert several({"blocks.1.conv1": 100}, speedup=1) == []


@pytest.mark.parametrize(("split", "passed", "probed"), [("disjoint20", 60, [0, 1]), ("none", 0, [0])])
def test_refreshing_needs_inputs_and_counts_them(field: Range, split: Any, passed: int, probed: list[int]) -> None:
    points: list[int] = []
    lab = field.lab("expand", data=field.splits.attacker_view(split), probe=lambda step, model: points.append(step))
    surrogate = Expand(Config(split=split, inputs=60)).run(field.victim("weights"), lab).surrogate
    assert surrogate is not None
    assert (lab.meter.forward_samples, points) == (passed, probed)
    as_before = torch.equal(surrogate.get_buffer("bn2.running_mean"), field.model.bn2.running_mean)
    assert as_before == (split == "none")


def test_refreshed_statistics_are_averages_of_one_pass() -> None:
    norm = nn.BatchNorm1d(3, momentum=0.3)
    model = nn.Sequential(nn.Dropout(0.5), norm)
    inputs = torch.randn(256, 3, generator=torch.Generator().manual_seed(0)) + 5
    refresh_statistics(model, inputs, meter := Meter())
    parts = inputs.split(128)
    assert torch.allclose(norm.get_buffer("running_mean"), inputs.mean(0), atol=1e-5)
    variance = torch.stack([part.var(0) for part in parts]).mean(0)
    assert torch.allclose(norm.get_buffer("running_var"), variance, atol=1e-5)
    assert (norm.momentum, model.training, norm.training, meter.forward_samples) == (0.3, False, False, 256)


def test_a_mark_is_read_from_the_restored_network_alone(field: Range) -> None:
    method = SignMark(MethodConfig())
    model, secret = field.marked(method)
    outcome = field.run(Expand, field.victim("weights", method, model), rank="full")
    as_left = verify(method, outcome.surrogate, secret)
    assert not as_left.applicable
    assert not as_left.accepted
    assert verify(method, outcome.restored, secret).score == 1.0


def test_where_it_does_not_apply(field: Range) -> None:
    method = SignMark(MethodConfig())
    data_free = Expand(Config(scheme="channel-data", split="none"))
    assert "leaves no inputs" in str(data_free.supports(field.task, method))
    dense = field.task.model_copy(update={"model": "mlp-256x2"})
    assert "no convolution" in str(Expand(Config()).supports(dense, method))
    assert Expand(Config()).supports(field.task, method) is None


def test_a_copy_without_factors_is_restored_to_itself(zoo: type[Zoo]) -> None:
    model = zoo.copy("lenet5")
    assert zoo.change("lenet5", restored(model)) == 0
    with pytest.raises(UnsupportedModel, match="at least 31x31"):
        ARCHITECTURES["deepid"]((3, 8, 8), 5, model.normalize)
