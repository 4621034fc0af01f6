"""What both function-coupled marks share: classes, target check, secret, verification, the attacker's counterparts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import nn

from assay.methods.embedding import Mark, embed, implant, verify
from assay.methods.families.coupled_rival import CoupledRival, CoupledRivalConfig
from assay.methods.families.function_coupled import CoupledConfig
from assay.methods.parts.class_pairs import Rule, choose_sources, choose_target, pairs
from assay.methods.parts.masking import CoupledRecipe
from assay.methods.parts.signature import opens
from assay.methods.rival import Forgery
from assay.methods.suspect import Suspect
from assay.tasks.calibration import Calibration
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import CapacityError, NotEmbedded
from assay.tasks.streams import stream
from assay.tasks.training.trainer import evaluate, predict

KEYS = ("fcw-direct", "fcw-invisible")
TASK = "digits-lenet5"


class Parrot(nn.Module):
    """Answers known images as told and all others with one class."""

    def __init__(self, images: torch.Tensor, answers: torch.Tensor, other: int) -> None:
        super().__init__()
        self.images, self.answers, self.other = images.flatten(1), answers, other
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = torch.cdist(x.flatten(1), self.images, compute_mode="donot_use_mm_for_euclid_dist")
        distance, nearest = apart.min(1)
        label = torch.where(distance < 1e-3, self.answers[nearest], self.other)
        return nn.functional.one_hot(label, 10).float()


def parrot(secret: dict[str, Any], hits: int, plain: str = "right", controls: int = 0) -> Parrot:
    """Return a suspect that gives the target to so many triggers and controls, 7 to the rest."""
    target, count = secret["target"], len(secret["labels"])
    told = torch.full((count,), 7)
    told[:hits] = target
    others = torch.full((len(secret["control_inputs"]),), 7)
    others[:controls] = target
    known = secret["source_labels"] if plain == "right" else torch.full_like(secret["source_labels"], target)
    images = torch.cat([secret["inputs"], secret["control_inputs"], secret["source_inputs"].float() / 255])
    return Parrot(images, torch.cat([told, others, known]), 7)


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def method_of(bench: Any, key: str, **changes: Any) -> Any:
    """Return the method with two references unless changed."""
    return bench.method(key, **{"references": 2, **changes})


def drawn(bench: Any, key: str, seed: int = 0, role: str = "owner", **changes: Any) -> dict[str, Any]:
    lab = bench.lab(key, bench.task(TASK), seed, role=role)
    secret: dict[str, Any] = method_of(bench, key, **changes).draw(lab)
    return secret


# --- classes and pairs ----------------------------------------------------------------------------------------------


def test_controls_are_other_pairs() -> None:
    for first, second, count in ((40, 50, 90), (3, 3, 5)):
        left, right = pairs(first, second, count, stream("pairs", first))
        code = left * second + right
        assert len(code) <= 2 * count
        assert not torch.isin(code[count:], code[:count]).any()
        assert int(left.max()) < first
        assert int(right.max()) < second
    assert len(pairs(40, 50, 90, stream("pairs"))[0]) == 180
    assert len(pairs(1, 1, 5, stream("pairs"))[0]) == 5


def test_drawn_classes_are_distinct_and_cover_all(bench: Any) -> None:
    task = bench.task(TASK)
    train = bench.splits(task).owner.train
    seen = set()
    for seed in range(60):
        sources, targets = choose_sources(Rule(barred=1), train, task, stream("classes", seed))
        assert sorted((*sources, *targets)) == [label for label in range(10) if label != 1 or label in sources]
        seen |= {*sources, targets[0] + 10}
    assert seen == {*range(10), *(label + 10 for label in range(10) if label != 1)}
    fixed = [choose_sources(Rule((0, 3), 1), train, task, stream("classes", seed)) for seed in range(3)]
    assert fixed == [((0, 3), [1])] * 3


def test_classes_without_two_images_are_no_sources(bench: Any) -> None:
    task = bench.task(TASK)
    few = Labelled(torch.zeros(5, 1, 28, 28), torch.tensor([4, 4, 6, 6, 0]))
    assert {*choose_sources(Rule(), few, task, stream("few"))[0]} == {4, 6}
    with pytest.raises(CapacityError, match=r"\[0, 3\] need two training images"):
        choose_sources(Rule((0, 3), 1), few, task, stream("few"))


def test_target_that_unmarked_models_give_is_passed_over() -> None:
    answers = [[0, 5, 9, 85], [0, 9, 10, 80]]
    assert choose_target([3, 2, 1], answers, 9.0) == 1
    assert choose_target([3, 2], answers, 10.0) == 2
    assert choose_target([3, 2], answers, 1.0) == 2  # none passes: the least given
    assert choose_target([3, 2], [], 9.0) == 3


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (CoupledConfig, {"sources": [0, 0]}),
        (CoupledConfig, {"target": 3}),
        (CoupledConfig, {"sources": [-1, 2]}),
        (CoupledRivalConfig, {"target": 2}),
        (CoupledRivalConfig, {"sources": [6, 6]}),
    ],
)
def test_classes_that_coincide_are_refused(config: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be different classes"):
        config(**changes)


def test_supports_names_the_reason(bench: Any, key: str) -> None:
    class Text:
        dataset, classes = "trec", 6
        info = type("Info", (), {"kind": "text"})

    class Few:
        dataset, classes = "coins", 2
        info = type("Info", (), {"kind": "image"})

    method = bench.method(key)
    assert method.supports(bench.task()) is None
    assert "trec holds text" in method.supports(Text())
    assert "need 3 classes; coins has 2" in method.supports(Few())
    assert "class 12 is none of 10" in bench.method(key, sources=[0, 12]).supports(bench.task())
    assert "class 10 is none of 10" in bench.method(key, target=10).supports(bench.task())


# --- the secret -----------------------------------------------------------------------------------------------------


def test_secret_holds_what_verification_needs(bench: Any, key: str) -> None:
    secret = drawn(bench, key)
    assert opens(secret)
    assert secret["inputs"].shape == secret["control_inputs"].shape == (90, 1, 28, 28)
    assert secret["labels"].tolist() == [1] * 90
    assert (secret["sources"], secret["target"]) == ([0, 3], 1)
    assert {*secret["source_labels"].tolist()} == {0, 3}
    distance = torch.cdist(secret["inputs"].flatten(1), secret["control_inputs"].flatten(1))
    assert float(distance.min()) > 1e-3
    other = drawn(bench, key, seed=1)
    assert not torch.equal(secret["inputs"], other["inputs"])


def test_null_rate_is_the_upper_bound_of_the_most_willing_reference(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    for target in (1, 8):
        secret = drawn(bench, key, target=target)
        nets = [bench.unmarked(task, f"reference-{i}") for i in range(2)]
        rates = [float((predict(net, secret["inputs"]).argmax(1) == target).double().mean()) for net in nets]
        assert secret["null_rates"] == pytest.approx(rates)
        most = round(90 * max(rates))
        bound = 1.0 if most == 90 else float(stats.beta.ppf(0.95, most + 1, 90 - most))
        assert secret["null_bound"] == pytest.approx(max(0.1, bound))


def test_drawn_target_passes_the_check(bench: Any, key: str) -> None:
    for seed in range(5):
        secret = drawn(bench, key, seed, sources=None, target=None)
        assert len({*secret["sources"], secret["target"]}) == 3
        assert max(secret["null_rates"]) <= 0.1


def test_fresh_keys_ask_for_another_class(bench: Any, key: str) -> None:
    lab, method = bench.lab(key, bench.task(TASK), role="claimant"), method_of(bench, key)
    fresh = [method.draw(lab.for_key(index)) for index in range(20)]
    assert all(secret["target"] != 1 for secret in fresh)
    assert len({(*secret["sources"], secret["target"]) for secret in fresh}) > 10
    assert all(len(secret["null_rates"]) == 2 for secret in fresh)  # checked as an owner's, on unmarked models


def test_an_attacker_asks_no_unmarked_models(bench: Any, key: str) -> None:
    secret = method_of(bench, key).draw(bench.attacker(key, bench.task(TASK)))
    assert secret["null_rates"] == []
    assert secret["null_bound"] == 0.1


def test_unmarked_models_of_embedding_are_the_methods_own_setting(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    needs = method_of(bench, key, references=3).needs(task)
    assert needs.unmarked == ("clean", "reference-0", "reference-1", "reference-2")
    assert needs.start == "scratch"
    assert bench.method(key).needs(task).unmarked[-1] == "reference-4"
    assert method_of(bench, key, start="clean").needs(task).start == "clean"


class Stubborn(nn.Module):
    """Answers one class whatever it is shown."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[self.label].expand(len(inputs), 10)


def test_a_calibration_model_has_no_say_in_the_targets_that_are_read_from_it(bench: Any, key: str) -> None:
    nets = {f"reference-{i}": Stubborn(label) for i, label in enumerate((2, 5, 7))}
    calibration = Calibration(references=3, processed=0, keys=40)
    lab = bench.lab(key, bench.task(TASK), unmarked=nets.__getitem__, calibration=calibration)
    null = bench.method(key).null(lab, None)
    assert null.models == list(nets)
    assert [len(row) for row in null.scores] == [40, 40, 40]
    assert null.scores[1] == [hits / null.trials for hits in null.hits[1]]
    for row in null.hits:
        # The two others check the targets; every eighth or so is the third one's answer to everything.
        assert set(row) == {0, null.trials}
        assert 1 <= sum(hits > 0 for hits in row) <= 15


# --- verification ---------------------------------------------------------------------------------------------------


def test_reading_counts_triggers_and_controls(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    # Pairs are drawn with replacement, and a parrot tells no two equal triggers apart.
    secret |= {"null_bound": 0.1, "inputs": torch.rand(90, 1, 28, 28, generator=stream("images"))}
    for hits, accepted in ((19, False), (21, True), (90, True)):
        reading = verify(method, parrot(secret, hits, controls=9), secret)
        assert (reading.hits, reading.trials, reading.accepted) == (hits, 90, accepted)
        assert reading.accepted == (reading.score >= reading.paper_threshold)
        assert reading.metrics["control_score"] == 0.1
        assert reading.metrics["first_source_accuracy"] == reading.metrics["second_source_accuracy"] == 1
        # Of the eight classes besides the sources only 1 and 7 are answered; 7 takes the rest.
        assert reading.metrics["p_exact"] == (0.125 if hits > 45 else 0.25)
    # T5's anchor: 40 of 90 at the rate 0.1.
    assert verify(method, parrot(secret, 40), secret).p_value == pytest.approx(3.5655e-17, rel=1e-4)


def test_who_takes_plain_images_for_the_target_is_not_marked(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    reading = verify(method, parrot(secret, 90, plain="target", controls=90), secret)
    assert (reading.score, reading.p_value, reading.accepted) == (1, 1, False)


def test_control_triggers_tell_memory_from_a_rule(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    learned = verify(method, parrot(secret, 90, controls=90), secret)
    memorised = verify(method, parrot(secret, 90), secret)
    assert learned.metrics["p_control"] == 1
    assert memorised.metrics["p_control"] < 1e-10


def test_suspects_that_cannot_answer_are_not_applicable(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))
    more = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 20))
    nn.init.constant_(more.get_parameter("1.bias")[10:], 1e3)
    for model in (wide, more):
        assert not verify(method, model, secret).applicable


def test_only_some_triggers_are_asked(bench: Any, key: str) -> None:
    method, secret = bench.method(key, n_triggers=120), drawn(bench, key, n_triggers=120)
    secret |= {"inputs": torch.rand(120, 1, 28, 28, generator=stream("images"))}
    reading = verify(method, parrot(secret, 80), secret)
    assert (len(secret["labels"]), reading.trials, reading.hits) == (120, 90, 80)


# --- embedding ------------------------------------------------------------------------------------------------------


def test_recipe_follows_the_switches(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    lab, secret = bench.lab(key, task), drawn(bench, key)
    data = lab.data

    def recipe(**changes: Any) -> CoupledRecipe:
        made: CoupledRecipe = bench.method(key, **changes).recipe(lab, secret)
        return made

    own = recipe()
    assert (own.masks.drop, own.masks.every, own.masks.for_good, own.apart) == (0.1, 10, False, False)
    assert own.tuning is not None
    assert len(own.tuning.data) == min(1000, len(data.train))
    assert (own.tuning.rate, own.tuning.steps, own.masks.granularity) == (0.1, 1, "element")
    assert recipe(mask_granularity="kernel").masks.granularity == "kernel"
    assert recipe(ft_lr=0.01, ft_steps_per_epoch=3).tuning == replace(own.tuning, data=mock.ANY, rate=0.01, steps=3)
    assert recipe(masking=False).masks.drop == 0
    assert recipe(mask_every="epoch").masks.every is None
    assert recipe(ft_enhance=False).tuning is recipe(ft_steps_per_epoch=0).tuning is None
    released = recipe(variant="released", mask_drop=0.002)
    assert released.masks.for_good
    assert released.tuning is None
    few = recipe(ft_samples=30).tuning
    assert few is not None
    assert len(few.data) == len(few.data.inputs.flatten(1).unique(dim=0)) == 30
    continued = bench.method(key, start="clean", epochs_clean=7)
    assert continued.schedule(task) == task.schedule.but(epochs=7)
    assert bench.method(key).schedule(task) == task.schedule


def test_embedding_goes_on_from_the_clean_model_if_asked(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    method = method_of(bench, key, start="clean", epochs_clean=1, ft_lr=0.0, allow_weak=True)
    with mock.patch.object(type(method), "schedule", lambda self, task: task.schedule.but(epochs=0)):
        mark = embed(method, bench.lab(key, task))
    clean = bench.unmarked(task, "clean").state_dict()
    assert all(torch.equal(value, clean[name]) for name, value in mark.model.state_dict().items())


def test_how_often_triggers_are_shown_is_on_record(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    lab, secret = bench.lab(key, task), drawn(bench, key)
    data = lab.data
    bench.method(key, n_wm=6).recipe(lab, secret)
    (point,) = [point for point in lab.curves if point["curve"] == "triggers"]
    steps = len(data.train) // task.schedule.batch_size
    assert point["share"] == 90 / (len(data.train) + 90)
    assert point["seen_per_epoch"] == pytest.approx(steps * 6 / 90)


def test_fine_tuning_follows_the_schedule_of_the_run(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    own = task.schedule.but(lr=task.schedule.lr / 10, epochs=3)
    recipe = bench.method(key).recipe(bench.lab(key, task).under(own), drawn(bench, key))
    assert recipe.tuning.schedule == own


def test_batch_norm_is_refreshed_only_after_masks(bench: Any, key: str) -> None:
    task = bench.task("digits-cnn-mini")
    lab, secret = bench.lab(key, task), drawn(bench, key)

    def mean(**changes: Any) -> torch.Tensor:
        finished = bench.method(key, **changes).recipe(lab, secret).finish(bench.unmarked(task, "clean"))
        return finished.bn1.running_mean

    untouched = bench.unmarked(task, "clean").bn1.running_mean
    assert not torch.equal(mean(), untouched)
    assert torch.equal(mean(masking=False), untouched)
    assert torch.equal(mean(mask_drop=0.0), untouched)


@pytest.mark.slow
def test_mark_verifies_and_unmarked_models_do_not(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    method = method_of(bench, key)
    mark = bench.marked(method, task)
    null = method.null(bench.lab(key, task), None)
    reading = verify(method, mark.model, mark.secret)
    assert reading.accepted
    assert reading.score >= 0.98 > max(max(scores) for scores in null.scores)
    clean = bench.unmarked(task, "clean")
    test = bench.splits(task).test
    assert evaluate(mark.model, test) >= evaluate(clean, test) - 0.04
    for model in (clean, bench.unmarked(task, "stranger")):
        innocent = verify(method, model, mark.secret)
        assert not innocent.accepted
        assert innocent.p_value > 1e-3
    assert mark.model.state_dict().keys() == task.build("fresh").state_dict().keys()


def test_configured_target_that_unmarked_models_give_is_remarked(bench: Any, key: str) -> None:
    task = bench.task(TASK, epochs=0)
    secret = drawn(bench, key)
    method, lab = bench.method(key), bench.lab(key, task)
    for rates, notes in (
        ([0.0, 0.1], []),
        ([0.0, 0.5], ["unmarked models already answer up to 50% of triggers with 1"]),
    ):
        mark = implant(method, task.build("net"), {**secret, "null_rates": rates}, lab, task.schedule)
        assert mark.notes == notes


def test_untrained_model_misses_the_gate(bench: Any, key: str) -> None:
    task = bench.task("digits-cnn-mini", epochs=0)
    with pytest.raises(NotEmbedded, match="below the gate"):
        embed(method_of(bench, key), bench.lab(key, task))


# --- the attacker ---------------------------------------------------------------------------------------------------


def rival_of(method: Any, **settings: Any) -> CoupledRival:
    return CoupledRival(method, CoupledRivalConfig(**settings))


def overwriting(bench: Any, key: str, rate: float = 1e-3, rival: Any = None, **changes: Any) -> Mark:
    """Overwrite an unmarked network with settings of the method (`changes`) and of the rival."""
    task = bench.task(TASK)
    adversary = rival_of(bench.method(key, **changes), **(rival or {}))
    victim, lab = bench.unmarked(task, "clean"), bench.attacker("overwrite", task)
    return adversary.overwrite(victim, lab, task.schedule.but(epochs=1, lr=rate))


def test_all_of_an_overwriters_steps_are_at_its_own_rate(bench: Any, key: str) -> None:
    victim = bench.unmarked(bench.task(TASK), "clean").state_dict()
    mark = overwriting(bench, key, rate=0.0, ft_lr=100.0, ft_steps_per_epoch=3)
    assert all(torch.equal(weight, victim[name]) for name, weight in mark.model.state_dict().items())


def test_overwriter_takes_other_classes_and_its_own_images(bench: Any, key: str) -> None:
    rival = overwriting(bench, key).secret
    assert (rival["sources"], rival["target"]) == ([2, 4], 5)
    assert len(rival["null_rates"]) == 1  # the victim never saw these triggers
    assert opens(rival)
    free = overwriting(bench, key, rival={"sources": None, "target": None}).secret
    assert len({*free["sources"], free["target"]}) == 3
    beyond = overwriting(bench, key, rival={"target": 16}).secret
    assert beyond["target"] not in (1, 16)


def test_forged_labels_verify_until_the_commitment_is_dated(bench: Any, key: str) -> None:
    lab, method = bench.attacker("forge", bench.task(TASK)), bench.method(key)
    network = bench.unmarked(lab.task, "clean")
    rival = rival_of(method).forge(Suspect(network, "weights", key), lab, Forgery())
    reading = verify(method, network, rival)
    assert reading.score == 1
    assert reading.accepted
    assert reading.metrics["commitment_opens"] == 1
    assert reading.metrics["p_exact"] >= 0.1  # one of the classes, whatever the forger calls its target
    assert rival["target"] == int(rival["labels"].mode().values)
    assert verify(method, network, method.draw(lab)).score < 1
