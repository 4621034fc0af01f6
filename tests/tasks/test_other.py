"""Other data: images of one data set as a network for another takes them, class splits, noise, what nobody uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.tasks.data import other
from assay.tasks.data.other import adapt, classes_of, held_out, noise_images, noise_tokens, shares_images, untouched
from assay.tasks.data.sources import DATASETS, load
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import BadInput
from assay.tasks.streams import stream


def images(count: int, *shape: int) -> Labelled:
    draws = stream("images", *shape)
    inputs = torch.randint(0, 256, (count, *shape), generator=draws, dtype=torch.uint8)
    return Labelled(inputs, torch.arange(count) % 5)


def test_grey_becomes_colour_by_repetition() -> None:
    data = images(4, 1, 28, 28)
    shown = adapt(data, (3, 28, 28))
    assert shown.inputs.dtype == torch.uint8
    assert all(torch.equal(shown.inputs[:, channel], data.inputs[:, 0]) for channel in range(3))


def test_colour_becomes_grey_by_luminance() -> None:
    red, green, blue = torch.full((3, 1, 2, 2), 0.0).unbind(0)
    pixel = torch.stack([red + 200, green + 100, blue + 50], 1).to(torch.uint8)
    shown = adapt(Labelled(pixel, torch.zeros(1, dtype=torch.long)), (1, 2, 2))
    assert shown.inputs.unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 12)])
def test_a_flat_image_stays_flat_in_any_size(shape: tuple[int, int, int]) -> None:
    flat = Labelled(torch.full((3, 3, 48, 48), 77, dtype=torch.uint8), torch.arange(3))
    shown = adapt(flat, shape)
    assert tuple(shown.inputs.shape) == (3, *shape)
    assert shown.inputs.unique().tolist() == [77]
    assert torch.equal(shown.labels, flat.labels)


def test_shrinking_averages_instead_of_dropping_pixels() -> None:
    """A fine chequered pattern becomes grey; picking pixels would keep it black and white."""
    board = (torch.arange(64)[:, None] + torch.arange(64)[None]) % 2 * 255
    data = Labelled(board.to(torch.uint8).expand(1, 1, 64, 64), torch.zeros(1, dtype=torch.long))
    shown = adapt(data, (1, 16, 16)).inputs[..., 2:-2, 2:-2].float()
    assert float(shown.min()) > 110
    assert float(shown.max()) < 145


def test_the_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(25, 3, 20, 20)
    whole = adapt(data, (1, 28, 28)).inputs
    monkeypatch.setattr(other, "_CHUNK", 7)
    assert torch.equal(adapt(data, (1, 28, 28)).inputs, whole)


def test_floats_stay_floats() -> None:
    data = Labelled(torch.rand(2, 1, 8, 8, generator=stream("floats")), torch.arange(2))
    shown = adapt(data, (3, 16, 16)).inputs
    assert shown.dtype == torch.float32
    assert float(shown.min()) >= 0
    assert float(shown.max()) <= 1


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(BadInput, match="no images"):
        adapt(Labelled(torch.ones(2, 9, dtype=torch.long), torch.arange(2)), (1, 28, 28))
    with pytest.raises(BadInput, match="4 channels"):
        adapt(images(2, 4, 8, 8), (3, 8, 8))


@given(st.permutations(list(range(5))), st.integers(1, 5))
def test_classes_are_renumbered_in_the_order_given(order: list[int], count: int) -> None:
    data, wanted = images(23, 1, 2, 2), order[:count]
    part = classes_of(data, wanted)
    kept = [i for i, label in enumerate(data.labels.tolist()) if label in wanted]
    assert [wanted[new] for new in part.labels.tolist()] == [data.labels.tolist()[i] for i in kept]
    assert torch.equal(part.inputs, data.inputs[kept])


def test_classes_that_do_not_occur_are_no_error() -> None:
    assert len(classes_of(images(10, 1, 2, 2), [7, 9])) == 0
    assert len(classes_of(images(10, 1, 2, 2).take(slice(0, 0)), [1])) == 0


def test_a_validation_part_is_split_off() -> None:
    data = images(100, 1, 4, 4)
    train, validation = held_out(data, stream("held"))
    assert (len(train), len(validation)) == (75, 25)
    assert torch.bincount(validation.labels).tolist() == [5] * 5
    seen = torch.cat([train.inputs, validation.inputs]).flatten(1)
    assert len(seen.unique(dim=0)) == 100


def test_noise_covers_the_range() -> None:
    uniform = noise_images(50, (3, 16, 16), "uniform", stream("noise"))
    assert uniform.dtype == torch.uint8
    assert len(uniform.unique()) == 256
    assert float(uniform.float().mean()) == pytest.approx(127.5, abs=1)
    gaussian = noise_images(50, (1, 16, 16), "gaussian", stream("noise")).float()
    assert float(gaussian.mean()) == pytest.approx(127.5, abs=2)
    assert float(gaussian.std()) == pytest.approx(60, abs=6)
    assert torch.equal(uniform, noise_images(50, (3, 16, 16), "uniform", stream("noise")))


def test_noise_texts_have_no_padding() -> None:
    ids = noise_tokens(200, 30, 50, stream("words"))
    assert tuple(ids.shape) == (200, 30)
    assert (int(ids.min()), int(ids.max())) == (1, 49)


def test_what_nobody_uses_is_the_rest_of_the_public_training_set() -> None:
    whole, _ = load("digits", None, None, None)
    used, _ = load("digits", None, 600, None)
    rest = untouched("digits", None, 600)
    assert len(used) + len(rest) == len(whole)

    def rows(data: Labelled) -> list[bytes]:
        return sorted(row.numpy().tobytes() for row in data.inputs)

    assert rows(Labelled.join(used, rest)) == rows(whole)
    assert len(untouched("digits", None, None)) == 0
    assert len(untouched("digits", None, 10**6)) == 0


def test_frames_of_a_sign_that_the_task_uses_are_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(60, 1, 4, 4)
    data = Labelled(data.inputs, data.labels, torch.arange(60) // 20 * 5 + data.labels)  # 15 signs, 4 frames each
    monkeypatch.setattr(other, "load", lambda *_: (data, data))
    rest = untouched("signs", None, 6)
    assert rest.groups is not None
    assert 0 < len(rest) < 54
    assert len(rest) == 4 * len(rest.groups.unique())


def test_data_sets_with_the_same_images_are_known() -> None:
    assert shares_images("cifar5", "cifar10")
    assert shares_images("tiny_imagenet_32", "tiny_imagenet")
    assert shares_images("tiny20", "tiny_imagenet")
    assert shares_images("gtsrb26", "gtsrb")
    assert not shares_images("gtsrb26", "gtsrb17")
    assert shares_images("digits", "digits")
    assert not shares_images("cifar10", "cifar100")
    pairs = [(key, target) for key, targets in other.TRANSFER.items() for target in targets]
    pairs += [*other.TRANSFER_STAND_IN.items(), *other.QUERIES_STAND_IN.items()]
    assert not any(shares_images(*pair) for pair in pairs)


def test_every_pair_is_known() -> None:
    tables = [other.TRANSFER, other.QUERIES]
    named = {key for table in tables for row in table.items() for key in (row[0], *row[1])}
    for table in (other.TRANSFER_STAND_IN, other.QUERIES_STAND_IN):
        named |= {*table, *table.values()}
        assert all(source != target for source, target in table.items())
    assert named <= {*DATASETS}


def test_a_root_is_passed_on(tmp_path: Path) -> None:
    from assay.tasks.errors import MissingData

    with pytest.raises(MissingData):
        untouched("mnist", tmp_path, 600)
