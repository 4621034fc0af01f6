"""Extraction: exact query counts, where queries come from, and hard labels alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range, SignMark
from pydantic import ValidationError

from assay.attacks.base import Victim
from assay.attacks.extract import Config, Extract, owner_samples
from assay.methods.base import MethodConfig
from assay.tasks.data.other import untouched
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import AccessDenied
from assay.tasks.streams import stream
from assay.tasks.task import Task
from assay.tasks.training.meter import Meter


def foreign(count: int, *shape: int) -> tuple[Labelled, Labelled]:
    inputs = torch.randint(0, 256, (count, *shape), generator=stream("foreign"), dtype=torch.uint8)
    data = Labelled(inputs, torch.arange(count) % 10)
    return data, data.take(slice(0, 0))


class Watched(Victim):
    """A victim that remembers what it is asked."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: list[torch.Tensor] = []

    def labels(self, inputs: torch.Tensor) -> torch.Tensor:
        self.asked.append(inputs)
        return super().labels(inputs)


def extract(field: Range, others: dict[str, Any] | None = None, **config: Any) -> tuple[Any, Any, Any]:
    """Return the outcome, the victim and the lab of one attack."""
    victim = Watched(field.model, "labels", field.task, SignMark(MethodConfig()), Meter())
    lab = field.lab("extract", other=lambda key: (others or {})[key])
    outcome = Extract(Config(**config)).run(victim, lab)
    return outcome, victim, lab


def own_rows(field: Range) -> set[bytes]:
    party = field.splits.attacker
    return {row.numpy().tobytes() for part in (party.train, party.held_out) for row in part.inputs}


def test_the_owners_size_follows_from_public_facts(field: Range) -> None:
    assert owner_samples(field.task, field.splits.attacker) == len(field.splits.owner.train)
    whole = Task(dataset="cifar10", model="lenet5")
    assert owner_samples(whole, field.splits.attacker) == 36_000


@pytest.mark.parametrize("source", ["in_dist", "ood", "noise"])
def test_queries_are_as_many_as_the_budget(field: Range, source: Any) -> None:
    outcome, victim, lab = extract(field, {"cifar10": foreign(400, 3, 32, 32)}, source=source, budget=0.25, epochs=1)
    wanted = round(0.25 * len(field.splits.owner.train))
    assert victim.meter.queries == wanted == outcome.report["queries"]
    assert len(victim.asked) == 1
    assert tuple(victim.asked[0].shape) == (wanted, 1, 28, 28)
    shares = [row["share"] for row in lab.curves if row["curve"] == "labels"]
    assert sum(shares) == pytest.approx(1)
    assert outcome.report["largest_class"] == max(shares)


def test_in_distribution_queries_are_the_attackers_own_images_first(field: Range) -> None:
    own = own_rows(field)
    _, victim, _ = extract(field, budget=0.2, epochs=0)
    assert {row.numpy().tobytes() for row in victim.asked[0]} <= own
    public = foreign(500, 1, 28, 28)
    _, victim, _ = extract(field, {"digits": public}, budget=1.0, epochs=0)
    rows = {row.numpy().tobytes() for row in victim.asked[0]}
    assert own <= rows
    assert rows - own <= {row.numpy().tobytes() for row in public[0].inputs}
    assert len(victim.asked[0]) == len(field.splits.owner.train)


def test_a_budget_beyond_all_images_is_cut_and_said(field: Range) -> None:
    outcome, victim, _ = extract(field, {"digits": foreign(10, 1, 28, 28)}, budget=2.0, epochs=0)
    held = len(field.splits.attacker.train) + len(field.splits.attacker.held_out)
    assert victim.meter.queries == held + 10
    assert "queries are wanted" in outcome.notes[0]


def test_augmented_views_count_as_queries(field: Range) -> None:
    outcome, victim, _ = extract(
        field, {"digits": foreign(10, 1, 28, 28)}, budget=2.0, epochs=0, requery_augmented=True
    )
    assert victim.meter.queries == 2 * len(field.splits.owner.train)
    assert not outcome.notes
    assert victim.asked[0].dtype == torch.uint8
    assert len(victim.asked[0].flatten(1).unique(dim=0)) > 0.9 * len(victim.asked[0])


def test_nothing_but_labels_is_seen(field: Range) -> None:
    victim = field.victim(Extract.access)
    for more in (victim.logits, victim.probabilities):
        with pytest.raises(AccessDenied):
            more(field.splits.attacker.train.inputs)


@pytest.mark.slow
def test_noise_teaches_little_and_in_distribution_images_a_lot(field: Range) -> None:
    inputs, public = field.splits.test.model_inputs(), (untouched("digits", None, 600),) * 2
    agree = {}
    for source in ("in_dist", "noise"):
        outcome, _, _ = extract(field, {"digits": public}, source=source, budget=1.0, epochs=8)
        with torch.no_grad():
            same = outcome.surrogate(inputs).argmax(1) == field.model(inputs).argmax(1)
        agree[source] = float(same.float().mean())
    assert agree["in_dist"] > 0.6
    assert agree["noise"] < agree["in_dist"] - 0.2


def test_one_sided_answers_are_said(field: Range) -> None:
    field.model = field.task.build("constant")
    with torch.no_grad():
        field.model.fc2.weight.zero_()
        field.model.fc2.bias.copy_(torch.arange(10.0))
    outcome, _, _ = extract(field, source="noise", budget=0.2, epochs=0)
    assert outcome.notes == ["class 9 holds 100% of the answers"]


def test_what_data_are_declared(field: Range) -> None:
    def asked(task: Task, **config: Any) -> tuple[str, ...]:
        needed = Extract(Config(**config)).needs(task, SignMark(MethodConfig()))
        assert (needed.access, needed.data, needed.key) == ("labels", True, False)
        return needed.datasets

    small, whole = field.task, Task(dataset="digits", model="cnn-mini")
    assert asked(small) == ("digits",)
    assert asked(whole) == ()  # nothing of the training set is left
    assert asked(small, source="ood") == ("cifar10",)
    assert asked(small, source="ood", ood="mnist") == ("mnist",)
    assert asked(small, source="noise") == ()
    traffic = Task(dataset="gtsrb", model="cnn-mini")
    assert asked(traffic, source="ood") == ("imagenet100",)
    assert asked(traffic, source="ood", stand_in=True) == ("tiny_imagenet_32",)


def test_reasons(field: Range) -> None:
    method = SignMark(MethodConfig())
    assert "no data" in str(Extract(Config(split="none")).supports(field.task, method))
    assert Extract(Config(split="none", source="noise")).supports(field.task, method) is None
    assert "holds images of digits" in str(Extract(Config(source="ood", ood="digits")).supports(field.task, method))
    with pytest.raises(ValidationError, match="did you mean 'mnist'"):
        Config(ood="mnst")


def test_another_architecture(field: Range) -> None:
    outcome, _, _ = extract(field, student="lenet5", budget=0.2, epochs=0)
    assert outcome.structure == "other_arch"
