"""What a loader returns is checked: type, shape, dtype, range, classes, groups; the message says what was found."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from assay.tasks.data import sources
from assay.tasks.data.checks import check_info, check_part, outside
from assay.tasks.data.sources import DATASETS, SOURCES, DatasetInfo, load, register_dataset
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import BadInput

IMAGES = DatasetInfo("mine", (1, 4, 4), 3, (0.5,), (0.5,), "?")
TEXTS = DatasetInfo("words", (5,), 3, (), (), "?", "text", vocabulary=10)


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    for registry in (DATASETS, SOURCES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def images(inputs: Tensor | None = None, labels: Tensor | None = None, groups: Tensor | None = None) -> Labelled:
    return Labelled(
        torch.zeros(6, 1, 4, 4, dtype=torch.uint8) if inputs is None else inputs,
        torch.arange(6) % 3 if labels is None else labels,
        groups,
    )


def refused(part: Any, info: DatasetInfo = IMAGES) -> str:
    with pytest.raises(BadInput) as error:
        check_part(info, "training", part)
    text = str(error.value)
    assert text.startswith(f"data set {info.key}, training part")
    assert "\n" not in text
    return text


def test_what_the_contract_allows() -> None:
    check_part(IMAGES, "training", images())
    check_part(IMAGES, "training", images(torch.full((6, 1, 4, 4), 255, dtype=torch.uint8)))
    check_part(IMAGES, "training", images(torch.rand(6, 1, 4, 4)))
    check_part(IMAGES, "training", images(torch.tensor([0.0, 1.0]).repeat(48).view(6, 1, 4, 4)))
    check_part(IMAGES, "training", images(groups=torch.tensor([9, 1, 2, 9, 1, 2])))
    for dtype in (torch.int32, torch.int64):
        check_part(TEXTS, "training", images(torch.tensor([0, 2, 2**24 - 1, 3, 0]).repeat(6, 1).to(dtype)))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.full((6, 1, 4, 4), 255.0), "images float32 from 255 to 255, expected uint8 from 0 to 255, or float32"),
        (torch.full((6, 1, 4, 4), 1.0001), "images float32 from 1.0001 to 1.0001"),
        (torch.full((6, 1, 4, 4), -0.5), "images float32 from -0.5 to -0.5"),
        (torch.full((6, 1, 4, 4), float("nan")), "images float32 from nan to nan"),
        (torch.full((6, 1, 4, 4), float("inf")), "images float32 from inf to inf"),
        (torch.zeros(6, 1, 4, 4, dtype=torch.float64), "images float64 from 0 to 0"),
        (torch.zeros(6, 1, 4, 4, dtype=torch.float16), "images float16 from 0 to 0"),
        (torch.full((6, 1, 4, 4), 255, dtype=torch.int64), "images int64 from 255 to 255"),
        (torch.ones(6, 1, 4, 4, dtype=torch.bool), "images bool from 1 to 1"),
        (torch.ones(6, 1, 4, 4, dtype=torch.uint16), "images uint16 from 1 to 1"),
        (torch.ones(6, 1, 4, 4, dtype=torch.complex64), "images complex64 from 1 to 1"),
        (torch.zeros(6, 4, 4, 1, dtype=torch.uint8), "inputs of shape (4, 4, 1), expected (1, 4, 4)"),
        (torch.zeros(6, 16, dtype=torch.uint8), "inputs of shape (16,), expected (1, 4, 4)"),
        (torch.tensor(1.0), "inputs of shape (), expected (1, 4, 4)"),
        (torch.zeros(5, 1, 4, 4, dtype=torch.uint8), "5 inputs and 6 labels; expected as many"),
    ],
)
def test_images_of_another_kind_are_refused(inputs: Tensor, words: str) -> None:
    assert words in refused(images(inputs))


def test_one_pixel_out_of_range_is_noticed() -> None:
    for value in (1.5, -1e-6, float("nan")):
        inputs = torch.rand(6, 1, 4, 4)
        inputs[4, 0, 3, 1] = value
        assert "images float32 from" in refused(images(inputs))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.zeros(6, 5), "texts float32 from 0 to 0, expected ids int32 or int64 in 0..16777215"),
        (torch.zeros(6, 5, dtype=torch.int16), "texts int16 from 0 to 0"),
        (torch.full((6, 5), -1), "texts int64 from -1 to -1"),
        (torch.full((6, 5), 2**24), "texts int64 from 1.67772e+07"),
        (torch.zeros(6, 4, dtype=torch.int64), "inputs of shape (4,), expected (5,)"),
    ],
)
def test_texts_of_another_kind_are_refused(ids: Tensor, words: str) -> None:
    assert words in refused(images(ids), TEXTS)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            torch.tensor([0, 1, 2, 0, 3, 1]),
            ", row 4 (the first is 0): found label 3 among labels 0 to 3, expected 0..2",
        ),
        (
            torch.tensor([0, 1, 2, 0, 1, -1]),
            ", row 5 (the first is 0): found label -1 among labels -1 to 2, expected 0..2",
        ),
        (torch.arange(6).float() % 3, ": labels float32 from 0 to 2, expected int64 in 0..2"),
        (torch.arange(6).int() % 3, ": labels int32 from 0 to 2, expected int64 in 0..2"),
        (torch.eye(3, dtype=torch.int64).repeat(2, 1), ": labels of shape (6, 3), expected a number for each input"),
        (torch.zeros(7, dtype=torch.int64), ": 6 inputs and 7 labels"),
    ],
)
def test_labels_of_another_kind_are_refused(labels: Tensor, words: str) -> None:
    assert words in refused(images(labels=labels))


def test_groups_are_of_one_class() -> None:
    assert "groups int32 of shape (6,), expected int64 (6,)" in refused(
        images(groups=torch.zeros(6, dtype=torch.int32))
    )
    assert "groups int64 of shape (5,), expected int64 (6,)" in refused(images(groups=torch.arange(5)))
    text = refused(images(groups=torch.tensor([7, 1, 2, 7, 1, 7])))
    assert ": group 7 has samples of the classes " in text


def test_what_is_no_part_is_refused() -> None:
    assert "the loader returned tuple, expected Labelled" in refused((torch.zeros(2), torch.zeros(2)))
    array: Any = np.zeros((6, 1, 4, 4), np.uint8)
    assert "the loader returned Labelled" in refused(Labelled(array, torch.arange(6)))
    assert "0 inputs and 0 labels" in refused(images().take(slice(0, 0)))


@given(st.lists(st.integers(-3, 6), min_size=1), st.integers(1, 5))
def test_the_first_label_outside(labels: list[int], classes: int) -> None:
    wrong = [row for row, label in enumerate(labels) if label not in range(classes)]
    found = outside(np.array(labels), classes)
    assert (found[0] if found else None) == (wrong[0] if wrong else None)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (DatasetInfo("a", (3,), 2, (), (), "?", "sound"), r"kind 'sound' \(allowed: image, text\)"),
        (DatasetInfo("a", (3, 4), 2, (0.5,), (0.5,), "?"), r"shape \(3, 4\), expected \(C, H, W\)"),
        (DatasetInfo("a", (3, 0, 4), 2, (0.5,), (0.5,), "?"), r"shape \(3, 0, 4\)"),
        (DatasetInfo("a", (3, 4), 2, (), (), "?", "text", vocabulary=9), r"expected \(L,\) of a text"),
        (DatasetInfo("a", (1, 4, 4), 1, (0.5,), (0.5,), "?"), "1 classes, expected 2 or more"),
        (DatasetInfo("a", (5,), 2, (), (), "?", "text"), "a vocabulary of 0 words, expected more than 2"),
        (DatasetInfo("a", (5,), 2, (), (), "?", "text", vocabulary=2), "a vocabulary of 2 words"),
        (DatasetInfo("a", (3, 4, 4), 2, (0.5, 0.5), (0.5,), "?"), "a number for each of 3 channels"),
        (DatasetInfo("a", (3, 4, 4), 2, (0.5,), (), "?"), "a number for each of 3 channels"),
        (DatasetInfo("a", (1, 4, 4), 2, (float("nan"),), (0.5,), "?"), "a number for each of 1 channels"),
        (DatasetInfo("a", (1, 4, 4), 2, (0.5,), (0.0,), "?"), r"std \(0.0,\), expected numbers above 0"),
    ],
)
def test_facts_that_no_network_fits_are_refused(info: DatasetInfo, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        register_dataset(info, lambda root: (images(), images()))
    assert "a" not in DATASETS


def test_the_built_in_facts_pass() -> None:
    for info in DATASETS.values():
        check_info(info)
    check_info(DatasetInfo("a", (1, 1, 1), 2, (0.5,), (0.5,), "?"))
    check_info(DatasetInfo("a", (1,), 2, (), (), "?", "text", vocabulary=3))


@pytest.mark.parametrize("part", ["training", "test"])
def test_both_parts_of_a_plugins_data_are_checked_on_loading(part: str) -> None:
    wrong = images(torch.full((6, 1, 4, 4), 200.0))
    register_dataset(IMAGES, lambda root: (wrong, images()) if part == "training" else (images(), wrong))
    with pytest.raises(BadInput, match=f"data set mine, {part} part: images float32 from 200 to 200"):
        load("mine", None, None, None)


@pytest.mark.parametrize("returned", [None, images(), (images(),), (images(), images(), images())])
def test_a_loader_returns_two_parts(returned: Any) -> None:
    register_dataset(IMAGES, lambda root: returned)
    with pytest.raises(BadInput, match=r"data set mine: the loader returned .*, expected"):
        load("mine", None, None, None)


def test_parts_with_gradients_are_taken() -> None:
    grown = images(torch.rand(6, 1, 4, 4, requires_grad=True))
    register_dataset(IMAGES, lambda root: (grown, grown))
    assert torch.equal(load("mine", None, None, None)[0].inputs, grown.inputs.detach())


PLUGIN = """
import torch
from assay.tasks.data.splits import Labelled

def load(root):
    data = Labelled(torch.full((6, 1, 4, 4), {level}, dtype=torch.uint8), torch.arange(6) % 3)
    return data, data
"""


def test_an_edited_loader_is_not_served_from_the_cache(tmp_path: Path) -> None:
    file, source = tmp_path / "plugin.py", tmp_path / "pixels.bin"
    source.touch()

    def levels(level: int) -> set[int]:
        """Return the pixels that a new process sees, once the plugin says `level`."""
        file.write_text(PLUGIN.format(level=level))
        os.utime(file, ns=(level, level))
        spec = importlib.util.spec_from_file_location(f"plugin_{level}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for registry in (DATASETS, SOURCES):
            registry._entries.pop("mine", None)
        sources._whole.cache_clear()
        register_dataset(IMAGES, module.load, lambda root: (source,))
        return set(load("mine", None, None, None)[0].inputs.flatten().tolist())

    assert levels(5) == {5}
    assert levels(6) == {6}
    assert len(list((tmp_path / "cache/data").iterdir())) == 2
