"""Permutation: what moves, what stays, and that position-dependent marks die."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range, SignMark, TriggerMark
from hypothesis import given
from hypothesis import strategies as st

from assay.attacks.permute import Config, Permute, draw_order
from assay.methods.base import MethodConfig
from assay.methods.embedding import verify
from assay.methods.suspect import Suspect
from assay.methods.uchida import Uchida
from assay.tasks.errors import UnsupportedModel
from assay.tasks.training.trainer import predict


@given(channels=st.integers(2, 40), data=st.data())
def test_exactly_n_nodes_channels_move(channels: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, channels))
    order = draw_order(channels, count, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    assert order.sort()[0].tolist() == list(range(channels))
    assert int((order != torch.arange(channels)).sum()) == count


def test_too_many_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 \.\.\. 4, got 5"):
        draw_order(4, 5, torch.Generator())


def test_uniform_order_depends_on_the_generator_alone() -> None:
    orders = [draw_order(50, "all", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("n_nodes", [2, 3, "all"])
def test_answers_stay_and_a_positional_mark_goes(field: Range, n_nodes: Any) -> None:
    method = SignMark(MethodConfig())
    model, secret = field.marked(method)
    before = verify(method, model, secret)
    outcome = field.run(Permute, field.victim("weights", method, model), n_nodes=n_nodes)
    inputs = field.splits.test.inputs
    change = (predict(outcome.surrogate, inputs) - predict(model, inputs)).norm() / predict(model, inputs).norm()
    after = verify(method, outcome.surrogate, secret)
    assert change < 1e-5
    assert before.accepted
    if n_nodes == "all":
        assert after.score < 0.75
    assert outcome.structure == "same"


def test_a_projection_of_weights_is_misread_once_every_channel_has_moved(field: Range) -> None:
    method = Uchida(Uchida.Config.model_validate({**Uchida.laptop, "bits": 32, "threshold": 0.95}))
    model, secret = field.marked(method)
    assert verify(method, model, secret).accepted
    scores = []
    for seed in range(4):
        moved = field.run(Permute, field.victim("weights", method, model), seed).surrogate
        scores.append(method.score(Suspect(moved, "weights", method.key), secret)[0])
    assert max(scores) < 0.9
    assert sum(scores) / 4 < 0.75


def test_carrier_moves_the_groups_of_that_layer_alone(field: Range) -> None:
    before = field.model.state_dict()
    after = field.run(Permute, targets="carrier").surrogate.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # conv2 reads the first group and produces the second; the third, from fc1 to fc2, stands still.
    assert {"conv1.weight", "conv2.weight", "fc1.weight", "bn2.running_var"} <= moved
    assert not moved & {"fc1.bias", "fc2.weight", "fc2.bias"}


def test_carrier_rows_moves_what_that_layer_produces_alone(field: Range) -> None:
    before = field.model.state_dict()
    after = field.run(Permute, targets="carrier-rows", n_nodes=2).surrogate.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"conv2.weight", "fc1.weight", "bn2.running_var"} <= moved
    assert not moved & {"conv1.weight", "conv1.bias", "fc1.bias", "fc2.weight", "fc2.bias"}
    # Two kernels changed places and no more: their inputs are where they were.
    rows = (before["conv2.weight"] != after["conv2.weight"]).flatten(1).any(1).nonzero().flatten()
    assert torch.equal(before["conv2.weight"][rows.flip(0)], after["conv2.weight"][rows])


def test_named_layers_and_names_that_do_not_exist(field: Range) -> None:
    before = field.model.state_dict()
    after = field.run(Permute, targets="fc2").surrogate.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fc1.weight", "fc1.bias", "fc2.weight"}
    with pytest.raises(UnsupportedModel, match="groups led by: conv1, conv2, fc1"):
        field.run(Permute, targets="conv9")


def test_groups_with_too_few_channels_are_noted(field: Range) -> None:
    outcome = field.run(Permute, n_nodes=20)
    assert outcome.notes == ["conv1: 16 channels, fewer than 20; left as it is"]
    assert torch.equal(outcome.surrogate.conv1.weight, field.model.conv1.weight)
    assert not torch.equal(outcome.surrogate.fc1.bias, field.model.fc1.bias)


def test_carrier_needs_a_method_that_names_one(field: Range) -> None:
    for targets in ("carrier", "carrier-rows"):
        attack = Permute(Config(targets=targets))
        assert "no carrier layer" in str(attack.supports(field.task, TriggerMark(MethodConfig())))
        assert attack.supports(field.task, SignMark(MethodConfig())) is None
