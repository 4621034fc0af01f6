"""Dual embedding: anchors of the key derivation, exact batches, the re-draw test, and one embedding end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from methods.parts.dual import Examination, pattern, stamp
from methods.parts.signature import random_bytes, sign
from methods.suspect import Suspect
from tasks.checkpoint import load_tree, save_tree
from tasks.streams import stream
from tasks.trainer import Batch

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
    method, data = bench.method(KEY, **changes), bench.splits(task).owner
    lab = bench.lab(KEY, task)
    return method.recipe(task, data, method.draw(task, data, lab), lab)


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
    mark = method.embed(short, bench.splits(task).owner, bench.lab(KEY, short))
    clean = bench.unmarked(short, "clean").state_dict()
    assert all(torch.equal(clean[name], value) for name, value in mark.model.state_dict().items())


def test_gradients_are_clipped(bench: Any) -> None:
    layer = nn.Linear(3, 1)
    layer.weight.grad, layer.bias.grad = torch.full((1, 3), 1e6), torch.zeros(1)
    recipe_of(bench).on_gradients(layer)
    assert float(layer.weight.grad.norm()) == pytest.approx(1, rel=1e-4)


def test_extreme_follows_the_network_and_batch_norm_is_protected(bench: Any) -> None:
    plain, normed, dense = (bench.task(f"digits-{model}") for model in ("lenet5", "cnn-mini", "mlp-1200x2"))
    method = bench.method(KEY)
    for task, expected in ((plain, 2000.0), (normed, 2000 / 255), (dense, 2000 / 255)):
        assert method.supports(task) is None
        assert method.draw(task, bench.splits(task).owner, bench.lab(KEY, task))["extreme"] == expected
    assert "ruins batch norm" in str(bench.method(KEY, extreme=2000.0).supports(normed))
    assert bench.method(KEY, extreme=2000.0, allow_bn=True).supports(normed) is None
    assert bench.method(KEY, extreme=50.0).supports(normed) is None
    assert "28x28" in str(bench.method(KEY, pattern_size=28).supports(plain))


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
    rules = method.thresholds(task, bench.splits(task).owner, mark.secret, bench.lab(KEY, task))
    suspect = bench.suspect(method, mark.model)
    verdict = method.verify(suspect, mark.secret)
    assert all(rules.decide(verdict).values())
    assert verdict.p_value == 1e-3
    assert verdict.metrics["true"] >= 0.99
    assert verdict.metrics["p_search_2to40"] == 1
    everything = 1000 * 2 * len(mark.secret["labels"])
    assert suspect.meter.queries < everything / 4
    assert method.score(suspect, mark.secret) == (verdict.score, verdict.matches, verdict.trials)
    for role in ("clean", "stranger"):
        innocent = method.verify(bench.suspect(method, bench.unmarked(task, role)), mark.secret)
        assert not any(rules.decide(innocent).values())
        assert innocent.p_value > 1e-3


@pytest.mark.slow
def test_wrong_keys_do_not_verify_in_the_marked_model(embedded: Any, bench: Any) -> None:
    method, task, mark = embedded
    keys = method.null_keys(task, bench.splits(task).owner, mark.secret, bench.lab(KEY, task))
    assert max(method.score(bench.suspect(method, mark.model), key)[0] for key in keys) < method.config.threshold


def test_forged_signature_stops_before_any_query(bench: Any) -> None:
    task = bench.task()
    method, lab = bench.method(KEY), bench.lab(KEY, task)
    secret = method.draw(task, bench.splits(task).owner, lab)
    stranger = method.draw(task, bench.splits(task).owner, bench.lab(KEY, task, seed=1))
    suspect = bench.suspect(method, task.build("net"))
    verdict = method.verify(suspect, {**secret, "public_key": stranger["public_key"]})
    assert (verdict.detected, verdict.p_value, verdict.reason) == (False, 1.0, "signature")
    assert method.score(suspect, {**secret, "message": b"mine"})[0] == 0
    assert suspect.meter.queries == 0


def test_search_budget_multiplies_the_p_value(bench: Any) -> None:
    task = bench.task()
    method = bench.method(KEY, null_keys=19)
    secret = method.draw(task, bench.splits(task).owner, bench.lab(KEY, task))

    class Obedient(nn.Module):
        """Knows the owner's pattern by heart and answers anything else with a class of no key."""

        def __init__(self) -> None:
            super().__init__()
            self.key = pattern(secret["signature"], 6, (1, 28, 28), 10)
            self.plain = dict(zip(map(bytes, secret["inputs"].flatten(1).numpy()), secret["labels"], strict=True))
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside = self.key.signs != 0
            true = (x[..., inside] == -secret["extreme"] * self.key.signs[inside]).flatten(1).all(1)
            null = (x[..., inside] == secret["extreme"] * self.key.signs[inside]).flatten(1).all(1)
            answers = torch.full((len(x),), 10)
            answers[true] = self.key.label
            if null.any():
                answers[null] = secret["labels"][: int(null.sum())]
            return nn.functional.one_hot(answers, 11).float()

    suspect = bench.suspect(method, Obedient())
    assert method.verify(suspect, secret).p_value == 1 / 20
    assert bench.method(KEY, null_keys=19, search_budget=4).verify(suspect, secret).p_value == 4 / 20
    assert bench.method(KEY, null_keys=19, search_budget=100).verify(suspect, secret).p_value == 1


def test_hidden_marks_have_signatures_of_their_own(bench: Any) -> None:
    task = bench.task()
    method = bench.method(KEY, marks=3)
    secret = method.draw(task, bench.splits(task).owner, bench.lab(KEY, task))
    signatures = {owner["signature"] for owner in (secret, *secret["hidden"])}
    assert len(signatures) == 3
    recipe = method.recipe(task, bench.splits(task).owner, secret, bench.lab(KEY, task))
    second = pattern(secret["hidden"][0]["signature"], 6, (1, 28, 28), 10)
    assert torch.equal(recipe.signs[1], second.signs)
    assert recipe.targets[1] == second.label


def test_secret_survives_the_store(bench: Any, tmp_path: Any) -> None:
    task = bench.task()
    method = bench.method(KEY, null_keys=19)
    secret = method.draw(task, bench.splits(task).owner, bench.lab(KEY, task))
    save_tree(tmp_path / "secret.safetensors", secret)
    suspect = bench.suspect(method, task.build("net"))
    assert method.verify(suspect, load_tree(tmp_path / "secret.safetensors")) == method.verify(suspect, secret)
