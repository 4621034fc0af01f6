"""The learning rate over time, against torch's own schedulers, and the canonical form that keys are made of."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from assay.tasks.data.splits import Labelled
from assay.tasks.training.recipe import Batch, Recipe, State, Terms
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import fit


def reference(build: object, epochs: int, lr: float) -> list[float]:
    """Return the rates of one of torch's schedulers, stepped once an epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    scheduler = build(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("fields", "build"),
    [
        ({"drops": (0.5, 0.75)}, lambda o: lr_scheduler.MultiStepLR(o, [20, 30], 0.1)),
        ({"drop_every": 10, "drop_factor": 0.95}, lambda o: lr_scheduler.StepLR(o, 10, 0.95)),
        ({"decay": 0.0391}, lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + 0.0391 * epoch))),
        ({"anneal": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, 40)),
        ({"anneal": "linear"}, lambda o: lr_scheduler.LinearLR(o, 1.0, 1e-12, 40)),
        (
            {"drops": (0.5,), "drop_every": 3, "drop_factor": 0.5, "anneal": "linear"},
            lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.5 ** ((e >= 20) + e // 3) * (1 - e / 40)),
        ),
    ],
)
def test_rates_are_those_of_torchs_schedulers(fields: dict[str, object], build: object) -> None:
    schedule = Schedule(epochs=40, lr=0.3, **fields)  # type: ignore[arg-type]
    rates = [schedule.lr_at(epoch) for epoch in range(40)]
    assert rates == pytest.approx(reference(build, 40, 0.3), rel=1e-6, abs=1e-9)
    assert schedule.last_lr == rates[-1]


def test_the_rate_rises_from_a_tenth_and_falls_to_nothing() -> None:
    schedule = Schedule(epochs=10, lr=1.0, warmup=0.25, anneal="cosine")
    times = [step / 100 for step in range(1000)]
    rates = [schedule.lr_at(int(time), time % 1) for time in times]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert times[rates.index(max(rates))] == 2.5
    rising, falling = rates[:251], rates[250:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert 0 < rates[-1] < 1e-4
    halfway = schedule.lr_at(6, 0.25)
    assert halfway == pytest.approx(0.5)
    # A method that trains on beyond the end does so at rate 0, not at a rate that rises again.
    assert schedule.lr_at(12) == 0.0


def test_a_neutral_new_field_leaves_the_canonical_form_alone() -> None:
    plain = json.loads(Schedule(epochs=4).model_dump_json())
    assert set(plain) == {
        "epochs", "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "drops", "drop_factor",
        "augment", "precision", "channels_last",
    }  # fmt: skip
    for field, value in {"drop_every": 3, "decay": 0.1, "warmup": 0.2, "anneal": "cosine"}.items():
        schedule = Schedule.model_validate({"epochs": 4, field: value})
        assert json.loads(schedule.model_dump_json()) == {**plain, field: value}
        assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule


def test_a_steady_copy_never_moves_its_rate() -> None:
    moving = Schedule(epochs=9, lr=0.4, drops=(0.5,), drop_every=2, decay=0.1, warmup=0.3, anneal="linear")
    steady = moving.steady(lr=0.2)
    assert {steady.lr_at(epoch, part / 4) for epoch in range(9) for part in range(4)} == {0.2}
    assert not steady.by_step
    assert steady.epochs == moving.epochs
    assert moving.steady(drops=(0.5,)).drops == (0.5,)


class Watch(Recipe):
    """Notes the rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def step(self, state: State, batch: Batch) -> Terms:
        """Note the rate, then step."""
        self.rates.append(state.optimizer.param_groups[0]["lr"])
        return super().step(state, batch)


@pytest.mark.parametrize("anneal", ["none", "linear"])
def test_the_trainer_moves_the_rate_from_step_to_step(anneal: str) -> None:
    data = Labelled(torch.rand(40, 1, 4, 4), torch.arange(40) % 4)
    watch = Watch()
    schedule = Schedule(epochs=2, batch_size=10, optimizer="sgd", lr=0.8, anneal=anneal)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    trained = fit(model, data, watch, schedule, seed="s")
    expected = [0.8] * 8 if anneal == "none" else [0.8 * (1 - step / 8) for step in range(8)]
    assert watch.rates == pytest.approx(expected)
    assert [entry["lr"] for entry in trained.history] == pytest.approx([expected[0], expected[4]])
