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

from assay.methods.base import Mark
from assay.methods.families.function_coupled import CoupledConfig, CoupledMethod
from assay.methods.parts.class_pairs import Rule, choose_sources, choose_target, pairs
from assay.methods.parts.masking import CoupledRecipe
from assay.methods.parts.signature import opens
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Labelled, Party
from assay.tasks.errors import CapacityError, NotEmbedded
from assay.tasks.lab import Lab
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


def drawn(bench: Any, key: str, seed: int = 0, mode: str = "owner", **changes: Any) -> dict[str, Any]:
    task = bench.task(TASK)
    data = bench.splits(task).owner if mode == "owner" else bench.splits(task).attacker
    secret: dict[str, Any] = bench.method(key, **changes).draw(task, data, bench.lab(key, task, seed))
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


@pytest.mark.parametrize("changes", [{"sources": [0, 0]}, {"target": 3}, {"rival_target": 2}, {"sources": [-1, 2]}])
def test_classes_that_coincide_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be different classes"):
        CoupledConfig(**changes)


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
    task = bench.task(TASK)
    lab = bench.lab(key, task)
    null = bench.method(key).null_keys(task, bench.splits(task).owner, {}, lab)
    assert len(null) == 20
    assert all(secret["target"] != 1 for secret in null)
    assert len({(*secret["sources"], secret["target"]) for secret in null}) > 10


class Stubborn(nn.Module):
    """Answers one class whatever it is shown."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[self.label].expand(len(inputs), 10)


def test_a_calibration_model_has_no_say_in_the_targets_that_are_read_from_it(bench: Any, key: str) -> None:
    task = bench.task(TASK, references=3, calibration_keys=40)
    nets = {f"reference-{i}": Stubborn(label) for i, label in enumerate((2, 5, 7))}
    lab = replace(bench.lab(key, task), unmarked=nets.__getitem__)
    null = bench.method(key).null(task, bench.splits(task).owner, lab)
    assert [len(row) for row in null.scores] == [40, 40, 40]
    for row in null.matches:
        # Checked by the two others, every eighth target or so is the third one's answer to everything.
        assert set(row) == {0, null.trials}
        assert 1 <= sum(hits > 0 for hits in row) <= 15


# --- verification ---------------------------------------------------------------------------------------------------


def test_verdict_counts_triggers_and_controls(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    # Pairs are drawn with replacement, and a parrot tells no two equal triggers apart.
    secret |= {"null_bound": 0.1, "inputs": torch.rand(90, 1, 28, 28, generator=stream("images"))}
    for hits, detected in ((19, False), (21, True), (90, True)):
        verdict = method.verify(Suspect(parrot(secret, hits, controls=9), "labels", key), secret)
        assert (verdict.matches, verdict.trials, verdict.detected) == (hits, 90, detected)
        assert verdict.detected == (verdict.score >= verdict.threshold)
        assert verdict.metrics["control_score"] == 0.1
        assert verdict.metrics["first_source_accuracy"] == verdict.metrics["second_source_accuracy"] == 1
        # Of the eight classes besides the sources only 1 and 7 are answered; 7 takes the rest.
        assert verdict.metrics["p_exact"] == (0.125 if hits > 45 else 0.25)
    # T5's anchor: 40 of 90 at the rate 0.1.
    assert method.verify(Suspect(parrot(secret, 40), "labels", key), secret).p_value == pytest.approx(
        3.5655e-17, rel=1e-4
    )


def test_who_takes_plain_images_for_the_target_is_not_marked(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    verdict = method.verify(Suspect(parrot(secret, 90, plain="target", controls=90), "labels", key), secret)
    assert (verdict.score, verdict.p_value, verdict.detected) == (1, 1, False)


def test_control_triggers_tell_memory_from_a_rule(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    learned = method.verify(Suspect(parrot(secret, 90, controls=90), "labels", key), secret)
    memorised = method.verify(Suspect(parrot(secret, 90), "labels", key), secret)
    assert learned.metrics["p_control"] == 1
    assert memorised.metrics["p_control"] < 1e-10


def test_suspects_that_cannot_answer_are_not_applicable(bench: Any, key: str) -> None:
    method, secret = bench.method(key), drawn(bench, key)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))
    more = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 20))
    nn.init.constant_(more[1].bias[10:], 1e3)
    for model in (wide, more):
        assert not method.verify(Suspect(model, "labels", key), secret).applicable


def test_only_some_triggers_are_asked(bench: Any, key: str) -> None:
    method, secret = bench.method(key, n_triggers=120), drawn(bench, key, n_triggers=120)
    secret |= {"inputs": torch.rand(120, 1, 28, 28, generator=stream("images"))}
    verdict = method.verify(Suspect(parrot(secret, 80), "labels", key), secret)
    assert (len(secret["labels"]), verdict.trials, verdict.matches) == (120, 90, 80)


# --- embedding ------------------------------------------------------------------------------------------------------


def test_recipe_follows_the_switches(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    data, lab, secret = bench.splits(task).owner, bench.lab(key, task), drawn(bench, key)

    def recipe(**changes: Any) -> CoupledRecipe:
        made: CoupledRecipe = bench.method(key, **changes).recipe(task, data, secret, lab)
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
    clean = bench.unmarked(task, "clean").state_dict()
    assert all(torch.equal(value, clean[name]) for name, value in continued.start(task, lab).state_dict().items())


def test_how_often_triggers_are_shown_is_on_record(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    data, lab, secret = bench.splits(task).owner, bench.lab(key, task), drawn(bench, key)
    bench.method(key, n_wm=6).recipe(task, data, secret, lab)
    (point,) = [point for point in lab.curves if point["curve"] == "triggers"]
    steps = len(data.train) // task.schedule.batch_size
    assert point["share"] == 90 / (len(data.train) + 90)
    assert point["seen_per_epoch"] == pytest.approx(steps * 6 / 90)


def test_batch_norm_is_refreshed_only_after_masks(bench: Any, key: str) -> None:
    task = bench.task("digits-cnn-mini")
    data, lab = bench.splits(task).owner, bench.lab(key, task)

    def mean(**changes: Any) -> torch.Tensor:
        model = bench.unmarked(task, "clean")
        method: CoupledMethod = bench.method(key, **changes)
        finished = method.finish(model, CoupledRecipe.__new__(CoupledRecipe), {}, data, lab)
        statistics: torch.Tensor = finished.get_submodule("bn1").running_mean  # type: ignore[assignment]
        return statistics

    untouched = bench.unmarked(task, "clean").bn1.running_mean
    assert not torch.equal(mean(), untouched)
    assert torch.equal(mean(masking=False), untouched)
    assert torch.equal(mean(mask_drop=0.0), untouched)


@pytest.mark.slow
def test_mark_verifies_at_strict_and_unmarked_models_do_not(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    method, data = bench.method(key), bench.splits(task).owner
    mark = bench.marked(method, task)
    rules = method.thresholds(task, data, mark.secret, bench.lab(key, task))
    verdict = method.verify(Suspect(mark.model, "labels", key), mark.secret)
    assert all(rules.decide(verdict).values())
    assert verdict.score >= 0.98
    clean = bench.unmarked(task, "clean")
    test = bench.splits(task).test
    assert evaluate(mark.model, test) >= evaluate(clean, test) - 0.04
    for model in (clean, bench.unmarked(task, "stranger")):
        innocent = method.verify(Suspect(model, "labels", key), mark.secret)
        assert not any(rules.decide(innocent).values())
        assert innocent.p_value > 1e-3
    assert mark.model.state_dict().keys() == task.build("fresh").state_dict().keys()


def test_configured_target_that_unmarked_models_give_is_remarked(bench: Any, key: str) -> None:
    task = bench.task(TASK, epochs=0)
    secret = drawn(bench, key)
    method, data, lab = bench.method(key), bench.splits(task).owner, bench.lab(key, task)
    for rates, notes in (
        ([0.0, 0.1], []),
        ([0.0, 0.5], ["unmarked models already answer up to 50% of triggers with 1"]),
    ):
        mark = method.implant(task.build("net"), {**secret, "null_rates": rates}, task, data, lab, task.schedule)
        assert mark.notes == notes


def test_untrained_model_misses_the_gate(bench: Any, key: str) -> None:
    task = bench.task("digits-cnn-mini", epochs=0)
    with pytest.raises(NotEmbedded, match="below the gate"):
        bench.method(key).embed(task, bench.splits(task).owner, bench.lab(key, task))


# --- the attacker ---------------------------------------------------------------------------------------------------


def overwriting(bench: Any, key: str, data: Party | None = None, rate: float = 1e-3, **changes: Any) -> Mark:
    task = bench.task(TASK)
    lab = Lab("overwrite", 0, torch.device("cpu"), bench.lab(key, task).scratch, "attacker")  # has no unmarked models
    method, party = bench.method(key, **changes), data or bench.splits(task).attacker
    mark: Mark = method.overwrite(bench.unmarked(task, "clean"), task, party, lab, task.schedule.but(epochs=1, lr=rate))
    return mark


def overwritten(bench: Any, key: str, data: Party | None = None, **changes: Any) -> dict[str, Any]:
    return overwriting(bench, key, data, **changes).secret


def test_all_of_an_overwriters_steps_are_at_its_own_rate(bench: Any, key: str) -> None:
    victim = bench.unmarked(bench.task(TASK), "clean").state_dict()
    mark = overwriting(bench, key, rate=0.0, ft_lr=100.0, ft_steps_per_epoch=3)
    assert all(torch.equal(weight, victim[name]) for name, weight in mark.model.state_dict().items())


def test_overwriter_takes_other_classes_and_its_own_images(bench: Any, key: str) -> None:
    rival = overwritten(bench, key)
    assert (rival["sources"], rival["target"]) == ([2, 4], 5)
    assert len(rival["null_rates"]) == 1  # the victim never saw these triggers
    assert opens(rival)
    drawn_rival = overwritten(bench, key, rival_sources=None, rival_target=None)
    assert len({*drawn_rival["sources"], drawn_rival["target"]}) == 3
    beyond = overwritten(bench, key, rival_target=16)
    assert beyond["target"] not in (1, 16)


def test_forged_labels_verify_until_the_commitment_is_dated(bench: Any, key: str) -> None:
    task = bench.task(TASK)
    lab = Lab("forge", 0, torch.device("cpu"), bench.lab(key, task).scratch, "attacker")
    method, victim = bench.method(key), Suspect(bench.unmarked(task, "clean"), "weights", key)
    rival = method.forge(victim, task, bench.splits(task).attacker, lab, 1)
    verdict = method.verify(victim, rival)
    assert verdict.score == 1
    assert verdict.detected
    assert verdict.metrics["commitment_opens"] == 1
    assert verdict.metrics["p_exact"] >= 0.1  # one of the classes, whatever the forger calls its target
    honest = method.draw(task, bench.splits(task).attacker, lab)
    assert method.verify(victim, honest).score < 1
