"""Rounding: how far it moves a value, where it is the identity, and that lower digits die."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import torch
from attack_range import Range
from hypothesis import given
from hypothesis import strategies as st

from assay.attacks.round import Round, round_decimal
from assay.tasks.training.trainer import predict

FLOATS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)


def test_ties_go_to_the_even_digit() -> None:
    values = torch.tensor([0.125, 0.375, -0.125, 2.5, 3.5])
    assert round_decimal(values, 2).tolist() == torch.tensor([0.12, 0.38, -0.12, 2.5, 3.5]).tolist()
    assert round_decimal(values, 0).tolist() == [0.0, 0.0, -0.0, 2.0, 4.0]


@given(values=FLOATS, digits=st.integers(0, 6))
def test_the_nearest_multiple_by_decimal_arithmetic(values: list[float], digits: int) -> None:
    found = round_decimal(torch.tensor(values, dtype=torch.float64), digits)
    step = Decimal(1).scaleb(-digits)
    for value, rounded in zip(values, found.tolist(), strict=True):
        exact = Decimal(value).quantize(step, ROUND_HALF_EVEN)
        # The product with 10^k may round onto a tie that the exact value is not on.
        tie = abs(abs(Decimal(value) - exact) - step / 2) < Decimal("1e-13")
        assert rounded == float(exact) or (tie and abs(rounded - value) <= float(step) / 2 * (1 + 1e-9))


@given(values=FLOATS, digits=st.integers(0, 6))
def test_small_steps_and_idempotence(values: list[float], digits: int) -> None:
    given_values = torch.tensor(values)
    once = round_decimal(given_values, digits)
    ulp = given_values.abs() * 2**-23
    assert bool(((once - given_values).abs().double() <= 0.5 * 10.0**-digits + ulp.double() + 1e-12).all())
    assert torch.equal(round_decimal(once, digits), once)
    finer = round_decimal(once, digits + 2)
    assert bool(((finer - once).abs() <= ulp + 1e-12).all())


def test_fourteen_digits_change_no_bit_and_eight_some() -> None:
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=draws)
    values = values[values.abs() >= 1e-6]
    assert torch.equal(round_decimal(values, 14), values)
    large = values[values.abs() >= 0.125]
    assert torch.equal(round_decimal(large, 8), large)
    small = 0.01 * values
    assert 0.9 < float((round_decimal(small, 8) != small).float().mean()) < 0.96  # 93 % at a deviation of 0.01


def test_error_falls_with_the_digits_and_buffers_are_spared(field: Range) -> None:
    inputs = field.splits.test.inputs
    before = predict(field.model, inputs)
    surrogates = [field.run(Round, digits=digits).surrogate for digits in (0, 1, 2, 4, 8)]
    errors = [float((predict(model, inputs) - before).norm() / before.norm()) for model in surrogates]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 < errors[-2]
    coarse = surrogates[1].state_dict()
    for name, value in field.model.state_dict().items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(coarse[name], value)
        else:
            assert bool(((coarse[name].double() * 10 - (coarse[name].double() * 10).round()).abs() < 1e-4).all())
    buffers = field.run(Round, digits=1, buffers=True).surrogate.state_dict()
    assert torch.equal(buffers["bn1.running_mean"], round_decimal(field.model.bn1.running_mean, 1))


def test_a_mark_in_the_lowest_bits_dies_at_two_digits(field: Range) -> None:
    """The bits of ingrain's W:LSB: half of them are right by chance afterwards."""
    bits = (field.model.fc1.weight.detach().flatten().view(torch.int32) & 1).bool()
    after = field.run(Round, digits=2).surrogate.fc1.weight.detach().flatten().view(torch.int32) & 1
    assert abs(float((after.bool() == bits).float().mean()) - 0.5) < 0.05
