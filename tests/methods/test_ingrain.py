"""Ingrain and its carriers: anchors of walk and loss, what it reduces to, one embedding end to end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.methods.embedding import embed, verify
from assay.methods.families.capacity import CarrierConfig, CarrierMethod, Memorise, bit_accuracy, carriers_of
from assay.methods.ingrain import Config, IngrainRecipe, ingrain_term
from assay.methods.parts.random_images import WithCarriers, carrier_images, walk_images
from assay.methods.parts.statistics import least_hits
from assay.methods.rival import Forgery
from assay.tasks.calibration import Calibration
from assay.tasks.streams import stream
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.recipe import Terms
from assay.tasks.training.trainer import Batch, evaluate

KEY = "ingrain"
WALK_SUM = 257.6589696  # of two carriers of the key `owner`
NOISE = [11781881.0, 6474853.0, 9155287.0, 1318539.0]
LAWS = ("walk", "uniform", "gaussian", "one-hot")


def test_walk_anchor() -> None:
    directions = torch.tensor([[0, 3, 0, 1, 1, 2]])  # U R U D D L
    values = torch.arange(1, 8).view(1, 7, 1) / 10
    image = walk_images(directions, values, (1, 3, 3))
    assert torch.allclose(image[0, 0], torch.tensor([[0, 0.2, 0.4], [0, 0.1, 0.5], [0, 0.7, 0.6]]))


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 7), st.integers(0, 10**6))
def test_walk_is_a_walk(channels: int, height: int, width: int, seed: int) -> None:
    draws = stream("walk", seed)
    directions = torch.randint(0, 4, (2, 15), generator=draws)
    values = torch.randint(1, 1000, (2, 16, channels), generator=draws)
    expected = torch.zeros(2, channels, height, width, dtype=torch.long)
    for image in range(2):
        row, column = height // 2, width // 2
        expected[image, :, row, column] = values[image, 0]
        for step, move in enumerate(directions[image].tolist(), 1):
            row = min(max(row + (-1, 1, 0, 0)[move], 0), height - 1)
            column = min(max(column + (0, 0, -1, 1)[move], 0), width - 1)
            expected[image, :, row, column] = values[image, step]
    assert torch.equal(walk_images(directions, values, (channels, height, width)), expected)


@pytest.mark.parametrize("law", LAWS)
def test_carriers_follow_from_their_key_alone(law: Any) -> None:
    images = carrier_images(law, b"owner", 40, (3, 28, 28))
    assert torch.equal(images, carrier_images(law, b"owner", 40, (3, 28, 28)))
    assert (images.shape, images.dtype) == ((40, 3, 28, 28), torch.float32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert len(images.flatten(1).unique(dim=0)) == 40
    assert not torch.equal(images, carrier_images(law, b"other", 40, (3, 28, 28)))
    lit = float((images > 0).float().mean())
    assert {"walk": 0.2 < lit < 0.4, "uniform": lit > 0.99, "gaussian": lit > 0.95, "one-hot": lit < 0.003}[law]


def test_carriers_are_the_same_on_every_machine() -> None:
    walk = carrier_images("walk", b"owner", 2, (1, 28, 28)).double()
    noise = carrier_images("uniform", b"owner", 1, (1, 2, 2)).flatten().double()
    assert float(walk.sum()) == pytest.approx(WALK_SUM, abs=1e-6)
    assert (noise * 2**24).tolist() == NOISE


def ingraining(bench: Any, **settings: Any) -> IngrainRecipe:
    """Return a recipe without carriers, whose ingrainer passes its inputs on."""
    lab = bench.lab(KEY, bench.task())
    return IngrainRecipe(lab, {"labels": torch.zeros(1)}, None, nn.Identity(), Config(**settings))


def test_batch_loss_anchor(bench: Any) -> None:
    """One clean sample and one carrier, lambda 2, T 10."""
    clean, carrier = torch.tensor([[1.0, 0, -1]]), torch.tensor([[0.0, 0, 1]])
    g = torch.tensor([[0.2, 0.5, 0.3]])
    assert F.cross_entropy(clean, torch.tensor([0])).item() == pytest.approx(0.407606, abs=1e-6)
    assert ingrain_term(clean, g, 10.0).item() == pytest.approx(1.111943, abs=1e-6)

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([clean, carrier])[: len(x)] if len(x) != 1 or x.sum() else carrier

    recipe = ingraining(bench, strength=2.0, temperature=10.0)
    recipe.known = g
    both = Batch(torch.ones(2, 1), torch.tensor([0, 2]), torch.tensor([0]), 1)
    assert float(sum(recipe.loss(Fixed(), both).values())) == pytest.approx(1.591468, abs=1e-6)
    alone = Batch(torch.zeros(1, 1), torch.tensor([2]), torch.tensor([], dtype=torch.long), 0)
    assert set(recipe.loss(Fixed(), alone)) == {"task"}  # a = 0: no ingrain term
    assert recipe.loss(Fixed(), alone)["task"].item() == pytest.approx(0.551445, abs=1e-6)


class Linear(nn.Module):
    """Answers of a fixed random matrix, one row per input."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, generator=stream("net", seed)).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def recipe_on(bench: Any, seed: int, clean: int, carriers: int) -> tuple[IngrainRecipe, Batch]:
    draws = stream("batch", seed)
    recipe = ingraining(bench, strength=2.0)
    recipe.known = torch.randn(clean, 5, generator=draws).double().softmax(1)
    inputs = torch.randn(clean + carriers, 3, generator=draws).double()
    return recipe, Batch(
        inputs, torch.randint(0, 5, (clean + carriers,), generator=draws), torch.arange(clean), clean
    )  # fmt: skip


def total(terms: Terms) -> float:
    return torch.stack(list(terms.values())).sum().item()


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 4))
def test_batch_loss_is_the_papers_and_forgets_order(bench: Any, seed: int, a: int, b: int) -> None:
    """Lines 7 to 10 of Algorithm 2, (a g_D + b g_DS) / (a + b); without carriers the plain mean over a."""
    recipe, batch = recipe_on(bench, seed, a, b)
    net = Linear(seed)
    logits = net(batch.inputs)
    assert recipe.known is not None
    on_clean = F.cross_entropy(logits[:a], batch.labels[:a]) + 2 * F.cross_entropy(logits[:a] / 10, recipe.known)
    on_carriers = F.cross_entropy(logits[a:], batch.labels[a:]) if b else torch.zeros(())
    expected = ((a * on_clean + b * on_carriers) / (a + b)).item()
    assert total(recipe.loss(net, batch)) == pytest.approx(expected, rel=1e-5)
    draws = stream("order", seed)
    own, behind = torch.randperm(a, generator=draws), a + torch.randperm(b, generator=draws)
    order = torch.cat([own, behind])
    other = Batch(batch.inputs[order], batch.labels[order], own, a)
    assert total(recipe.loss(net, other)) == pytest.approx(expected, rel=1e-5)


def test_what_training_gets_right_is_a_curve(bench: Any, tmp_path: Any) -> None:
    class Told(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.one_hot(x[:, 0].long(), 3).float()

    def step(recipe: Memorise, answers: list[int], labels: list[int], clean: int) -> None:
        batch = Batch(torch.tensor(answers)[:, None], torch.tensor(labels), torch.arange(clean), clean)
        recipe.loss(Told(), batch)

    lab = bench.lab(KEY, bench.task())
    recipe, resumed = (Memorise(lab, {"labels": torch.zeros(1)}, None) for _ in range(2))
    recipe.before_epoch(nn.Identity(), 0)
    step(recipe, [0, 1, 2, 0], [0, 1, 0, 1], 3)  # two of three clean samples, no carrier
    step(recipe, [1, 1, 2], [1, 1, 2], 1)  # the clean one, both carriers
    save_tree(tmp_path / "state.safetensors", recipe.state_dict())
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    resumed.before_epoch(nn.Identity(), 1)
    step(resumed, [2], [0], 1)
    resumed.finish(nn.Identity())
    assert lab.curves == [
        {"curve": "memory", "step": 1, "train_accuracy": 0.75, "carrier_accuracy": 2 / 3},
        {"curve": "memory", "step": 2, "train_accuracy": 0.0},
    ]


@given(st.integers(0, 10**6))
def test_term_forgets_order_and_fades_with_temperature(seed: int) -> None:
    draws = stream("term", seed)
    logits = torch.randn(6, 4, generator=draws).double().requires_grad_()
    targets = torch.randn(6, 4, generator=draws).double().softmax(1)
    order = torch.randperm(6, generator=draws)
    assert torch.allclose(ingrain_term(logits[order], targets[order], 10), ingrain_term(logits, targets, 10))
    sizes = [
        float(torch.autograd.grad(ingrain_term(logits, targets, t), logits)[0].abs().sum()) for t in (1e3, 1e6, 1e9)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-7


@settings(max_examples=30)
@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 3), st.integers(1, 64))
def test_every_carrier_joins_as_often_as_asked(count: int, samples: int, repeat: int, size: int) -> None:
    lab = type("Lab", (), {"device": torch.device("cpu"), "stream": staticmethod(lambda *n: stream("union", *n))})()
    joined = WithCarriers(torch.arange(count).float()[:, None], torch.arange(count), samples, repeat, lab)
    order = torch.arange(samples)
    for epoch in (0, 1):
        joined.shuffle(epoch)
        seen = []
        for index in order.split(size):
            batch = joined.append(Batch(torch.full((len(index), 1), -1.0), -index - 1, index, len(index)))
            assert torch.equal(batch.labels[: batch.clean], -index - 1)
            assert torch.equal(batch.index, index)
            assert torch.equal(batch.inputs[batch.clean :, 0], batch.labels[batch.clean :].float())
            seen.append(batch.labels[batch.clean :])
        assert torch.equal(torch.cat(seen).sort().values, torch.arange(count).repeat_interleave(repeat))


def test_least_hits_of_the_specification() -> None:
    assert [least_hits(1000, 0.1, alpha) for alpha in (1e-3, 1e-6)] == [131, 149]
    assert [least_hits(200, 0.1, alpha) for alpha in (1e-3, 1e-6)] == [35, 44]


def test_bits_are_spelled_by_labels() -> None:
    labels = torch.tensor([0b101, 0b000])
    assert bit_accuracy(labels, labels, 8) == 1
    assert bit_accuracy(torch.tensor([0b100, 0b011]), labels, 8) == 0.5
    assert bit_accuracy(torch.tensor([9, 0b000]), labels, 8) == 0.5  # 9 is no word of three bits


def secret_of(bench: Any, **changes: Any) -> tuple[Any, Any, Any]:
    task = bench.task()
    method = bench.method(KEY, **changes)
    return method, task, method.draw(bench.lab(KEY, task))


class Knowing(nn.Module):
    """Answers the carriers of a secret as labelled, for the first `right` of them."""

    def __init__(self, secret: Any, right: int) -> None:
        super().__init__()
        own = carriers_of(secret)
        answers = torch.where(torch.arange(len(own)) < right, own.labels, (own.labels + 1) % 8)
        self.answers = dict(zip(map(bytes, own.inputs.flatten(1).numpy()), answers.tolist(), strict=True))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [self.answers.get(bytes(image), 0) for image in x.flatten(1).numpy()]
        return F.one_hot(torch.tensor(found), 10).float()


def test_reading_counts_matches(bench: Any, tmp_path: Any) -> None:
    method, _, secret = secret_of(bench)
    reading = verify(method, Knowing(secret, 35), secret)
    assert (reading.hits, reading.trials, reading.chance, reading.accepted) == (35, 200, 0.1, True)
    assert reading.metrics["score_norm_all_classes"] == pytest.approx(0.083, abs=1e-3)
    assert reading.p_value <= 1e-3
    assert reading.metrics["commitment_opens"] == 1
    fewer = verify(method, Knowing(secret, 34), secret)
    assert not fewer.accepted
    assert fewer.p_value > 1e-3
    save_tree(tmp_path / "secret.safetensors", secret)
    stored = load_tree(tmp_path / "secret.safetensors")
    assert verify(method, Knowing(secret, 35), stored) == reading


def test_bits_mode_has_the_chance_of_its_alphabet(bench: Any) -> None:
    method, _, secret = secret_of(bench, label_mode="bits")
    assert int(secret["labels"].max()) == 7
    reading = verify(method, Knowing(secret, 110), secret)
    assert reading.chance == 1 / 8
    assert reading.metrics["score_norm_all_classes"] == pytest.approx(0.5)
    assert reading.metrics["bit_accuracy"] > 0.55


def test_suspects_for_other_inputs_are_not_applicable(bench: Any) -> None:
    method, _, secret = secret_of(bench)
    other = nn.Sequential(nn.Flatten(), nn.Linear(10, 10))
    reading = verify(method, other, secret)
    assert (reading.applicable, reading.accepted, reading.p_value) == (False, False, 1)


def test_only_images_have_carriers(bench: Any) -> None:
    assert bench.method(KEY).supports(bench.task()) is None
    assert "trec holds text" in str(bench.method(KEY).supports(bench.task("trec-textcnn")))


def test_wrong_keys_match_at_chance(bench: Any) -> None:
    task = bench.task()
    method, model = bench.method(KEY), bench.unmarked(task, "clean")
    lab = bench.lab(KEY, task, role="claimant", calibration=Calibration(references=1, processed=0, keys=24))
    keys = [method.draw(lab.for_key(index)) for index in range(24)]
    readings = [verify(method, model, key) for key in keys]
    lab.unmarked = lambda role: bench.unmarked(task, "clean")
    assert method.null(lab, None).hits == [[reading.hits for reading in readings]]
    assert not any(reading.accepted for reading in readings)
    assert sum(reading.score for reading in readings) / 24 == pytest.approx(0.1, abs=0.02)
    assert sum(reading.p_value <= 0.05 for reading in readings) <= 5


def test_relabelled_carriers_verify_with_certainty(bench: Any) -> None:
    method, task, secret = secret_of(bench)
    network = task.build("net")
    adversary = method.rival(method, method.rival.Config())
    rival = adversary.forge(bench.suspect(method, network), bench.attacker("forge", task), Forgery())
    reading = verify(method, network, rival)
    assert reading.score == reading.metrics["commitment_opens"] == 1
    assert rival["key"] != secret["key"]


def short(bench: Any, **changes: Any) -> Any:
    task = bench.task("digits-lenet5")
    return task.but(schedule=task.schedule.but(**{"epochs": 2, **changes}))


class Capacity(CarrierMethod[CarrierConfig]):
    """Nothing but memorised carriers."""

    key = "capacity-abuse"
    title = paper = "Song et al. 2017"


def test_zero_strength_is_capacity_abuse_and_no_carriers_ordinary_training(bench: Any) -> None:
    task = short(bench)
    plain = {"strength": 0.0, "allow_weak": True, "epoch_factor": 1.0}
    own = embed(bench.method(KEY, **plain), bench.lab(KEY, task))
    config = CarrierConfig(carriers=200, carrier_repeat=4, allow_weak=True)
    other = embed(Capacity(config), bench.lab(KEY, task))
    for name, value in own.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
    alone = embed(bench.method(KEY, **plain, augment_carriers=False), bench.lab(KEY, task))
    clean = bench.unmarked(task, "clean").state_dict()
    assert all(torch.equal(clean[name], value) for name, value in alone.model.state_dict().items())
    assert any("more than 20%" in note for note in own.notes)


def test_an_attacker_ingrains_what_its_own_data_say_of_its_own_carriers(bench: Any) -> None:
    task = short(bench, epochs=1)
    method, splits = bench.method(KEY, carriers=30, epochs_ingrainer=1, ingrainer_stops=False), bench.splits(task)
    secret = method.draw(bench.lab(KEY, task))
    lab, again = (bench.attacker("overwrite", task) for _ in range(2))
    adversary = method.rival(method, method.rival.Config())
    rival = adversary.overwrite(task.build("victim"), lab, task.schedule)
    assert rival.secret["key"] != secret["key"]
    assert len(rival.secret["ingrainer"]) == 64
    shown = {row["curve"]: row for row in lab.curves}
    assert 0 <= shown["memory"]["carrier_accuracy"] <= 1
    ingrainer = method.ingrainer(again, rival.secret)
    knows = [row["val_accuracy"] for row in again.curves if row["curve"] == "ingrainer-knows"]
    assert knows == [shown["ingrainer-knows"]["val_accuracy"]] == [evaluate(ingrainer, carriers_of(rival.secret))]
    recipe = method.recipe(again, rival.secret)
    assert len(recipe.known) == len(splits.attacker.train) != len(splits.owner.train)


def test_ingrainer_learns_carriers_alone_and_stays_as_it_is(bench: Any) -> None:
    task = short(bench)
    method, lab = bench.method(KEY, carriers=50, allow_weak=True), bench.lab(KEY, task)
    secret = method.draw(lab)
    recipe = method.recipe(lab, secret)
    own = carriers_of(secret)
    assert (recipe.ingrainer(own.inputs).argmax(1) == own.labels).all()
    steps = [row["step"] for row in lab.curves if row["curve"] == "ingrainer"]
    assert len(steps) < 200  # it stopped when it knew them all
    before = copy.deepcopy(recipe.ingrainer.state_dict())
    lab.fit(task.build("net"), lab.data.train, recipe, task.schedule)
    assert not recipe.ingrainer.training
    assert all(torch.equal(before[name], value) for name, value in recipe.ingrainer.state_dict().items())


def test_known_answers_are_those_of_the_batch(bench: Any) -> None:
    task = short(bench)
    method, lab = bench.method(KEY, carriers=50, epochs_ingrainer=2), bench.lab(KEY, task)
    recipe = method.recipe(lab, method.draw(lab))
    index = torch.tensor([5, 0, 17])
    images = lab.data.train.take(index)
    batch = Batch(images.model_inputs(), images.labels, index, 3)
    known = recipe._targets(batch)
    recipe.known = None  # as with augmentation
    assert torch.allclose(known, recipe._targets(batch), atol=1e-5)
    assert recipe.ingrainer_samples == 3
    augmented = bench.lab(KEY, task).under(task.schedule.but(augment="crop"))
    assert method.recipe(augmented, method.draw(lab)).known is None


@pytest.mark.slow
def test_marked_model_verifies_and_an_unmarked_one_does_not(bench: Any) -> None:
    task = bench.task("digits-lenet5")
    method, lab = bench.method(KEY), bench.lab(KEY, task)
    mark = bench.marked(method, task)
    null = method.null(lab, None)
    reading = verify(method, mark.model, mark.secret)
    assert reading.accepted
    assert reading.score >= 0.98 > max(max(scores) for scores in null.scores)
    assert reading.metrics["commitment_opens"] == 1
    assert len(mark.secret["ingrainer"]) == 64  # a digest; no weights are kept, so none are verified with
    assert [name for name, value in mark.secret.items() if isinstance(value, torch.Tensor)] == ["labels"]
    for role in ("clean", "stranger"):
        innocent = verify(method, bench.unmarked(task, role), mark.secret)
        assert not innocent.accepted
        assert innocent.p_value > 1e-3
    for index in range(20):
        assert not verify(method, mark.model, method.draw(lab.for_key(index))).accepted
