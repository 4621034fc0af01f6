"""Augmentation: exact shifts, torchvision's distribution, and draws that no batch size or recipe can move."""

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as F

from assay.tasks.training.augment import PAD, Batches
from assay.tasks.training.schedule import Schedule


def images(total: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Tensor:
    # Never 0, so that padding is told from pixels.
    return torch.randint(1, 256, (total, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def epoch_of(batches: Batches, epoch: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batches.start_epoch(epoch)
    parts = [batches.get(number) for number in range(len(batches))]
    inputs, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return inputs, labels, index


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """Return the window of a zero-padded image, one pixel at a time."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y + down - PAD, x + right - PAD
            if 0 <= source_y < height and 0 <= source_x < width:
                out[:, y, x] = image[:, source_y, source_x]
    return out


def find_shift(view: Tensor, image: Tensor) -> tuple[int, int, bool]:
    """Return the shift and the flip that turn `image` into `view` (there must be one)."""
    padded = torch.nn.functional.pad(image, (PAD, PAD, PAD, PAD))
    height, width = image.shape[1:]
    for flipped in (False, True):
        target = view.flip(2) if flipped else view
        for down in range(2 * PAD + 1):
            for right in range(2 * PAD + 1):
                if torch.equal(target, padded[:, down : down + height, right : right + width]):
                    return down, right, flipped
    raise AssertionError("no shift gives this view")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
@pytest.mark.parametrize("augment", ["crop", "crop-flip"])
def test_every_view_is_one_exact_shift(shape: tuple[int, int, int], augment: str) -> None:
    stored = images(37, shape)
    batches = Batches(stored, torch.arange(37), Schedule(batch_size=10, augment=augment), "s")  # type: ignore[arg-type]
    inputs, _, index = epoch_of(batches)
    flips = set()
    for view, position in zip(inputs.mul(255).round().to(torch.uint8), index, strict=True):
        down, right, flipped = find_shift(view, stored[position])
        flips.add(flipped)
        expected = shifted(stored[position], down, right)
        assert torch.equal(view, expected.flip(2) if flipped else expected)
    assert flips == ({False, True} if augment == "crop-flip" else {False})


def test_all_shifts_of_the_first_and_the_last_image_occur() -> None:
    stored = images(2, (2, 9, 9))
    batches = Batches(stored, torch.arange(2), Schedule(batch_size=2, augment="crop"), "s")
    seen = set()
    for epoch in range(800):
        inputs, _, index = epoch_of(batches, epoch)
        for view, position in zip(inputs.mul(255).round().to(torch.uint8), index, strict=True):
            seen.add((int(position), *find_shift(view, stored[position])[:2]))
    assert len(seen) == 2 * (2 * PAD + 1) ** 2


def test_same_distribution_as_torchvision() -> None:
    total = 3000
    image = images(1, (1, 12, 12))
    batches = Batches(image.expand(total, -1, -1, -1), torch.zeros(total).long(), Schedule(augment="crop-flip"), "s")
    ours = epoch_of(batches)[0].mul(255).round().to(torch.uint8)
    theirs_of = transforms.Compose([transforms.RandomCrop(12, padding=PAD), transforms.RandomHorizontalFlip()])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [theirs_of(image[0]) for _ in range(total)]
    counts = torch.zeros(2, 2 * PAD + 1, 2 * PAD + 1, 2)
    known: dict[bytes, tuple[int, int, bool]] = {}
    for row, views in enumerate((list(ours), theirs)):
        for view in views:
            content = view.numpy().tobytes()
            if content not in known:
                known[content] = find_shift(view, image[0])
            down, right, flipped = known[content]
            counts[row, down, right, int(flipped)] += 1
    assert counts.sum((1, 2, 3)).tolist() == [total, total]
    for marginal in (counts.sum((2, 3)), counts.sum((1, 3)), counts.sum((1, 2)), counts.flatten(1)):
        assert stats.chi2_contingency(marginal.numpy()).pvalue > 1e-3
        assert (marginal > 0).all()


@pytest.mark.parametrize("augment", ["crop", "crop-flip"])
def test_the_views_are_torchvisions_each_as_often_as_any_other(augment: str) -> None:
    """Every crop of the padded image and its mirror image, equally often, whatever came just before."""
    side, shifts = 12, 2 * PAD + 1
    image = images(1, (3, side, side))[0]
    padded = F.pad(image, [PAD] * 4)
    crops = [F.crop(padded, down, right, side, side) for down in range(shifts) for right in range(shifts)]
    views = crops + ([F.hflip(crop) for crop in crops] if augment == "crop-flip" else [])
    place = {view.numpy().tobytes(): number for number, view in enumerate(views)}
    assert len(place) == len(views)
    total = 60 * len(views)
    stored = image.expand(total, -1, -1, -1)
    batches = Batches(stored, torch.zeros(total).long(), Schedule(augment=augment), "s")  # type: ignore[arg-type]
    seen = epoch_of(batches)[0].mul(255).round().to(torch.uint8).numpy()
    drawn = torch.tensor([place[view.tobytes()] for view in seen])
    counts = torch.bincount(drawn, minlength=len(views))
    assert (counts > 0).all()
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    # Neighbours in a batch, and the same position an epoch later, are independent of each other.
    later = epoch_of(batches, 1)[0].mul(255).round().to(torch.uint8).numpy()
    again = torch.tensor([place[view.tobytes()] for view in later])
    for first, second in ((drawn[:-1], drawn[1:]), (drawn, again)):
        rows, columns = first % shifts, second % shifts
        table = torch.bincount(rows * shifts + columns, minlength=shifts**2).view(shifts, shifts)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
        if augment == "crop-flip":
            flips = torch.bincount(2 * (first >= len(crops)).long() + (second >= len(crops)), minlength=4).view(2, 2)
            assert stats.chi2_contingency(flips.numpy()).pvalue > 1e-3


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own() -> None:
    batches = Batches(images(50), torch.arange(50), Schedule(batch_size=7), "s")
    inputs, labels, index = epoch_of(batches, 3)
    assert sorted(index.tolist()) == list(range(50))
    assert torch.equal(labels, index)
    assert torch.equal(inputs, images(50)[index].float() / 255)
    assert torch.equal(epoch_of(batches, 3)[2], index)
    assert not torch.equal(epoch_of(batches, 4)[2], index)


def test_views_do_not_depend_on_the_batch_size_nor_on_the_global_generator() -> None:
    epochs = []
    for size in (5, 16, 100):
        torch.manual_seed(size)
        batches = Batches(images(60), torch.arange(60), Schedule(batch_size=size, augment="crop-flip"), "s")
        epochs.append(epoch_of(batches, 2)[0])
    assert torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])


def test_stored_images_are_never_written() -> None:
    stored = images(30)
    batches = Batches(stored, torch.arange(30), Schedule(batch_size=8, augment="crop-flip"), "s")
    for number in range(3):
        epoch_of(batches, number)
        batches.get(0)[0].zero_()
    assert torch.equal(stored, images(30))
    plain = Batches(stored.float() / 255, torch.arange(30), Schedule(batch_size=8), "s")
    plain.start_epoch(0)
    plain.get(0)[0].zero_()
    assert torch.equal(plain.inputs, images(30).float() / 255)


def test_channels_last_storage_gives_the_same_views() -> None:
    stored = images(20, (3, 8, 8))
    rows = [
        epoch_of(Batches(x, torch.arange(20), Schedule(batch_size=8, augment="crop-flip"), "s"))[0]
        for x in (stored, stored.contiguous(memory_format=torch.channels_last))
    ]
    assert torch.equal(*rows)


def test_cropping_needs_images() -> None:
    with pytest.raises(ValueError, match="needs images"):
        Batches(torch.zeros(5, 7).long(), torch.zeros(5).long(), Schedule(augment="crop"), "s")
