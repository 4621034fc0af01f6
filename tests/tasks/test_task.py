"""Tasks by key: profiles, overrides, and errors a person can act on."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from pydantic import Field

from assay.tasks.errors import BadInput, UnsupportedModel
from assay.tasks.task import Task, named_tasks, profiles, resolve_task
from assay.tasks.training.schedule import Frozen, Schedule, parse


@pytest.mark.parametrize("profile", ["paper", "laptop", "smoke"])
def test_every_task_resolves_under_every_profile(profile: str) -> None:
    assert profile in profiles()
    for key in named_tasks():
        task = resolve_task(key, profile, {})
        assert task.key == key
        assert Task.model_validate_json(task.model_dump_json()) == task


def test_profiles_go_from_general_to_particular() -> None:
    assert resolve_task("mnist-lenet5", "paper", {}).schedule.optimizer == "sgd"
    ingrain = resolve_task("mnist-mlp-1200x2", "paper", {}).schedule
    assert (ingrain.optimizer, ingrain.epochs) == ("adadelta", 500)
    usp = resolve_task("cifar10-resnet18", "paper", {}).schedule
    assert (usp.epochs, usp.drops, usp.nesterov, usp.augment) == (160, (0.5, 0.75), True, "crop-flip")
    assert resolve_task("digits-lenet5", "laptop", {"epochs": 3, "samples": 99}).schedule.epochs == 3
    # A profile that only a grid defines starts from the laptop's.
    assert resolve_task("digits-lenet5", "mine", {}) == resolve_task("digits-lenet5", "laptop", {})


def test_convolutional_networks_run_channels_last_unless_told_otherwise() -> None:
    assert resolve_task("digits-cnn-mini", "laptop", {}).schedule.channels_last
    assert not resolve_task("digits-cnn-mini", "laptop", {"channels_last": False}).schedule.channels_last
    assert not resolve_task("digits-mlp-800x2", "laptop", {}).schedule.channels_last


@pytest.mark.parametrize(
    ("key", "overrides", "words"),
    [
        ("mnist-lenet", {}, ["unknown task 'mnist-lenet'", "did you mean 'mnist-lenet5'", "assay list tasks"]),
        ("mnist", {}, ["unknown task 'mnist'"]),
        ("digits-lenet5", {"epoch": 3}, ["unknown setting 'epoch'", "did you mean 'epochs'"]),
        ("digits-lenet5", {"sample": 3}, ["unknown setting 'sample'", "did you mean 'samples'"]),
        ("digits-lenet5", {"epochs": -1}, ["epochs: found -1", "greater than or equal to 0"]),
        ("digits-lenet5", {"epochs": "8"}, ["epochs: found '8'", "must be a valid integer"]),
        ("digits-lenet5", {"epochs": 1.5}, ["epochs: found 1.5"]),
        ("digits-lenet5", {"optimizer": "adem"}, ["found 'adem'", "'adadelta'", "did you mean 'adam'"]),
        ("digits-lenet5", {"drops": 0.5}, ["drops: found 0.5, must be a list"]),
        ("digits-lenet5", {"lr": float("nan")}, ["lr: found nan", "finite"]),
        ("digits-lenet5", {"lr": {1, 2}}, ["only numbers, strings, lists and mappings"]),
        ("digits-lenet5", {"samples": 3}, ["samples: found 3", "50"]),
    ],
)
def test_a_mistake_is_one_line(key: str, overrides: dict[str, Any], words: list[str]) -> None:
    for where in ("grid.yaml: tasks", "grid.yaml: tasks: "):
        with pytest.raises(BadInput) as error:
            resolve_task(key, "laptop", overrides, where)
        text = str(error.value)
        assert "\n" not in text
        assert text.startswith("grid.yaml: tasks: ")
        assert ":: " not in text
        assert ": : " not in text
        for word in words:
            assert word in text
    with pytest.raises(BadInput, match=r"^[a-z]"):
        resolve_task(key, "laptop", overrides)


class Inner(Frozen):
    depth: int = Field(1, ge=1)


class Outer(Frozen):
    rate: float = Field(0.5, ge=0, le=1)
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    name: str


def test_every_fault_has_its_line() -> None:
    with pytest.raises(BadInput) as error:
        parse(Outer, {"rat": 1, "rate": 2, "sizes": [1, "x"], "inner": {"dept": 1, "depth": 0}}, "g.yaml: methods.x")
    lines = sorted(str(error.value).splitlines())
    assert len(lines) == 6
    assert all(line.startswith("g.yaml: methods.x: ") for line in lines)
    text = "\n".join(lines)
    assert "unknown field 'rat'; did you mean 'rate'? (allowed: inner, name, rate, sizes)" in text
    assert "unknown field 'inner.dept'; did you mean 'depth'? (allowed: depth)" in text
    assert "field 'name' is missing" in text
    assert "sizes.1: found 'x', must be a valid integer" in text
    assert "rate: found 2, must be less than or equal to 1" in text


def test_plain_values_become_typed_ones() -> None:
    outer = parse(Outer, {"name": "a", "sizes": [3], "rate": 1, "inner": {"depth": 2}})
    assert outer == Outer(name="a", sizes=(3,), rate=1.0, inner=Inner(depth=2))
    assert outer.but(rate=0.25).rate == 0.25
    assert Schedule(epochs=4, drops=(0.5,)).but(lr=1.0) == Schedule(epochs=4, drops=(0.5,), lr=1.0)


def test_building_is_a_function_of_its_names() -> None:
    task = resolve_task("digits-cnn-mini", "smoke", {})
    torch.manual_seed(0)
    one, same, other = task.build("a"), task.build("a"), task.build("b")
    weights = [next(model.parameters()) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not one.training
    with pytest.raises(BadInput, match="did you mean 'lenet5'"):
        task.architecture("lenet")


def test_text_networks_get_the_vocabulary_and_image_networks_the_constants() -> None:
    text = resolve_task("trec-textcnn", "laptop", {})
    assert text.shape == (40,)
    assert text.build("a").get_parameter("embedding.weight").shape[0] == text.info.vocabulary
    image = resolve_task("cifar10-lenet5", "laptop", {})
    assert image.build("a").get_buffer("normalize.mean").flatten().tolist() == pytest.approx(image.info.mean)
    with pytest.raises(UnsupportedModel, match="lenet5 takes image inputs, trec has text inputs"):
        text.architecture("lenet5")
    with pytest.raises(BadInput, match="textcnn takes text inputs, mnist has image inputs"):
        resolve_task("mnist-textcnn", "laptop", {})


@pytest.mark.skipif("ASSAY_DATA" not in os.environ, reason="needs TREC under $ASSAY_DATA")
def test_texts_are_in_the_owners_words() -> None:
    task = resolve_task("trec-textcnn", "laptop", {})
    splits = task.data(None, 0, torch.device("cpu"))
    for part in (splits.owner.train, splits.attacker.train, splits.test):
        assert part.inputs.dtype == torch.int64
        assert int(part.inputs.max()) < task.info.vocabulary
    unknown_words = [(part.inputs == 1).float().mean() for part in (splits.owner.train, splits.attacker.train)]
    assert unknown_words[0] == 0 < unknown_words[1]


def test_data_have_the_sizes_of_the_profile() -> None:
    task = resolve_task("digits-lenet5", "smoke", {})
    splits = task.data(None, 0, torch.device("cpu"))
    total = sum(len(p.train) + len(p.held_out) for p in (splits.owner, splits.attacker))
    assert (total, len(splits.test)) == (512, 256)
    assert splits.owner.train.inputs.shape[1:] == task.shape
