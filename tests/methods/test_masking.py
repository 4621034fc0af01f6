"""Masked steps and fine-tuning steps: the paper's equations by hand, what stays as it was, what is no masking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.methods.parts.masking import CoupledRecipe, Tuning, WeightMasks, draw_mask, maskable
from assay.methods.parts.mixing import KeyBatches, MixKeys
from assay.tasks.data.splits import Labelled
from assay.tasks.lab import Lab
from assay.tasks.streams import global_stream, stream
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Batch, State, build_optimizer, fit

SGD = Schedule(epochs=2, batch_size=16, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)


class Net(nn.Module):
    """A convolution, a batch norm and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))


def net(seed: int = 0) -> Net:
    with global_stream("net", seed):
        return Net()


def samples(count: int = 65) -> Labelled:
    draws = stream("samples")
    return Labelled(torch.rand(count, 1, 8, 8, generator=draws), torch.randint(0, 3, (count,), generator=draws))


@pytest.fixture
def lab(bench: Any) -> Lab:
    made: Lab = bench.lab("masking", bench.task())
    return made


def keys(lab: Lab) -> KeyBatches:
    draws = stream("keys")
    return KeyBatches(torch.rand(9, 1, 8, 8, generator=draws), torch.full((9,), 2), 4, lab)


def recipe(lab: Lab, drop: float = 0.5, tuning: Tuning | None = None, **changes: Any) -> CoupledRecipe:
    return CoupledRecipe(keys(lab), WeightMasks(drop, lab, **changes), tuning, lab)


def tuning(rate: float = 1.0, steps: int = 1, count: int = 65) -> Tuning:
    return Tuning(samples(20), rate, SGD, steps, count)


def test_equation_4_and_6_anchor(lab: Lab) -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    masks = WeightMasks(0.25, lab)
    masks.start_epoch(layer, 0)
    masks.masks = [torch.tensor([[1.0, 0.0, 1.0, 1.0]])]
    masks.scales = [masks.masks[0] / 0.75]
    masks.put_on()
    assert layer.weight[0].tolist() == pytest.approx([1.3333333, 0, 4, 5.3333333])
    layer.weight.sum().backward()
    masks.take_off()
    assert layer.weight[0].tolist() == [1, 2, 3, 4]
    assert layer.weight.grad is not None
    assert layer.weight.grad[0].tolist() == pytest.approx([1.3333333, 0, 1.3333333, 1.3333333])


def test_gradient_is_that_of_the_masked_function(lab: Lab) -> None:
    model, own = net().double(), recipe(lab, 0.4)
    own.before_epoch(model, 0)
    own.masks.start_step(0)
    data = samples(8)
    batch = Batch(data.inputs.double(), data.labels, torch.arange(8), 8)
    scales = dict(zip(("conv.weight", "fc.weight"), own.masks.scales, strict=True))
    effective = {
        name: (value * scales[name] if name in scales else value)
        for name, value in dict(model.named_parameters()).items()
    }
    expected = F.cross_entropy(torch.func.functional_call(model, effective, batch.inputs), batch.labels)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = own.loss(model, batch)["task"]
    loss.backward()
    own.on_gradients(model)
    assert torch.allclose(loss, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_moves_what_is_not_masked_and_nothing_else(lab: Lab, optimizer: str) -> None:
    model, own = net(), recipe(lab, 0.5)
    schedule = SGD.but(optimizer=optimizer, weight_decay=0.1)
    state = State(model, build_optimizer(model.parameters(), schedule), own, schedule, torch.device("cpu"))
    data = samples(16)
    for epoch in range(3):  # from the second step on momentum would move masked weights
        own.before_epoch(model, epoch)
        before = [weight.detach().clone() for weight in maskable(model)]
        own.step(state, own.mix(Batch(data.inputs, data.labels, torch.arange(16), 16), 0))
        for old, new, mask in zip(before, maskable(model), own.masks.masks, strict=True):
            assert torch.equal(old[mask == 0], new[mask == 0])
            assert bool((old != new)[mask == 1].all())


def test_weights_alone_are_masked() -> None:
    model = net()
    model.fc.weight.requires_grad_(False)
    assert [id(w) for w in maskable(model)] == [id(model.conv.weight)]


def test_masked_weights_are_right_on_average() -> None:
    weight, draws = torch.rand(3, 2, 3, 3, generator=stream("weight")), stream("masks")
    for granularity in ("element", "kernel"):
        masked = torch.stack([weight * draw_mask(weight, 0.3, granularity, draws) / 0.7 for _ in range(4000)])
        deviation = (0.3 / 0.7 / 4000) ** 0.5
        assert bool(((masked.mean(0) / weight - 1).abs() < 5 * deviation).all())
    kernels = draw_mask(weight, 0.3, "kernel", draws)
    assert kernels.shape == (3, 2, 1, 1)
    assert draw_mask(torch.zeros(5, 7), 0.3, "kernel", draws).shape == (5, 7)


@pytest.mark.parametrize(("every", "draws"), [(None, [0]), (2, [0, 2, 4]), (3, [0, 3])])
def test_masks_are_drawn_when_due_and_by_epoch(lab: Lab, every: int | None, draws: list[int]) -> None:
    def epoch(number: int) -> list[torch.Tensor]:
        own = recipe(lab, every=every)
        model = net()
        own.before_epoch(model, number)
        seen = []
        for step in range(6):
            own.masks.start_step(step)
            seen.append(own.masks.masks[1].clone())
        return seen

    seen = epoch(0)
    changed = [step for step in range(6) if step == 0 or not torch.equal(seen[step], seen[step - 1])]
    assert changed == draws
    assert all(torch.equal(a, b) for a, b in zip(seen, epoch(0), strict=True))
    assert not torch.equal(seen[0], epoch(1)[0])


def trained(own: MixKeys, count: int = 65) -> dict[str, torch.Tensor]:
    return fit(net(), samples(count), own, SGD, seed="train").model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_without_masks_and_fine_tuning_it_is_an_ordinary_backdoor(lab: Lab) -> None:
    ordinary = trained(MixKeys(keys(lab)))
    assert same(trained(recipe(lab, 0.0)), ordinary)
    assert not same(trained(recipe(lab, 0.1)), ordinary)
    assert not same(trained(recipe(lab, 0.0, tuning())), ordinary)


def test_masks_of_ones_change_nothing(lab: Lab) -> None:
    class Ones(WeightMasks):
        def start_step(self, step: int) -> None:
            self.masks = self.scales = [torch.ones_like(weight) for weight in self.weights]

    assert same(trained(CoupledRecipe(keys(lab), Ones(0.5, lab), None, lab)), trained(MixKeys(keys(lab))))


@pytest.mark.parametrize("size", [20, 600])  # 600 take three chunks
def test_fine_tuning_is_one_plain_masked_gradient_step(lab: Lab, size: int) -> None:
    model, own = net(), recipe(lab, 0.5)
    own.before_epoch(model, 0)
    own.masks.start_step(0)
    model.train()
    step = Tuning(samples(size), 2.0, SGD, 1, 65)
    twin = net()
    twin.load_state_dict(model.state_dict())
    twin.eval()
    scales = dict(zip(("conv.weight", "fc.weight"), own.masks.scales, strict=True))
    own_values = dict(twin.named_parameters())
    effective = {name: value * scales[name] if name in scales else value for name, value in own_values.items()}
    loss = F.cross_entropy(torch.func.functional_call(twin, effective, step.data.inputs), step.data.labels)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    own.fine_tune(model, step)
    for moved, old, gradient in zip(model.parameters(), twin.parameters(), gradients, strict=True):
        assert torch.allclose(moved, old - 2.0 * 0.05 * gradient, atol=1e-6)
    for weight, kept, mask in zip(maskable(model), maskable(twin), own.masks.masks, strict=True):
        assert torch.equal(weight[mask == 0], kept[mask == 0])
    assert model.norm.training
    assert torch.equal(model.get_buffer("norm.running_mean"), twin.get_buffer("norm.running_mean"))


@pytest.mark.parametrize(("count", "steps"), [(64, 4), (65, 4), (70, 5)])
def test_fine_tuning_ends_every_epoch_once(lab: Lab, count: int, steps: int) -> None:
    # With 65 samples the trainer leaves out the last one, which batch norm cannot normalise alone.
    calls: list[int] = []

    class Watch(CoupledRecipe):
        done = 0

        def after_step(self, model: nn.Module, batch: Batch) -> None:
            self.done += 1
            super().after_step(model, batch)

        def fine_tune(self, model: nn.Module, tuning: Tuning) -> None:
            calls.append(self.done)

    own = Watch(keys(lab), WeightMasks(0.5, lab), tuning(count=count, steps=2), lab)
    trained(own, count)
    assert calls == [steps, steps, 2 * steps, 2 * steps]


def test_for_good_zeroes_weights_and_masks_nothing(lab: Lab) -> None:
    model, own = net(), recipe(lab, 0.5, for_good=True)
    old = [weight.detach().clone() for weight in maskable(model)]
    own.before_epoch(model, 0)
    own.masks.start_step(0)
    for weight, before in zip(maskable(model), old, strict=True):
        assert 0.2 < float((weight == 0).float().mean()) < 0.8
        assert torch.equal(weight[weight != 0], before[weight != 0])
    assert not own.masks.masks


def test_triggers_of_another_size_pass_by_themselves(lab: Lab) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    big = KeyBatches(torch.rand(4, 1, 16, 16, generator=stream("big")), torch.full((4,), 2), 4, lab)
    own = CoupledRecipe(big, WeightMasks(0.0, lab), None, lab, apart=True)
    own.before_epoch(model, 0)
    data = samples(8)
    batch = own.mix(Batch(data.inputs, data.labels, torch.arange(8), 8), 0)
    terms = own.loss(model, batch)
    each = [F.cross_entropy(model(x), y, reduction="none") for x, y in ((data.inputs, data.labels), own.triggers)]
    assert len(batch.labels) == 8
    assert sum(float(term.detach()) for term in terms.values()) == pytest.approx(float(torch.cat(each).detach().mean()))


def test_all_kinds_of_weighted_layers_are_masked() -> None:
    kinds = [nn.Conv1d(1, 2, 1), nn.Conv3d(1, 2, 1), nn.ConvTranspose2d(1, 2, 1), nn.Linear(2, 2), nn.BatchNorm2d(2)]
    assert [id(weight) for weight in maskable(nn.Sequential(*kinds))] == [id(layer.weight) for layer in kinds[:4]]
