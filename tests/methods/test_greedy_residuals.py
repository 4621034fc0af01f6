"""Greedy residuals: anchors of pooling, hinge and key, what must not move a bit, both steps, end to end."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.attacks.overwrite import EmbeddingAlone
from assay.methods.embedding import embed, verify
from assay.methods.greedy_residuals import GreedyResiduals
from assay.methods.parts.residual_steps import signs_of
from assay.methods.parts.residuals import (
    Carriers,
    choose,
    eligible_weights,
    extract,
    hinge,
    residuals,
    residuals_of,
    selection,
)
from assay.methods.parts.signature import sign
from assay.methods.parts.statistics import binomial_tail, least_hits
from assay.methods.rival import Forgery
from assay.tasks.errors import CapacityError, UnsupportedModel
from assay.tasks.streams import stream
from assay.tasks.task import resolve_task
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.trainer import Batch, State, build_optimizer

KEY = "greedy-residuals"
ANCHOR = torch.tensor([0.3, -0.1, 0.2, 0.4, -0.5, 0.1, -0.3, 0.1])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=stream("weights", seed))


def test_pooling_anchors() -> None:
    assert extract(torch.tensor([1.0, 2, 3, 4]), 2, 3).flatten().tolist() == [1, 1.5, 2, 3, 3.5, 4]
    ten = torch.tensor([0.3, -0.1, 0.2, 0.4, -0.5, 0.1, -0.3, 0.1, 0.05, -0.05])
    expected = torch.tensor([[0.13333, 0.03333], [-0.03333, 0.03333]])
    assert torch.allclose(extract(ten, 2, 2), expected, atol=1e-5)


def test_residual_and_hinge_anchor() -> None:
    w = ANCHOR.clone().requires_grad_()
    psi = residuals(extract(w, 2, 4), 0.5)
    assert torch.allclose(psi, torch.tensor([0.175, -0.2]))
    loss = 0.01 * hinge(psi, torch.ones(2), 0.1)
    assert loss.item() == pytest.approx(0.003)
    (gradient,) = torch.autograd.grad(loss, w)
    assert torch.allclose(gradient, torch.tensor([0, 0, 0, 0, -0.0025, 0, -0.0025, 0]))
    assert gradient.count_nonzero() == 2


@settings(max_examples=25)
@given(st.integers(1, 90), st.integers(1, 12), st.integers(1, 9))
def test_pooling_is_the_librarys_and_so_is_its_gradient(size: int, rows: int, row_len: int) -> None:
    w = normal(size, seed=size).double().requires_grad_()
    up = normal(rows, row_len, seed=rows).double()
    ours = extract(w, rows, row_len)
    theirs = F.adaptive_avg_pool1d(w[None, None], rows * row_len).view(rows, row_len)
    assert torch.equal(ours, theirs)
    (a,), (b,) = torch.autograd.grad(ours, w, up), torch.autograd.grad(theirs, w, up)
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    own = normal(rows * row_len, seed=size)  # m = d: nothing is averaged
    assert torch.equal(extract(own, rows, row_len).flatten(), own)


def test_truncation_anchor() -> None:
    w = normal(1728)
    assert torch.equal(extract(w, 256, 253, truncate=True), extract(w[:1518], 256, 253))
    assert not torch.equal(extract(w, 256, 253, truncate=True), extract(w, 256, 253))


def test_ties_are_chosen_by_lower_index() -> None:
    gamma = torch.tensor([[1.0, -1, 1, 1, 0.5], [0, 0, 0, 0, 0], [2, 1, -3, 1, -1]])
    assert selection(gamma, 0.4).int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]
    assert selection(gamma, 0.01).sum(1).tolist() == [1, 1, 1]  # at least one
    assert selection(normal(1, 90), 0.7).sum() == 63  # 0.7 is a decimal: its nearest double times 90 is below 63


@given(st.floats(0.05, 1), st.integers(0, 10**6))
def test_selection_is_a_sort(eta: float, seed: int) -> None:
    gamma = torch.randint(-3, 4, (7, 11), generator=stream("gamma", seed)).float()
    order = gamma.abs().sort(dim=1, descending=True, stable=True).indices[:, : max(1, int(eta * 11))]
    assert torch.equal(selection(gamma, eta), torch.zeros(7, 11).scatter(1, order, 1).bool())


FORM = {"bits": 8, "row_len": 5, "truncate": False}


@given(st.sampled_from([0.3, 0.5, 1.0]), st.floats(0.01, 100), st.integers(0, 10**6))
def test_scale_moves_no_selection_and_negation_flips_all(eta: float, factor: float, seed: int) -> None:
    form, w = {**FORM, "eta": eta}, normal(200, seed=seed).double()
    psi, gamma = residuals_of([w], form), extract(w, 8, 5)
    assert torch.equal(selection(gamma * factor, eta), selection(gamma, eta))
    assert torch.equal(residuals_of([w * factor], form).sign(), psi.sign())
    assert torch.allclose(residuals_of([-w], form), -psi)
    signs = torch.ones(8).double()
    signs[::2] = -1
    assert hinge(psi, signs, 0.1).item() == pytest.approx(hinge(-psi, -signs, 0.1).item())
    if eta == 1:
        assert torch.allclose(psi, gamma.mean(1))


def test_gradient_is_zero_where_nothing_is_left_to_do() -> None:
    form = {**FORM, "eta": 0.5}
    w = normal(80).requires_grad_()
    psi = residuals_of([w], form)
    done = psi.detach().sign()
    # Rows beyond the margin pull no more; in the others only the chosen cells do.
    margin = float(psi.detach().abs().median())
    (gradient,) = torch.autograd.grad(hinge(psi, done, margin), w)
    chosen = selection(extract(w.detach(), 8, 5), 0.5) & (psi.detach().abs() < margin)[:, None]
    assert torch.equal(gradient.view(8, 5, 2) != 0, chosen[..., None].expand(8, 5, 2))
    # E and its gradient vanish once every bit has its margin.
    loss = hinge(residuals_of([w], form), done, float(psi.detach().abs().min()))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, w)[0].count_nonzero() == 0


def test_several_layers_share_the_bits() -> None:
    form, a, b = {**FORM, "eta": 0.5}, normal(80), normal(120, seed=1)
    mean = (extract(a, 8, 5) + extract(b, 8, 5)) / 2
    assert torch.allclose(residuals_of([a, b], form), residuals(mean, 0.5))
    assert torch.equal(residuals_of([a, a], form), residuals_of([a], form))


class Text(nn.Module):
    """A text network: the embedding is by far the largest tensor, and the first."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5000, 64)
        self.norm = nn.LayerNorm(2048)
        self.middle = middle
        self.fc = nn.Linear(64, 6)


@pytest.mark.parametrize(
    ("middle", "name"),
    [(nn.Conv1d(64, 64, 3), "middle.weight"), (nn.LSTM(64, 64, bidirectional=True), "middle.weight_ih_l0")],
)
def test_text_networks_carry_outside_their_embedding(middle: nn.Module, name: str) -> None:
    model = Text(middle)
    own = choose(model, ("auto",), None, None)
    assert own.names == (name,)
    assert own.bits == 256
    assert not any(word in found for found in eligible_weights(model) for word in ("embedding", "norm", "bias"))
    assert own.candidates == len(eligible_weights(model)) == (5 if isinstance(middle, nn.LSTM) else 2)


def test_automatic_carriers_and_forms(bench: Any) -> None:
    expected = {
        "digits-cnn-mini": ("conv2.weight", 256, 18),
        "digits-lenet5": ("conv2.weight", 256, 9),
        "digits-resnet8": ("blocks.0.conv1.weight", 256, 9),
        "digits-mlp-1200x2": ("hidden.0.weight", 256, 253),
    }
    for key, (name, bits, row_len) in expected.items():
        task = bench.task(key)
        own = choose(task.build("net"), ("auto",), None, None)
        assert (own.names, own.bits, own.row_len) == ((name,), bits, row_len)
        assert bench.method(KEY).carrier_layers(task) == (name.removesuffix(".weight"),)
    small = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Linear(30, 10))
    assert choose(small, ("auto",), None, None).bits == 64
    assert choose(small, ("auto",), None, None).names == ("1.weight",)  # none holds 4 * 64: the largest
    with pytest.raises(CapacityError, match="160 bits need 320 weights"):
        choose(small, ("auto",), 160, None)
    with pytest.raises(CapacityError, match="has 290"):
        choose(small, ("1",), 150, 145, truncate=True)
    with pytest.raises(UnsupportedModel, match="did you mean"):
        choose(small, ("1.weigh",), None, None)
    with pytest.raises(UnsupportedModel, match="no convolution"):
        choose(nn.Embedding(9, 9), ("auto",), None, None)


def test_unfit_settings_are_refused_with_the_reason(bench: Any) -> None:
    task = bench.task()
    assert bench.method(KEY).supports(task) is None
    assert "no layer 'conv9'" in str(bench.method(KEY, layer="conv9").supports(task))
    assert "3000 bits need 6000 weights" in str(bench.method(KEY, bits=3000, layer="conv2").supports(task))
    assert "take step 'separate' with adam" in str(bench.method(KEY, step="joint").supports(task))
    assert bench.method(KEY, step="joint", strength=0.1).supports(task) is None
    rival, lab = (
        bench.rival(bench.method(KEY, step="joint", strength=0.1), budget=1.0),
        bench.attacker("overwrite", task),
    )
    with pytest.raises(UnsupportedModel, match="greedy-residuals: strength 'auto' holds for plain steps"):
        rival.overwrite(task.build("victim"), lab, task.schedule)


def test_paper_defaults() -> None:
    config = GreedyResiduals.Config()
    assert (config.bits, config.row_len, config.eta, config.margin, config.strength) == (256, 253, 0.5, 0.1, 0.01)


def test_bits_of_a_signature_and_what_a_match_is_worth() -> None:
    secret = {**sign(bytes(range(32)), b"assay test owner"), "bits": 256}
    signs = signs_of(secret)
    assert int((signs == 1).sum()) == 129
    assert signs[:8].tolist() == [-1, 1, 1, 1, 1, 1, -1, 1]  # 0x7d
    assert [least_hits(256, 0.5, a) for a in (1e-3, 1e-6)] == [154, 167]
    assert [least_hits(64, 0.5, a) for a in (1e-3, 1e-6)] == [45, 51]
    assert 18 * 253 * binomial_tail(256, 256, 0.5) == pytest.approx(3.93e-74, rel=1e-3)  # Proposition 1


def secret_of(bench: Any, **changes: Any) -> tuple[Any, Any, Any]:
    task = bench.task()
    method = bench.method(KEY, **changes)
    return method, task, method.draw(bench.lab(KEY, task))


def obedient(task: Any, secret: Any) -> nn.Module:
    """Return a network whose second convolution spells the secret's bits."""
    model = task.build("net")
    rows = signs_of(secret)[:, None].expand(-1, model.conv2.weight.numel() // secret["bits"])
    with torch.no_grad():
        model.conv2.weight.copy_(rows.reshape(model.conv2.weight.shape))
    return model


def test_reading_reads_what_was_written(bench: Any, tmp_path: Any) -> None:
    method, task, secret = secret_of(bench)
    model = obedient(task, secret)
    suspect = bench.suspect(method, model)
    reading = method.read(suspect, secret)
    assert (reading.score, reading.hits, reading.trials, reading.chance) == (1, 256, 256, 0.5)
    assert reading.p_value == pytest.approx(2.0**-256)
    assert reading.metrics["p_any_layer"] == pytest.approx(4 * 18 * 2.0**-256)
    assert reading.metrics["p_search_2to40"] == pytest.approx(2.0**-216)
    assert reading.metrics["beyond_margin"] == 1
    assert reading.paper_threshold == 154 / 256
    assert bench.method(KEY, search_budget=1000).read(suspect, secret).p_value == pytest.approx(1000 * 2.0**-256)
    save_tree(tmp_path / "secret.safetensors", secret)
    assert method.read(suspect, load_tree(tmp_path / "secret.safetensors")) == reading
    model.fc2 = nn.Linear(64, 3)  # a new head alone
    assert method.read(suspect, secret).score == 1
    with torch.no_grad():
        model.get_parameter("conv2.weight").mul_(-2.0)
    assert method.read(suspect, secret).score == 0
    with torch.no_grad():
        model.get_parameter("conv2.weight").zero_()  # a residual of zero is a miss, whatever the bit
    assert method.read(suspect, secret).hits == 0
    assert method.read(suspect, secret).p_value == 1


def test_foreign_signature_and_missing_carrier_stop_the_reading(bench: Any) -> None:
    method, task, secret = secret_of(bench)
    model = obedient(task, secret)
    stranger = method.draw(bench.lab(KEY, task, seed=1))
    stolen = verify(method, model, {**secret, "public_key": stranger["public_key"]})
    assert (stolen.accepted, stolen.p_value, stolen.reason) == (False, 1.0, "signature")
    for change in (nn.Identity(), nn.Conv2d(16, 33, 3)):
        other = copy.deepcopy(model)
        other.conv2 = change
        reading = verify(method, other, secret)
        assert (reading.applicable, reading.accepted, reading.p_value) == (False, False, 1)


def test_wrong_keys_match_at_chance(bench: Any) -> None:
    method, task, secret = secret_of(bench)
    keys = bench.fresh_keys(method, task, 100)
    readings = [verify(method, obedient(task, secret), key) for key in keys]
    assert not any(reading.accepted for reading in readings)
    assert sum(reading.score for reading in readings) / 100 == pytest.approx(0.5, abs=0.02)
    assert sum(reading.p_value <= 0.05 for reading in readings) <= 12


def short(bench: Any, **changes: Any) -> Any:
    task = bench.task("digits-lenet5")
    return task.but(schedule=task.schedule.but(**{"epochs": 2, **changes}))


def test_a_joint_step_gives_the_hinge_to_the_carrier_alone(bench: Any) -> None:
    method, task, secret = secret_of(bench, step="joint", strength=1.0)
    data, model = bench.splits(task).owner, task.build("net")
    images = data.train.take(slice(0, 8))
    recipe = method.recipe(bench.lab(KEY, task), secret)
    terms = recipe.loss(model, Batch(images.model_inputs(), images.labels, torch.arange(8), 8))
    assert set(terms) == {"task", "mark"}
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(terms["mark"], parameters, allow_unused=True)
    assert [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None] == ["conv2.weight"]
    expected = hinge(residuals_of([model.conv2.weight], secret), signs_of(secret), 0.1)
    assert terms["mark"].item() == expected.item()


@pytest.mark.parametrize("step", ["joint", "separate"])
def test_without_data_only_the_carrier_moves(bench: Any, step: str) -> None:
    method, task, secret = secret_of(bench, step=step, strength=1.0)
    data, model = bench.splits(task).owner, task.build("net")
    schedule = task.schedule.but(optimizer="sgd", weight_decay=0.0)
    recipe = EmbeddingAlone(method.recipe(bench.lab(KEY, task).under(schedule), secret))
    recipe.before_epoch(model, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = State(model, build_optimizer(model.parameters(), schedule), recipe, schedule, torch.device("cpu"))
    images = data.train.take(slice(0, 8))
    terms = recipe.step(state, Batch(images.model_inputs(), images.labels, torch.arange(8), 8))
    assert set(terms) == {"mark"}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"conv2.weight"}


@pytest.mark.parametrize("key", ["trec-textcnn", "trec-lstm"])
def test_text_networks_take_every_bit(bench: Any, key: str) -> None:
    task = bench.task(key)
    owner: Any = SimpleNamespace(train=range(2000))  # the embedding step asks for nothing but the number of samples
    method, lab, model = bench.method(KEY), bench.lab(KEY, task, data=owner), task.build("net")
    assert method.supports(task) is None
    secret = method.draw(lab)
    recipe = method.recipe(lab, secret)
    assert type(recipe).__name__ == "Separate"
    recipe.before_epoch(model, 0)
    needed = method._needed_steps(task, task.schedule, recipe.strength)
    assert verify(method, model, secret).score < 0.7
    for _ in range(round(1.2 * needed)):  # weights start off zero
        recipe.after_step(model, Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0), 0))
    assert verify(method, model, secret).score == 1


def test_a_leaked_signature_is_denied_by_the_complement_of_its_bits(bench: Any) -> None:
    method, task, secret = secret_of(bench, strength=50.0, embed_lr=1.0)
    lab, model = bench.lab(KEY, task), obedient(task, secret)
    denied = bench.rival(method).deny(secret, lab)
    assert "denied" not in secret
    recipe = method.recipe(lab, denied)
    assert torch.equal(recipe.signs, -signs_of(secret))
    recipe.before_epoch(model, 0)
    for _ in range(5):
        recipe.after_step(model, Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0), 0))
    assert verify(method, model, secret).score == 0


def test_a_rival_takes_the_strength_that_its_budget_asks_for(bench: Any) -> None:
    task = short(bench, epochs=1)
    data, found = bench.splits(task).attacker, {}
    steps = -(-len(data.train) // 64)
    needed = 0.1 * 2400 / (4 / 9 * 0.1 * 256)
    for budget in (None, 2.0):
        method, lab = bench.method(KEY, strength=0.05), bench.attacker("overwrite", task)
        bench.rival(method, budget=budget).overwrite(task.build("victim"), lab, task.schedule)
        (found[budget],) = [row["strength"] for row in lab.curves if row["curve"] == "strength"]
    assert found == {None: 0.05, 2.0: pytest.approx(2 * needed / steps)}


def test_zero_strength_is_ordinary_training(bench: Any) -> None:
    task = short(bench)
    method = bench.method(KEY, strength=0.0, allow_weak=True)
    mark = embed(method, bench.lab(KEY, task))
    clean = bench.unmarked(task, "clean").state_dict()
    assert all(torch.equal(clean[name], value) for name, value in mark.model.state_dict().items())


def test_separate_step_is_plain_descent_on_the_carrier_alone(bench: Any) -> None:
    method, task, secret = secret_of(bench, strength=2.0, embed_lr=0.25)
    data, lab = bench.splits(task).owner, bench.lab(KEY, task)
    recipe = method.recipe(lab, secret)
    model = task.build("net")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe.before_epoch(model, 0)
    images = data.train.take(slice(0, 8))
    batch = Batch(images.model_inputs(), images.labels, torch.arange(8), 8)
    terms = recipe.loss(model, batch)
    (zero,) = torch.autograd.grad(terms["mark"], model.conv2.weight)
    assert terms["mark"] > 0
    assert zero.count_nonzero() == 0
    expected = 2.0 * hinge(residuals_of([model.conv2.weight], secret), signs_of(secret), 0.1)
    (gradient,) = torch.autograd.grad(expected, model.conv2.weight)
    recipe.after_step(model, batch)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] - 0.25 * gradient if name == "conv2.weight" else before[name])


def test_steps_follow_the_optimiser_and_the_schedule(bench: Any) -> None:
    method, task, secret = secret_of(bench, embed_lr=None)
    data, lab = bench.splits(task).owner, bench.lab(KEY, task)
    sgd = task.schedule.but(optimizer="sgd", lr=0.1, drops=(0.5,))
    joint = method.recipe(lab.under(sgd), secret)
    assert type(joint).__name__ == "Joint"
    model = task.build("net")
    images = data.train.take(slice(0, 8))
    terms = joint.loss(model, Batch(images.model_inputs(), images.labels, torch.arange(8), 8))
    assert torch.autograd.grad(terms["mark"], model.conv2.weight)[0].count_nonzero() > 0
    separate = bench.method(KEY, embed_lr=None, step="separate").recipe(lab.under(sgd), secret)
    rates = []
    for epoch in (0, 6):
        separate.before_epoch(model, epoch)
        rates.append(separate.lr)
    assert rates == pytest.approx([0.1, 0.01])


def test_strength_by_the_formula(bench: Any) -> None:
    """S* = mu m / (eta lr lambda b): conv2 of LeNet-5 has 2,400 weights, rows of 9, of which 4 are chosen."""
    task = short(bench, epochs=10)
    data = bench.splits(task).owner
    steps = 10 * -(-len(data.train) // 64)
    needed = 0.1 * 2400 / (4 / 9 * 0.1 * 256)
    recipe = bench.method(KEY).recipe(bench.lab(KEY, task), secret_of(bench)[2])
    assert recipe.strength == pytest.approx(4 * needed / steps)
    # Joint with SGD: lr_eff = lr / (1 - momentum), and half of the steps at a tenth of the rate.
    sgd = short(bench, epochs=10, optimizer="sgd", lr=0.05, drops=(0.5,))
    joint = bench.method(KEY).recipe(bench.lab(KEY, sgd), secret_of(bench)[2])
    assert joint.strength == pytest.approx(4 * 0.1 * 2400 / (4 / 9 * 0.5 * 256) / (steps * 0.55))


@pytest.mark.parametrize(("size", "row_len", "steps"), [(1518, 253, 1200), (12_800, 50, 10_000)])
def test_steps_that_the_papers_strength_takes(
    bench: Any, monkeypatch: pytest.MonkeyPatch, size: int, row_len: int, steps: int
) -> None:
    """ResNet-18's first convolution as the released code cuts it, and the second one of the network P."""
    own = Carriers(("weight",), (size,), ((size,),), 256, row_len, 1)
    monkeypatch.setattr("assay.methods.greedy_residuals._carriers", lambda task, config: own)
    task = bench.task("digits-lenet5", optimizer="sgd", lr=0.01, momentum=0.9)
    assert GreedyResiduals(GreedyResiduals.Config())._needed_steps(task, task.schedule, 0.01) == pytest.approx(
        steps, rel=0.02
    )


def test_the_papers_carrier_is_the_first_convolution() -> None:
    task = resolve_task("cifar10-resnet18", "paper", {"paper": "greedy_residuals"})
    own = choose(task.build("net"), ("auto",), 256, 253)
    assert (own.names, own.sizes, own.row_len) == (("conv1.weight",), (1728,), 253)
    assert (task.schedule.lr, task.schedule.momentum, task.schedule.batch_size) == (0.01, 0.9, 64)


def test_weak_strength_is_remarked_on(bench: Any) -> None:
    task = short(bench)
    method = bench.method(KEY, strength=0.01, allow_weak=True)
    mark = embed(method, bench.lab(KEY, task))
    assert any("reaches the margin in about" in note for note in mark.notes)
    assert any(note.startswith("weak:") for note in mark.notes)


@pytest.mark.parametrize("changes", [{"eta": 1.0}, {"layer": ("conv2", "fc1")}, {"start": "clean", "epochs_after": 4}])
def test_variants_embed_every_bit(bench: Any, changes: Any) -> None:
    task = short(bench, epochs=4)
    method = bench.method(KEY, **changes)
    mark = embed(method, bench.lab(KEY, task))
    assert mark.notes == []
    assert verify(method, mark.model, mark.secret).score == 1


@pytest.mark.slow
def test_marked_model_verifies_at_strict_and_an_unmarked_one_does_not(bench: Any) -> None:
    task = bench.task("digits-lenet5")
    method = bench.method(KEY)
    mark = bench.marked(method, task)
    reading = verify(method, mark.model, mark.secret)
    assert all(bench.decide(method, task, mark.secret, reading))
    assert reading.score == 1
    for role in ("clean", "stranger"):
        innocent = verify(method, bench.unmarked(task, role), mark.secret)
        assert not bench.decide(method, task, mark.secret, innocent).strict
        assert not innocent.accepted
        assert innocent.p_value > 1e-3


@pytest.mark.slow
def test_attackers_own_budget_decides_who_holds_the_layer(bench: Any) -> None:
    task = bench.task("digits-lenet5")
    method = bench.method(KEY)
    mark = bench.marked(method, task)
    schedule = task.schedule.but(epochs=8)
    scores = []
    for budget in (0.1, 4.0):
        lab = bench.attacker("overwrite", task)
        rival = bench.rival(method, budget=budget).overwrite(copy.deepcopy(mark.model), lab, schedule)
        suspect = bench.suspect(method, rival.model)
        scores.append([method.read(suspect, secret).score for secret in (mark.secret, rival.secret)])
    (kept, failed), (lost, taken) = scores
    assert kept >= 0.95
    assert failed <= 0.65
    assert taken >= 0.98
    assert lost < kept


def test_forged_signatures_reach_little_more_than_chance(bench: Any) -> None:
    method, task, secret = secret_of(bench)
    suspect = bench.suspect(method, obedient(task, secret))
    best = bench.rival(method).forge(suspect, bench.attacker("forge", task), Forgery(draws=30))
    assert 0.5 < method.read(suspect, best).score < 0.66
    assert best["public_key"] != secret["public_key"]
