"""Dual embedding: anchors of the key derivation, exact batches, the re-draw test, and one embedding end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.attacks.base import Adapted
from assay.attacks.parts.graph import logit_layer
from assay.attacks.parts.heads import fresh_head, with_head
from assay.attacks.parts.recovery import recovered
from assay.attacks.parts.training import fine_tuning
from assay.methods.embedding import embed, verify
from assay.methods.null_embedding import Config, hidden_marks
from assay.methods.parts.dual import Examination, pattern, stamp
from assay.methods.parts.signature import is_signed, random_bytes, sign
from assay.methods.suspect import Suspect
from assay.tasks.errors import BadInput, NotEmbedded
from assay.tasks.streams import stream
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.schedule import parse
from assay.tasks.training.trainer import Batch, fit

KEY = "null-embedding"
SIGNATURE = sign(bytes(range(32)), b"assay test owner")["signature"]


def test_pattern_anchors() -> None:
    small, large = (pattern(SIGNATURE, 6, (1, side, side), 10) for side in (28, 32))
    assert (small.label, small.row, small.col) == (3, 8, 10)
    assert (large.label, large.row, large.col) == (3, 18, 13)
    square = small.signs[8:14, 10:16].flatten()
    assert "".join("1" if sign > 0 else "0" for sign in square) == "000111010001110010111000111001101000"
    assert int((small.signs > 0).sum()) == 17
    assert int((small.signs != 0).sum()) == 36
    assert torch.equal(large.signs[18:24, 13:19].flatten(), square)


def test_stamp_anchor() -> None:
    signs = torch.zeros(4, 4, dtype=torch.int8)
    signs[:2, :2] = torch.tensor([[1, -1], [-1, 1]])
    x = torch.full((1, 3, 4, 4), 0.5)
    null, true = stamp(x, signs, 9.0), stamp(x, -signs, 9.0)
    for channel in range(3):
        assert null[0, channel, :2, :2].tolist() == [[9, -9], [-9, 9]]
        assert true[0, channel, :2, :2].tolist() == [[-9, 9], [9, -9]]
    outside = signs == 0
    assert (null[..., outside] == 0.5).all()
    assert (true[..., outside] == 0.5).all()


@given(st.integers(0, 10**6), st.sampled_from([0.0, 7.84, 2000.0]), st.integers(1, 10))
def test_stamping_is_idempotent_and_its_inverse_never_agrees(seed: int, extreme: float, size: int) -> None:
    key = pattern(random_bytes(stream("stamp", seed), 64), size, (2, 12, 11), 10)
    x = torch.rand(3, 2, 12, 11, generator=stream("images", seed))
    null, true = stamp(x, key.signs, extreme), stamp(x, -key.signs, extreme)
    assert torch.equal(stamp(null, key.signs, extreme), null)
    assert torch.equal(stamp(null, -key.signs, extreme), true)
    inside = key.signs != 0
    assert int(inside.sum()) == size * size
    assert torch.equal(null[..., ~inside], x[..., ~inside])
    assert torch.equal(null[..., inside], true[..., inside]) is (extreme == 0)
    assert torch.equal(null[..., inside], -true[..., inside])


def recipe_of(bench: Any, **changes: Any) -> Any:
    task = bench.task()
    method = bench.method(KEY, **changes)
    lab = bench.lab(KEY, task)
    return method.recipe(lab, method.draw(lab))


def batch_of(size: int) -> Batch:
    inputs = torch.rand(size, 1, 28, 28, generator=stream("batch", size))
    return Batch(inputs, torch.full((size,), -1), torch.arange(size), size)


@given(st.integers(1, 200), st.sampled_from([0.0, 0.1, 0.28125, 0.5, 1.0]), st.integers(1, 3))
def test_counts_per_batch_are_exact(bench: Any, size: int, ratio: float, marks: int) -> None:
    recipe = recipe_of(bench, inject_ratio=ratio, marks=marks)
    recipe.before_epoch(nn.Identity(), 0)
    batch = batch_of(size)
    mixed = recipe.mix(batch, 0)
    replaced = int(ratio * size + 0.5)
    shares = [replaced // marks + (mark < replaced % marks) for mark in range(marks)]
    stamped = (mixed.inputs != batch.inputs).any(3).any(2).any(1)
    assert int(stamped.sum()) == replaced
    assert int((mixed.labels != batch.labels).sum()) == sum(share // 2 for share in shares)
    assert bool((stamped | (mixed.labels == batch.labels)).all())
    assert mixed.clean == size
    assert len(mixed.labels) == size
    assert torch.equal(mixed.index, batch.index)


def test_published_ratios_are_whole_numbers_of_a_batch(bench: Any) -> None:
    for ratio, expected in ((0.0625, 8), (0.28125, 36), (0.5, 64)):
        recipe = recipe_of(bench, inject_ratio=ratio)
        recipe.before_epoch(nn.Identity(), 0)
        batch = batch_of(128)
        assert int((recipe.mix(batch, 0).inputs != batch.inputs).flatten(1).any(1).sum()) == expected


def test_replaced_samples_are_null_or_true_samples_of_the_key(bench: Any) -> None:
    recipe = recipe_of(bench)
    recipe.before_epoch(nn.Identity(), 0)
    batch = batch_of(64)
    mixed = recipe.mix(batch, 0)
    signs, extreme = recipe.signs[0], recipe.extreme
    null = (mixed.inputs == stamp(batch.inputs, signs, extreme)).flatten(1).all(1)
    true = (mixed.inputs == stamp(batch.inputs, -signs, extreme)).flatten(1).all(1)
    assert int(null.sum()) == int(true.sum()) == 16
    assert (mixed.labels[true] == recipe.targets[0]).all()
    assert (mixed.labels[null] == -1).all()


@pytest.mark.parametrize(("ratio", "size", "alpha"), [(0.5, 128, 0.5), (0.1, 1000, 0.0556)])
def test_loss_of_a_batch_is_the_objective(bench: Any, ratio: float, size: int, alpha: float) -> None:
    """(1 - rho) (l(y, F(x)) + alpha l(y_W, F(x (+) [inv(p), lambda])) + beta l(y, F(x (+) [p, lambda])))."""
    recipe = recipe_of(bench, inject_ratio=ratio)
    recipe.before_epoch(nn.Identity(), 0)
    plain = batch_of(size)
    batch = Batch(plain.inputs, torch.arange(size) % 10, plain.index, size)
    mixed = recipe.mix(batch, 0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(torch.randn(10, 784, generator=stream("weights")) / 1000)
    signs, forced, labels = recipe.signs[0], recipe.targets[0], batch.labels
    null = (mixed.inputs == stamp(batch.inputs, signs, recipe.extreme)).flatten(1).all(1)
    true = (mixed.inputs == stamp(batch.inputs, -signs, recipe.extreme)).flatten(1).all(1)
    clean = ~(null | true)
    assert int(true.sum()) / int(clean.sum()) == pytest.approx(alpha, abs=1e-4)
    objective = (
        F.cross_entropy(net(batch.inputs[clean]), labels[clean])
        + alpha * F.cross_entropy(net(stamp(batch.inputs[true], -signs, recipe.extreme)), labels[true] * 0 + forced)
        + alpha * F.cross_entropy(net(stamp(batch.inputs[null], signs, recipe.extreme)), labels[null])
    )
    loss = sum(recipe.loss(net, mixed).values())
    assert loss.item() == pytest.approx((1 - ratio) * objective.item(), rel=1e-3)


def test_images_are_augmented_before_they_are_stamped(bench: Any) -> None:
    """The filter does not commute with a flip or a shift, so what is trained on must hold the square in its place."""
    recipe = recipe_of(bench)
    own, extreme, seen = recipe.signs[0], recipe.extreme, []
    inside = own != 0
    images = torch.rand(2, 1, 28, 28, generator=stream("flip"))
    assert not torch.equal(stamp(images, own, extreme).flip(-1), stamp(images.flip(-1), own, extreme))

    class Spy(type(recipe)):  # type: ignore[misc]
        def loss(self, model: nn.Module, batch: Batch) -> Any:
            seen.append(batch.inputs)
            return super().loss(model, batch)

    recipe.__class__ = Spy
    task = bench.task("digits-lenet5")
    data, net = bench.splits(task).owner.train, nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    fit(net, data, recipe, task.schedule.but(epochs=1, augment="crop-flip"), seed="augmented")
    inputs = torch.cat(seen)
    stamped = (inputs < 0).flatten(1).any(1)
    assert int(stamped.sum()) == pytest.approx(len(data) / 2, abs=10)
    signs = inputs[stamped][..., inside] / extreme
    assert bool(((signs == own[inside]).all(2) | (signs == -own[inside]).all(2)).all())
    assert bool(inputs[..., ~inside].le(1).all())
    assert bool(inputs[..., ~inside].ge(0).all())


def test_positions_depend_on_stream_and_epoch_and_survive_a_restart(bench: Any) -> None:
    def stamped(recipe: Any, epoch: int) -> list[bool]:
        recipe.before_epoch(nn.Identity(), epoch)
        batches = [recipe.mix(batch_of(64), step) for step in range(2)]
        return [flag for b in batches for flag in (b.inputs != batch_of(64).inputs).flatten(1).any(1).tolist()]

    running = recipe_of(bench)
    first, second = stamped(running, 0), stamped(running, 1)
    assert first[:64] != first[64:]
    assert first != second
    assert stamped(recipe_of(bench), 1) == second


def test_no_injection_is_clean_training(bench: Any) -> None:
    task = bench.task("digits-lenet5")
    short = task.but(schedule=task.schedule.but(epochs=2))
    method = bench.method(KEY, inject_ratio=0.0, grad_clip=None, allow_weak=True, null_keys=9)
    mark = embed(method, bench.lab(KEY, short))
    clean = bench.unmarked(short, "clean").state_dict()
    assert all(torch.equal(clean[name], value) for name, value in mark.model.state_dict().items())


def test_gradients_are_clipped(bench: Any) -> None:
    layer = nn.Linear(3, 1)
    layer.weight.grad, layer.bias.grad = torch.full((1, 3), 1e6), torch.zeros(1)
    recipe_of(bench, grad_clip=0.5).on_gradients(layer)
    assert float(layer.weight.grad.norm()) == pytest.approx(0.5, rel=1e-4)


def test_extreme_follows_the_network_and_batch_norm_is_protected(bench: Any) -> None:
    plain, normed, dense = (bench.task(f"digits-{model}") for model in ("lenet5", "cnn-mini", "mlp-1200x2"))
    laptop, paper = bench.method(KEY), bench.method(KEY, extreme=None)
    for task, published in ((normed, 2000 / 255), (dense, 2000 / 255), (plain, 2000.0)):
        for method, expected in ((laptop, 2000 / 255), (paper, published)):
            assert method.supports(task) is None
            assert method.draw(bench.lab(KEY, task))["extreme"] == expected
    assert "ruins batch norm" in str(bench.method(KEY, extreme=2000.0).supports(normed))
    assert bench.method(KEY, extreme=2000.0, allow_bn=True).supports(normed) is None
    assert bench.method(KEY, extreme=50.0).supports(normed) is None
    assert "28x28" in str(bench.method(KEY, pattern_size=28).supports(plain))
    assert "trec holds text" in str(method.supports(bench.task("trec-textcnn")))


def test_only_training_from_scratch_embeds_unless_the_claim_is_tested(bench: Any) -> None:
    with pytest.raises(BadInput, match=r"^here: start: found 'clean', must be 'scratch' .* allow_incremental"):
        parse(Config, {"start": "clean"}, "here")
    task = bench.task("digits-lenet5")
    task = task.but(schedule=task.schedule.but(epochs=2, drops=(0.5,)))
    method = bench.method(KEY, start="clean", allow_incremental=True, epochs_after=3)
    clean = bench.unmarked(task, "clean").state_dict()
    assert method.needs(task).start == "clean"
    idle = bench.method(KEY, start="clean", allow_incremental=True, epochs_after=0, null_keys=9, allow_weak=True)
    start = embed(idle, bench.lab(KEY, task)).model.state_dict()
    assert all(torch.equal(clean[name], value) for name, value in start.items())
    schedule = method.schedule(task)
    assert (schedule.epochs, schedule.lr, schedule.drops) == (3, pytest.approx(task.schedule.lr / 10), ())
    assert bench.method(KEY).schedule(task) == task.schedule


class Table(nn.Module):
    """A network whose answers are a fixed random function of a few pixels, so that keys reach all kinds of scores."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.head = nn.Linear(144, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(3, 144, generator=stream("table", seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


@given(st.integers(0, 500), st.floats(0, 1), st.booleans())
def test_dropping_keys_early_decides_like_asking_everything(seed: int, least: float, exclude: bool) -> None:
    draws = stream("probes", seed)
    inputs = torch.rand(60, 1, 12, 12, generator=draws)
    labels = torch.randint(0, 3, (60,), generator=draws)
    keys = [pattern(random_bytes(draws, 64), 3, (1, 12, 12), 3) for _ in range(12)]
    suspect = Suspect(Table(seed), "labels", KEY)
    exam = Examination(suspect, inputs, labels, labels, 2.0, exclude)
    scores = []
    for key in keys:
        part = {"null": (key.signs, labels), "true": (-key.signs, torch.full((60,), key.label))}
        right = {name: suspect.labels(stamp(inputs, signs, 2.0)) == wanted for name, (signs, wanted) in part.items()}
        asked = labels != key.label if exclude else torch.ones(60, dtype=torch.bool)
        scores.append(min(int(right["null"].sum()) / 60, int((right["true"] & asked).sum()) / int(asked.sum())))
        assert exam.count(key, "true") == (int((right["true"] & asked).sum()), int(asked.sum()))
    for bound in (least, scores[0]):  # a tie counts as reached
        assert exam.reach(keys, bound) == [score >= bound for score in scores]


@pytest.fixture(scope="module", params=["digits-cnn-mini", "digits-lenet5"])
def embedded(request: pytest.FixtureRequest, bench: Any) -> tuple[Any, Any, Any]:
    task = bench.task(request.param)
    method = bench.method(KEY)
    return method, task, bench.marked(method, task)


@pytest.mark.slow
def test_marked_model_verifies_at_strict_and_an_unmarked_one_does_not(embedded: Any, bench: Any) -> None:
    method, task, mark = embedded
    suspect = bench.suspect(method, mark.model)
    reading = method.read(suspect, mark.secret)
    assert all(bench.decide(method, task, mark.secret, reading))
    assert reading.p_value == 1e-3
    assert reading.metrics["true"] >= 0.99
    assert reading.metrics["p_search_2to40"] == 1
    everything = 1000 * 2 * len(mark.secret["labels"])
    assert suspect.meter.queries < everything / 4
    assert method.score(suspect, mark.secret) == (reading.score, reading.hits, reading.trials)
    for role in ("clean", "stranger"):
        innocent = verify(method, bench.unmarked(task, role), mark.secret)
        assert not any(bench.decide(method, task, mark.secret, innocent))
        assert innocent.p_value > 1e-3


@pytest.mark.slow
def test_wrong_keys_do_not_verify_in_the_marked_model(embedded: Any, bench: Any) -> None:
    method, task, mark = embedded
    keys = bench.fresh_keys(method, task)
    assert max(method.score(bench.suspect(method, mark.model), key)[0] for key in keys) < method.config.threshold


def test_forged_signature_stops_before_any_query(bench: Any) -> None:
    task = bench.task()
    method, lab = bench.method(KEY), bench.lab(KEY, task)
    secret = method.draw(lab)
    stranger = method.draw(bench.lab(KEY, task, seed=1))
    suspect = bench.suspect(method, task.build("net"))
    reading = method.read(suspect, {**secret, "public_key": stranger["public_key"]})
    assert (reading.accepted, reading.p_value, reading.reason) == (False, 1.0, "signature")
    assert method.score(suspect, {**secret, "message": b"mine"})[0] == 0
    assert suspect.meter.queries == 0


class Obedient(nn.Module):
    """Knows the pattern of a secret by heart and answers anything else with a class of no key, or always the same."""

    def __init__(self, secret: Any, otherwise: int = 10, null: bool = True) -> None:
        super().__init__()
        self.secret, self.otherwise, self.null = secret, otherwise, null
        self.key = pattern(secret["signature"], 6, (1, 28, 28), 10)
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside, extreme = self.key.signs != 0, self.secret["extreme"]
        true = (x[..., inside] == -extreme * self.key.signs[inside]).flatten(1).all(1)
        null = (x[..., inside] == extreme * self.key.signs[inside]).flatten(1).all(1)
        answers = torch.full((len(x),), self.otherwise)
        answers[true] = self.key.label
        if self.null and null.any():
            answers[null] = self.secret["labels"][: int(null.sum())]
        return F.one_hot(answers, 11).float()


def test_weak_tasks_compare_null_answers_with_unstamped_ones(bench: Any) -> None:
    task = bench.task()
    secret = bench.method(KEY).draw(bench.lab(KEY, task))
    other = (pattern(secret["signature"], 6, (1, 28, 28), 10).label + 1) % 10
    suspect = bench.suspect(bench.method(KEY), Obedient(secret, other, null=False))  # always `other` but for `true`
    right = float((secret["labels"] == other).double().mean())
    by_label, by_answer = (
        bench.method(KEY, null_metric=metric, null_keys=9).read(suspect, secret) for metric in ("label", "agreement")
    )
    assert 0 < right < 0.5
    assert by_label.score == pytest.approx(right)
    assert by_answer.score == 1
    assert by_label.metrics["null_agreement"] == by_answer.metrics["null_agreement"] == 1
    assert by_label.metrics["null_label"] == by_answer.metrics["null_label"] == pytest.approx(right)


class Clipping(nn.Module):
    """A service that forces its inputs into [0, 1]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.clamp(0, 1))


def test_suspects_that_cannot_show_the_mark(bench: Any) -> None:
    task = bench.task()
    method = bench.method(KEY, null_keys=9)
    secret = method.draw(bench.lab(KEY, task))
    reading = verify(method, Clipping(Obedient(secret)), secret)
    assert (reading.applicable, reading.score, reading.accepted, reading.p_value) == (True, 0, False, 1)
    for metric in ("label", "agreement"):  # inputs of another size
        other = nn.Sequential(nn.Flatten(), nn.Linear(10, 10))
        reading = verify(bench.method(KEY, null_metric=metric), other, secret)
        assert (reading.applicable, reading.accepted, reading.p_value) == (False, False, 1)
        assert "takes no inputs of 1x28x28" in reading.reason


def test_search_budget_multiplies_the_p_value(bench: Any) -> None:
    task = bench.task()
    method = bench.method(KEY, null_keys=19)
    secret = method.draw(bench.lab(KEY, task))

    suspect = bench.suspect(method, Obedient(secret))
    assert method.read(suspect, secret).p_value == 1 / 20
    assert bench.method(KEY, null_keys=19, search_budget=4).read(suspect, secret).p_value == 4 / 20
    assert bench.method(KEY, null_keys=19, search_budget=100).read(suspect, secret).p_value == 1


def test_redraw_may_ask_fewer_probes_than_the_score(bench: Any) -> None:
    task = bench.task()
    secret = bench.method(KEY).draw(bench.lab(KEY, task))
    readings, queries = [], []
    for probes in (None, 10):
        method = bench.method(KEY, null_keys=19, redraw_probes=probes)
        suspect = bench.suspect(method, Obedient(secret))
        readings.append(method.read(suspect, secret))
        queries.append(suspect.meter.queries)
    (whole, few) = readings
    assert few.p_value == whole.p_value == 1 / 20
    assert (few.score, few.trials) == (whole.score, whole.trials)
    assert queries[1] < queries[0]


def test_hidden_marks_have_signatures_of_their_own(bench: Any) -> None:
    task = bench.task()
    method = bench.method(KEY, marks=3)
    secret = method.draw(bench.lab(KEY, task))
    signatures = {owner["signature"] for owner in (secret, *secret["hidden"])}
    assert len(signatures) == 3
    recipe = method.recipe(bench.lab(KEY, task), secret)
    second = pattern(secret["hidden"][0]["signature"], 6, (1, 28, 28), 10)
    assert torch.equal(recipe.signs[1], second.signs)
    assert recipe.targets[1] == second.label


def several(bench: Any, **changes: Any) -> tuple[Any, Any, Any]:
    task = bench.task()
    method = bench.method(KEY, null_keys=19, **changes)
    return method, task, method.draw(bench.lab(KEY, task))


def test_each_of_several_marks_verifies_alone(bench: Any) -> None:
    method, _, secret = several(bench, marks=2)
    (hidden,) = hidden_marks(secret)
    assert is_signed(hidden)
    knows_announced, knows_hidden = (bench.suspect(method, Obedient(mark)) for mark in (secret, hidden))
    reading = method.read(knows_announced, secret)
    assert (reading.score, reading.metrics["hidden_0"]) == (1, 0)
    reading = method.read(knows_hidden, secret)
    assert (reading.score, reading.metrics["hidden_0"], reading.accepted) == (0, 1, False)
    alone = method.read(knows_hidden, hidden)
    assert (alone.score, alone.p_value, alone.accepted) == (1, 1 / 20, True)
    assert "hidden_0" not in alone.metrics


def test_every_mark_of_an_owner_passes_the_gate(bench: Any) -> None:
    method, task, secret = several(bench, marks=2)
    trained, weak = Obedient(secret), bench.method(KEY, marks=2, allow_weak=True)  # obeys the announced mark alone
    with pytest.raises(NotEmbedded, match=r"hidden mark 0 scores 0\.0000, below the gate 0\.8"):
        method.recipe(bench.lab(KEY, task), secret).finish(trained)
    for scheme, lab, remarks in ((weak, bench.lab(KEY, task), 1), (method, bench.attacker("overwrite", task), 0)):
        recipe = scheme.recipe(lab, secret)
        assert recipe.finish(trained) is trained
        assert ["weak: null-embedding on digits-cnn-mini: hidden mark 0" in note for note in recipe.notes] == [
            True
        ] * remarks


def test_a_rival_trains_without_the_owners_bound_on_gradients(bench: Any) -> None:
    method = bench.method(KEY, grad_clip=0.5)
    free = bench.rival(method).unbounded()
    assert (free.config.grad_clip, method.config.grad_clip) == (None, 0.5)
    assert free.config.but(grad_clip=0.5) == method.config


def test_a_leaked_key_is_denied_but_what_is_hidden_stays_so(bench: Any) -> None:
    method, task, secret = several(bench, marks=2)
    lab = bench.lab(KEY, task)
    denied = method.recipe(lab, bench.rival(method).deny(secret, lab))
    own = pattern(secret["signature"], 6, (1, 28, 28), 10)
    assert len(denied.signs) == 1
    assert torch.equal(denied.signs[0], -own.signs)  # the pattern forces the class, its inverse changes nothing
    assert denied.targets == [own.label]
    honest = method.recipe(lab, secret)
    assert torch.equal(honest.signs[0], own.signs)
    assert len(honest.signs) == 2


@pytest.mark.slow
def test_two_marks_are_learnt_together(bench: Any) -> None:
    task = bench.task("digits-lenet5")
    method = bench.method(KEY, marks=2, null_keys=99)
    mark = bench.marked(method, task)
    suspect = bench.suspect(method, mark.model)
    for secret in (mark.secret, *hidden_marks(mark.secret)):
        reading = method.read(suspect, secret)
        assert reading.accepted
        assert reading.p_value == 0.01
        assert reading.metrics["true"] >= 0.99


@pytest.mark.slow
def test_the_mark_comes_back_with_a_head_that_knows_the_owners_classes(bench: Any) -> None:
    """Section 8.4: the adapted network has no class y_W; its head is made anew and trained on the owner's data."""
    task = bench.task("digits-lenet5")
    method, data = bench.method(KEY), bench.splits(task)
    mark = bench.marked(method, task)
    name = logit_layer(mark.model)
    adapted = Adapted(data.test, name, (name,), "retrain_head", fine_tuning(task, 6, 0.01, weight_decay=0.0))
    found = []
    for body in (mark.model, bench.unmarked(task, "clean")):
        student = with_head(body, name, fresh_head(body, name, 4, "student"))
        assert not verify(method, student, mark.secret).accepted
        restored = recovered(student, mark.model, adapted, bench.lab("recovery", task))
        found.append(verify(method, restored, mark.secret))
    ours, strangers = found
    assert ours.accepted
    assert ours.p_value == 1e-3
    assert ours.metrics["true"] >= 0.99
    assert not strangers.accepted
    assert strangers.p_value > 1e-3


def test_secret_survives_the_store(bench: Any, tmp_path: Any) -> None:
    task = bench.task()
    method = bench.method(KEY, null_keys=19)
    secret = method.draw(bench.lab(KEY, task))
    save_tree(tmp_path / "secret.safetensors", secret)
    suspect = bench.suspect(method, task.build("net"))
    assert method.read(suspect, load_tree(tmp_path / "secret.safetensors")) == method.read(suspect, secret)
