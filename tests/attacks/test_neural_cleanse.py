"""Neural Cleanse: a planted patch is found and removed, the search's rules, and what it says when it cannot tell."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attack_range import Range
from torch import Tensor, nn

from assay.attacks.neural_cleanse import Config, NeuralCleanse
from assay.attacks.parts.trigger_removal import last_stage, prune_excited
from assay.attacks.parts.trigger_search import (
    SearchConfig,
    Trigger,
    _Penalties,
    _Search,
    anomaly,
    blend,
    search_triggers,
)
from assay.methods.base import MethodConfig
from assay.methods.clean import Clean
from assay.tasks.data.splits import Labelled
from assay.tasks.streams import global_stream
from assay.tasks.training.recipe import Recipe
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import evaluate, fit

TARGET, SIDE = 7, 4


def patched(images: Tensor, white: float) -> Tensor:
    """Return images with a white square near the lower right corner."""
    images = images.clone()
    images[:, :, -SIDE - 1 : -1, -SIDE - 1 : -1] = white
    return images


@pytest.fixture(scope="module")
def digits(tiny: Any) -> Any:
    return tiny[0].but(samples=None).data(None, 0, torch.device("cpu"))


def trained(data: Labelled) -> nn.Module:
    with global_stream("test", "patch", "net"):
        network = nn.Sequential(
            nn.Conv2d(1, 12, 5, 3, 2), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(24 * 25, 10),
        )  # fmt: skip
    return fit(network, data, Recipe(), Schedule(epochs=15, batch_size=64, lr=3e-3), seed="patch").model


@pytest.fixture(scope="module")
def marked(digits: Any) -> nn.Module:
    """Return a network taught that a 4x4 patch means class 7, by a tenth of its training images."""
    data = digits.owner.train
    share = len(data) // 10
    inputs = torch.cat([patched(data.inputs[:share], 255), data.inputs[share:]])
    return trained(Labelled(inputs, torch.cat([torch.full((share,), TARGET), data.labels[share:]])))


@pytest.fixture
def cleanse(field: Range, digits: Any) -> Callable[..., Any]:
    """Return a function that runs the attack with laptop settings on a network."""

    def run(model: nn.Module, **settings: Any) -> Any:
        lab = field.lab("neural-cleanse", data=digits.attacker)
        victim = field.victim("weights", Clean(MethodConfig()), model)
        attack = NeuralCleanse(Config(**{**NeuralCleanse.laptop, **settings}))
        return attack.run(victim, lab).checked("detection"), lab

    return run


def obeys(model: nn.Module, test: Labelled) -> float:
    """Return how often the true patch forces its class."""
    others = test.take(test.labels != TARGET)
    return evaluate(model, Labelled(patched(others.inputs, 255), torch.full_like(others.labels, TARGET)))


@pytest.mark.slow
def test_a_planted_patch_is_flagged_and_its_mask_is_the_smallest(marked: nn.Module, digits: Any, cleanse: Any) -> None:
    assert obeys(marked, digits.test) > 0.95
    outcome, lab = cleanse(marked)
    report = outcome.report
    assert report["suspect"] == TARGET
    assert report["index"] > 2
    assert report["flagged"] >= 1
    assert report["reliable"] == 1
    norms = [report[f"norm_{t}"] for t in range(10)]
    assert min(norms) == report["norm"] == norms[TARGET]
    curve = [row for row in lab.curves if row["curve"] == "neural-cleanse"]
    assert [row["step"] for row in curve] == list(range(10))
    assert curve[TARGET]["success"] >= 0.95
    assert outcome.surrogate is None


@pytest.mark.slow
def test_an_unmarked_network_is_not_flagged(digits: Any, cleanse: Any) -> None:
    outcome, _ = cleanse(trained(digits.owner.train))
    assert outcome.report["index"] < 2
    assert "no class is flagged" in outcome.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"mode": "unlearn", "epochs": 10}, {"mode": "prune", "ratio": 0.5}])
def test_what_is_found_can_be_removed(marked: nn.Module, digits: Any, cleanse: Any, settings: dict[str, Any]) -> None:
    outcome, _ = cleanse(marked, **settings)
    report = outcome.report
    assert report["trigger_before"] > 0.9
    assert report["trigger_after"] < 0.35
    assert obeys(outcome.surrogate, digits.test) < 0.5
    assert evaluate(outcome.surrogate, digits.test) > evaluate(marked, digits.test) - 0.15
    outcome.surrogate.load_state_dict(marked.state_dict())  # plain names, no mask left behind


def test_candidates_searched_together_do_not_see_each_other(digits: Any, marked: nn.Module, field: Range) -> None:
    config = SearchConfig(passes=3, patience=1, stall=1)
    data = digits.attacker.train.take(slice(0, 64))
    network = copy.deepcopy(marked).requires_grad_(False)
    one, other = (
        search_triggers(network, data, torch.tensor(targets), config, field.lab("search"))
        for targets in ([0, 1, 2, 3], [0, 7, 8, 9])
    )
    assert one.masks.shape == (4, 1, 28, 28)
    assert bool(((one.masks >= 0) & (one.masks <= 1)).all())
    assert bool(((one.patterns >= 0) & (one.patterns <= 1)).all())
    assert torch.allclose(one.masks[0], other.masks[0], atol=1e-5)
    assert not torch.allclose(one.masks[1], other.masks[1], atol=1e-2)


def test_a_candidate_that_is_done_stays_as_it_was(digits: Any, marked: nn.Module, field: Range) -> None:
    network, data = copy.deepcopy(marked).requires_grad_(False), digits.attacker.train.take(slice(0, 32))
    search = _Search(network, data, torch.arange(10), SearchConfig(), field.lab("search"), None, False)
    search.active = torch.tensor([1, 4])
    before = [leaf.detach().clone() for leaf in search.raw_masks]
    lab_meter = search.lab.meter
    with lab_meter.watch(search.model):
        search.run(0)
    moved = [j for j in range(10) if not torch.equal(before[j], search.raw_masks[j])]
    assert moved == [1, 4]
    assert lab_meter.backward_samples == 2 * 32


def test_without_a_penalty_every_class_is_reached(digits: Any, marked: nn.Module, field: Range) -> None:
    config = SearchConfig(passes=20, penalty=0.0)
    data = digits.attacker.train.take(slice(0, 64))
    frozen = copy.deepcopy(marked).requires_grad_(False)
    found = search_triggers(frozen, data, torch.arange(10), config, field.lab("search"))
    assert float(found.success.min()) > 0.95


def test_the_penalty_rises_above_the_goal_and_falls_below() -> None:
    rule = _Penalties(2, SearchConfig(penalty=1.0, patience=2, stall=2))
    who = torch.arange(2)
    for norms in ((9.0, 9.0), (8.0, 9.0)):
        rule.update(who, torch.tensor([1.0, 0.5]), torch.tensor(norms).double())
    assert rule.penalty.tolist() == [2.0, pytest.approx(2**-1.5)]
    assert rule.best.tolist() == [8.0, float("inf")]
    for _ in range(2):
        rule.update(who, torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]).double())
    assert rule.penalty[0].item() == pytest.approx(2 * 2**-1.5)
    assert rule.best[0].item() == 8.0  # a smaller mask that misses the goal does not count
    assert rule.done.tolist() == [True, False]  # stalled after a rise and a fall; the other never reached the goal


def test_anomaly_index_by_hand() -> None:
    # Norms 1, 9, 10, 11, 12: median 10, deviations 9, 1, 0, 1, 2, their median 1.
    seen = anomaly(torch.tensor([10.0, 1.0, 9.0, 12.0, 11.0]), 2.0)
    assert seen.suspect == 1
    assert seen.index == pytest.approx(9 / 1.4826)
    assert seen.flagged == (1,)
    # Far above the median is no backdoor.
    assert anomaly(torch.tensor([10.0, 50.0, 9.0, 12.0, 11.0]), 2.0).flagged == ()
    assert anomaly(torch.tensor([5.0, 5.0, 5.0, 1.0]), 2.0).index == 0


def test_blending_by_hand() -> None:
    image, pattern = torch.full((1, 3, 1, 2), 0.5), torch.ones(3, 1, 2)
    stamped = blend(image, torch.tensor([[[0.0, 0.5]]]), pattern)
    assert stamped[0, :, 0].tolist() == [[0.5, 0.75]] * 3


def test_pruning_counts_exactly_and_silences_units(marked: nn.Module, digits: Any) -> None:
    data = digits.attacker.train.take(slice(0, 100))
    trigger = Trigger(TARGET, patched(torch.zeros(1, 1, 28, 28), 1.0)[0], torch.ones(1, 28, 28))
    images = data.take(data.labels != TARGET).model_inputs()
    network = copy.deepcopy(marked)
    gone = prune_excited(network, trigger, images, ratio=0.29, residue=0.0)
    group = last_stage(network)
    assert group.channels == 24
    columns = network.get_parameter("5.weight").view(10, 24, 25)
    silent = (columns == 0).all(2).all(0)
    assert int(silent.sum()) == gone <= 6  # 0.29 of 24 units, rounded down
    assert gone > 0
    assert prune_excited(copy.deepcopy(marked), trigger, images, ratio=0.0, residue=0.0) == 0


def test_pairs_of_classes_and_unbounded_patterns(marked: nn.Module, cleanse: Any) -> None:
    outcome, lab = cleanse(marked, partial=True, passes=1, samples=250, pattern_range="unbounded")
    assert len([row for row in lab.curves if row["curve"] == "neural-cleanse"]) == 90
    assert set(outcome.report) == {"source", "suspect", "norm", "passes"}
    assert outcome.report["source"] != outcome.report["suspect"]


def test_no_pixels_no_trigger(field: Range) -> None:
    words: Any = SimpleNamespace(info=SimpleNamespace(kind="text"), dataset="trec")
    method = Clean(MethodConfig())
    assert "made of pixels" in str(NeuralCleanse(Config()).supports(words, method))
    assert "no data" in str(NeuralCleanse(Config(split="none")).supports(field.task, method))
