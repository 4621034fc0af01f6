"""The projection regulariser: loss and gradient anchors, what may and what may not change the bits, end to end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.methods.embedding import embed, verify
from assay.methods.parts.carrier import carrier_name, mean_filter
from assay.methods.rival import Forgery
from assay.methods.uchida import message_loss, projection
from assay.tasks.errors import UnsupportedModel

KEY = "uchida"


def test_loss_and_gradient_anchor() -> None:
    weight = torch.tensor([[0.2, -0.4], [0.6, 0.0]], requires_grad=True)
    matrix = torch.tensor([[1.0, 2.0], [-1.0, 1.0], [0.5, -1.0]])
    message = torch.tensor([1.0, 0.0, 1.0])
    loss = message_loss(weight, matrix, message)
    assert loss.item() == pytest.approx(1.64365038, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert torch.allclose(gradient, torch.tensor([-0.52749993, -0.12217198]).expand(2, 2), atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3))
def test_every_output_channel_is_pulled_alike(outputs: int, inputs: int, side: int) -> None:
    torch.manual_seed(outputs * 100 + inputs * 10 + side)
    weight = torch.randn(outputs, inputs, side, side, requires_grad=True)
    size = inputs * side * side
    loss = message_loss(weight, projection("random", 1, 4, size), torch.tensor([1.0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert torch.allclose(gradient, gradient[:1].expand_as(gradient))


def test_laws_of_the_projection() -> None:
    direct, diff = projection("direct", 0, 50, 20), projection("diff", 0, 50, 20)
    assert torch.equal(direct.sum(1), torch.ones(50))
    assert torch.equal(direct.count_nonzero(1), torch.ones(50, dtype=torch.long))
    assert torch.equal(diff.sort(1).values[:, [0, -1]], torch.tensor([-1.0, 1.0]).expand(50, 2))
    assert torch.equal(diff.count_nonzero(1), torch.full((50,), 2))
    normal = projection("random", 0, 400, 100)
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    assert not torch.equal(normal, projection("random", 1, 400, 100))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("digits-cnn-mini", "conv2.weight"),
        ("digits-lenet5", "conv2.weight"),
        ("digits-resnet8", "blocks.0.conv1.weight"),
        ("digits-mlp-1200x2", "hidden.3.weight"),
    ],
)
def test_automatic_carrier(task: str, name: str, bench: Any) -> None:
    network = bench.task(task).build("net")
    assert carrier_name(network, "auto") == name
    assert carrier_name(network, name) == carrier_name(network, name.removesuffix(".weight")) == name
    assert bench.method(KEY).carrier_layers(bench.task(task)) == (name.removesuffix(".weight"),)


def test_recurrent_and_single_layers_carry_too() -> None:
    text = nn.ModuleDict({"embed": nn.Embedding(10, 4), "lstm": nn.LSTM(4, 6), "fc": nn.Linear(6, 2)})
    assert carrier_name(text, "auto") == "lstm.weight_ih_l0"
    assert mean_filter(text.get_parameter("lstm.weight_ih_l0")).shape == (4,)
    assert carrier_name(nn.Sequential(nn.Linear(3, 2)), "auto") == "0.weight"
    with pytest.raises(UnsupportedModel, match="no convolution"):
        carrier_name(nn.ReLU(), "auto")


def test_unfit_payloads_and_layers_are_refused_with_the_reason(bench: Any) -> None:
    task = bench.task()
    assert bench.method(KEY).supports(task) is None
    assert "145 bits exceed the 144 entries of conv2.weight" in str(bench.method(KEY, bits=145).supports(task))
    assert bench.method(KEY, bits=145, allow_over=True).supports(task) is None
    assert "did you mean 'conv2.weight'" in str(bench.method(KEY, layer="conv2x").supports(task))


def secret_of(bench: Any, **changes: Any) -> tuple[Any, Any, Any]:
    task = bench.task()
    method = bench.method(KEY, **changes)
    return method, task, method.draw(bench.lab(KEY, task))


def reading_after(bench: Any, change: Any) -> tuple[Any, Any]:
    method, task, secret = secret_of(bench)
    model = task.build("net")
    before = verify(method, model, secret)
    with torch.no_grad():
        change(model.conv2)
    return before, verify(method, model, secret)


@given(st.floats(1e-3, 1e3))
def test_positive_scale_leaves_the_bits(bench: Any, factor: float) -> None:
    before, after = reading_after(bench, lambda layer: layer.weight.mul_(factor))
    assert before.hits == after.hits


def test_order_and_number_of_output_channels_leave_the_bits(bench: Any) -> None:
    before, after = reading_after(bench, lambda layer: layer.weight.copy_(layer.weight.flip(0)))
    assert before.hits == after.hits
    # A suspect without the layer, or with other filters, cannot carry the mark.
    method, task, secret = secret_of(bench)
    missing, wider, other = (task.build("net") for _ in range(3))
    missing.conv2 = nn.Identity()
    wider.conv2 = nn.Conv2d(16, 48, 3)
    other.conv2 = nn.Conv2d(17, 32, 3)
    for model, applicable in ((missing, False), (wider, True), (other, False)):
        reading = verify(method, model, secret)
        assert reading.applicable is applicable
        assert reading.accepted is False
        assert (reading.reason != "") is not applicable
    assert verify(method, missing, secret).p_value == 1


def test_negation_flips_every_bit_and_ties_read_as_one(bench: Any) -> None:
    before, after = reading_after(bench, lambda layer: layer.weight.neg_())
    assert before.hits + after.hits == before.trials
    _, tied = reading_after(bench, lambda layer: layer.weight.zero_())
    assert tied.hits == int(secret_of(bench)[2]["message"].sum())


def test_zero_strength_is_ordinary_training(bench: Any) -> None:
    task = bench.task("digits-lenet5")
    short = task.but(schedule=task.schedule.but(epochs=2))
    method = bench.method(KEY, strength=0.0, allow_weak=True)
    mark = embed(method, bench.lab(KEY, short))
    clean = bench.unmarked(short, "clean").state_dict()
    assert all(torch.equal(clean[name], value) for name, value in mark.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("key", ["digits-cnn-mini", "digits-lenet5"])
def test_marked_model_verifies_at_strict_and_an_unmarked_one_does_not(bench: Any, key: str) -> None:
    task = bench.task(key)
    method = bench.method(KEY)
    mark = bench.marked(method, task)
    reading = verify(method, mark.model, mark.secret)
    assert all(bench.decide(method, task, mark.secret, reading))
    assert reading.score >= 0.99
    assert reading.metrics["matrix_from_seed"] == 1
    for role in ("clean", "stranger"):
        innocent = verify(method, bench.unmarked(task, role), mark.secret)
        assert not any(bench.decide(method, task, mark.secret, innocent))
        assert innocent.p_value > 1e-3
    keys = bench.fresh_keys(method, task, 100)
    wrong = [method.score(bench.suspect(method, mark.model), wrong_key)[0] for wrong_key in keys]
    assert sum(abs(score - 0.5) <= 4 * (1 / (4 * 64)) ** 0.5 for score in wrong) >= 99


def test_solved_matrix_reads_any_message_and_gives_itself_away(bench: Any) -> None:
    method, task, _ = secret_of(bench)
    model = task.build("net")
    kept = copy.deepcopy(model.state_dict())
    suspect = bench.suspect(method, model)
    rival = bench.rival(method).forge(bench.suspect(method, model), bench.attacker("forge", task), Forgery())
    reading = method.read(suspect, rival)
    assert reading.score == 1
    assert reading.metrics["matrix_from_seed"] == 0
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_published_message_is_all_ones(bench: Any) -> None:
    assert secret_of(bench, message="ones")[2]["message"].min() == 1
    assert 16 < int(secret_of(bench)[2]["message"].sum()) < 48
