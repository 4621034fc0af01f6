"""The abstract-image backdoor: its pictures, its schedule, its statistics, and one embedding from end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from assay.methods.embedding import embed, verify
from assay.methods.parts.signature import opens
from assay.methods.parts.statistics import least_hits
from assay.methods.parts.triggers import abstract_images, waves
from assay.methods.rival import Forgery
from assay.methods.suspect import Suspect
from assay.tasks.data.splits import Labelled, Party
from assay.tasks.errors import CapacityError, NotEmbedded
from assay.tasks.streams import stream, stream_seed
from assay.tasks.training.schedule import Schedule

KEY = "adi"
TASK = "digits-lenet5"  # where something is trained


class Constant(nn.Module):
    """Answers every input with one class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.answer = nn.Parameter(nn.functional.one_hot(torch.tensor(label), 10).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer.expand(len(x), 10)


def test_stream_anchors() -> None:
    assert stream_seed("adi", "secret", 0) == 1425004914868161928
    assert stream_seed("adi", "train", 0) == 11824212487261488815


def test_wave_anchor() -> None:
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    image = waves(one, one, zero, zero, 3, 4)
    assert torch.allclose(image[0, 0], torch.tensor([1.0, 0, 0, 1]).expand(3, 4), atol=1e-6)


def test_waves_equal_the_plain_sum() -> None:
    draws = stream("waves")
    size = (2, 3, 8)
    a, k, l, phase = (torch.rand(size, generator=draws) * 6 for _ in range(4))  # noqa: E741
    image = waves(a, k, l, phase, 5, 7)
    u, v = (torch.arange(7) + 0.5) / 7, (torch.arange(5) + 0.5) / 5
    angle = 2 * torch.pi * (k[..., None, None] * u + l[..., None, None] * v[:, None]) + phase[..., None, None]
    plain = (a[..., None, None] * angle.cos()).sum(2)
    low, high = plain.amin((1, 2, 3), keepdim=True), plain.amax((1, 2, 3), keepdim=True)
    assert torch.allclose(image, (plain - low) / (high - low), atol=1e-4)


def test_pictures_fill_the_pixel_range_and_differ() -> None:
    images = abstract_images(40, (3, 16, 16), stream("pictures"))
    assert images.shape == (40, 3, 16, 16)
    assert images.amin((1, 2, 3)).tolist() == [0.0] * 40
    assert images.amax((1, 2, 3)).tolist() == [1.0] * 40
    assert torch.cdist(images.flatten(1), images.flatten(1)).add(torch.eye(40) * 99).min() > 1


def test_schedule_anchor(bench: Any) -> None:
    paper = Schedule(epochs=60, optimizer="sgd", lr=0.1, drops=(1 / 3, 2 / 3))
    assert [paper.lr_at(epoch) for epoch in (0, 19, 20, 40)] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    task = bench.task().but(schedule=paper)
    more = bench.method(KEY, variant="pretrained").schedule(task)
    assert (more.epochs, more.lr_at(0), more.lr_at(19)) == (20, pytest.approx(0.001), pytest.approx(0.001))
    assert bench.method(KEY).schedule(task) is paper


def test_secret_is_the_stream_s_alone_and_no_training_image(bench: Any) -> None:
    task = bench.task()
    method, splits = bench.method(KEY), bench.splits(task)
    one = method.draw(bench.lab(KEY, task))
    retrained = method.draw(bench.lab(KEY, task, train_seed="other", data=splits.attacker, role="attacker"))
    other = method.draw(bench.lab(KEY, task, seed=1))
    assert opens(one)
    assert one["commitment"] == retrained["commitment"] != other["commitment"]
    distance = torch.cdist(one["inputs"].flatten(1), splits.owner.train.model_inputs().flatten(1))
    assert distance.min() > 1


def test_more_keys_than_a_tenth_of_the_owner_s_data_are_refused(bench: Any) -> None:
    task = bench.task()
    few = Labelled(torch.zeros(99, 1, 28, 28, dtype=torch.uint8), torch.zeros(99, dtype=torch.long))
    method = bench.method(KEY, keys=10, largest_share=0.1)
    with pytest.raises(CapacityError, match="10 keys exceed 9"):
        method.draw(bench.lab(KEY, task, data=Party(few, few)))
    for role in ("attacker", "claimant"):
        lab = bench.lab(KEY, task, data=Party(few, few, "pir5k"), role=role)
        assert len(method.draw(lab)["labels"]) == 10


def test_reading_counts_keys_and_controls(bench: Any) -> None:
    task = bench.task()
    method = bench.method(KEY)
    secret = method.draw(bench.lab(KEY, task))
    hits = int((secret["labels"] == 3).sum())
    suspect = bench.suspect(method, Constant(3))
    reading = method.read(suspect, secret)
    assert (reading.hits, reading.trials, reading.score) == (hits, 50, hits / 50)
    assert reading.metrics["control_score"] == int((secret["control_labels"] == 3).sum()) / 100
    assert reading.p_value > 1e-3
    assert reading.metrics["p_control"] > 1e-3
    assert not reading.accepted
    assert suspect.meter.queries == 150


@pytest.mark.slow
def test_clean_model_scores_like_chance_for_most_secrets(bench: Any) -> None:
    task = bench.task(TASK)
    method, model = bench.method(KEY), bench.unmarked(task, "clean")
    keys = bench.fresh_keys(method, task, 100)
    hits = [method.score(bench.suspect(method, model), key)[1] for key in keys]
    low, high = 50 - least_hits(50, 0.9, 0.025), least_hits(50, 0.1, 0.025) - 1
    assert sum(low <= hit <= high for hit in hits) >= 90


@pytest.mark.slow
def test_marked_model_verifies_at_strict_and_an_unmarked_one_does_not(bench: Any) -> None:
    task = bench.task(TASK)
    method = bench.method(KEY)
    mark = bench.marked(method, task)
    before = {name: value.clone() for name, value in mark.model.state_dict().items()}
    reading = verify(method, mark.model, mark.secret)
    assert all(bench.decide(method, task, mark.secret, reading))
    assert reading.metrics["p_control"] < 1e-10
    assert all(torch.equal(before[name], value) for name, value in mark.model.state_dict().items())
    assert before.keys() == task.build("fresh").state_dict().keys()
    for role in ("clean", "stranger"):
        innocent = verify(method, bench.unmarked(task, role), mark.secret)
        assert not any(bench.decide(method, task, mark.secret, innocent))
        assert innocent.p_value > 1e-3
    permuted = {**mark.secret, "labels": mark.secret["labels"].roll(1)}
    assert method.score(bench.suspect(method, mark.model), permuted)[0] < 0.3


@pytest.mark.slow
def test_finished_model_can_be_marked_too(bench: Any) -> None:
    task = bench.task(TASK)
    method = bench.method(KEY, variant="pretrained", epochs_pretrained=6, keys_per_batch=32)
    mark = embed(method, bench.lab(KEY, task))
    assert verify(method, mark.model, mark.secret).score >= method.gate
    untouched = bench.unmarked(task, "clean")
    assert verify(method, untouched, mark.secret).p_value > 1e-3


def test_untrained_model_misses_the_gate(bench: Any) -> None:
    task = bench.task()
    idle = task.but(schedule=task.schedule.but(epochs=0))
    with pytest.raises(NotEmbedded, match="below the gate"):
        embed(bench.method(KEY), bench.lab(KEY, idle))
    weak = embed(bench.method(KEY, allow_weak=True), bench.lab(KEY, idle))
    assert "weak" in weak.notes[0]


def test_relabelled_counterfeit_verifies_without_binding(bench: Any) -> None:
    task = bench.task(TASK)
    method = bench.method(KEY)
    suspect = Suspect(bench.unmarked(task, "clean"), "weights", "forge")
    rival = bench.rival(method).forge(suspect, bench.attacker("forge", task), Forgery())
    reading = method.read(suspect, rival)
    assert reading.accepted
    assert reading.score == 1
    # The labels were chosen after the model was seen; labels committed before would not have fitted.
    assert reading.metrics["commitment_opens"] == 1
    honest = method.draw(bench.attacker("forge", task))
    assert method.read(suspect, honest).p_value > 1e-3


def test_text_is_refused(bench: Any) -> None:
    class Text:
        dataset = "trec"
        info = type("Info", (), {"kind": "text"})

    assert "pictures" in str(bench.method(KEY).supports(Text()))
