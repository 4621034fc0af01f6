"""Splits: no sample in two parts, sizes of the protocol, one split per seed, and the attacker's modes."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.tasks.data.splits import (
    Labelled,
    Party,
    SplitMode,
    Splits,
    for_answers,
    lacks,
    split,
    stratified,
    to_model_input,
    validation_size,
)
from assay.tasks.errors import BadInput

CLASSES = 5


def numbered(total: int, offset: int = 0, seed: int = 0) -> Labelled:
    """Return samples whose only pixel-like entry is their own number."""
    labels = torch.randint(0, CLASSES, (total,), generator=torch.Generator().manual_seed(seed))
    return Labelled(torch.arange(offset, offset + total).float().view(-1, 1, 1, 1), labels)


def numbers(*parts: Labelled) -> list[int]:
    return [int(x) for part in parts for x in part.inputs.flatten()]


def parts(splits: Splits) -> tuple[Labelled, ...]:
    return (splits.owner.train, splits.owner.held_out, splits.attacker.train, splits.attacker.held_out)


@settings(max_examples=25, deadline=None)
@given(st.integers(60, 5000), st.integers(0, 2**40))
def test_split_is_a_partition_with_the_protocols_sizes(total: int, seed: int) -> None:
    train = numbered(total)
    splits = split(train, numbered(50, offset=10**6), seed)
    assert sorted(numbers(*parts(splits))) == list(range(total))
    theirs = len(splits.attacker.train) + len(splits.attacker.held_out)
    assert abs(theirs - 0.2 * total) <= CLASSES / 2
    assert len(splits.attacker.held_out) == validation_size(theirs)
    assert len(splits.owner.held_out) == validation_size(total - theirs, 500)
    # Stratified: every class gives the attacker a fifth of itself.
    labels = torch.cat([splits.attacker.train.labels, splits.attacker.held_out.labels])
    for label in range(CLASSES):
        members = int((train.labels == label).sum())
        assert int((labels == label).sum()) == round(0.2 * members)
    assert splits.attacker.overlaps_owner is False
    assert splits.owner.overlaps_owner is True


def test_labels_stay_with_their_inputs() -> None:
    train = numbered(700)
    for part in parts(split(train, numbered(10), 3)):
        assert torch.equal(train.labels[part.inputs.flatten().long()], part.labels)


def test_the_seed_alone_decides() -> None:
    train, test = numbered(1000), numbered(10)
    torch.manual_seed(1)
    first = numbers(*parts(split(train, test, 4)))
    torch.manual_seed(2)
    assert numbers(*parts(split(train, test, 4))) == first
    assert numbers(*parts(split(train, test, 5))) != first


@pytest.mark.parametrize(
    ("total", "floor", "expected"),
    [(10_000, 200, 1000), (1000, 200, 200), (400, 200, 100), (4000, 500, 500), (3, 200, 0)],
)
def test_validation_size(total: int, floor: int, expected: int) -> None:
    assert validation_size(total, floor) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 1000))
def test_stratified_partitions_and_rounds_per_class(total: int, share: float, seed: int) -> None:
    labels = torch.randint(0, 3, (total,), generator=torch.Generator().manual_seed(seed))
    chosen, rest = stratified(labels, share, torch.Generator().manual_seed(seed))
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(total))
    for label in torch.unique(labels):
        members = int((labels == label).sum())
        assert int((labels[chosen] == label).sum()) == round(share * members)


def view(splits: Splits, mode: SplitMode) -> Party:
    return splits.attacker_view(mode)


def test_attacker_modes() -> None:
    splits = split(numbered(4000), numbered(10), 0)
    owner = set(numbers(splits.owner.train))
    assert view(splits, "disjoint20") is splits.attacker
    nothing = view(splits, "none")
    assert len(nothing.train) == len(nothing.held_out) == 0
    same = view(splits, "same")
    assert set(numbers(same.train, same.held_out)) == owner
    few = view(splits, "pir5k")
    assert len(few.train) + len(few.held_out) == 1000
    assert set(numbers(few.train, few.held_out)) < owner
    coupled = view(splits, "fcw")
    assert len(coupled.train) == len(splits.attacker.train)  # fewer than 1,000 are there
    assert set(numbers(coupled.train)) == set(numbers(splits.attacker.train))
    for mode in get_args(SplitMode):
        party = view(splits, mode)
        assert party.mode == mode
        assert bool(owner & set(numbers(party.train))) is party.overlaps_owner
        assert not set(numbers(party.train)) & set(numbers(party.held_out))


@pytest.mark.parametrize(("total", "coupled"), [(60_000, 1000), (90_000, 2000)])
def test_large_owners_widen_the_papers_modes(total: int, coupled: int) -> None:
    splits = split(numbered(total), numbered(10), 0)
    assert len(view(splits, "fcw").train) == coupled
    few = view(splits, "pir5k")
    assert len(few.train) + len(few.held_out) == 5000


def test_unknown_mode() -> None:
    with pytest.raises(BadInput, match="disjoint20, same, fcw, pir5k, sok, none"):
        view(split(numbered(100), numbered(10), 0), "everything")  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "size"), [("limited-0.5", 20), ("limited-1.67", 67), ("limited-20", 800)])
def test_a_limited_attacker_holds_a_share_of_the_whole_training_set(mode: SplitMode, size: int) -> None:
    splits = split(numbered(4000), numbered(10), 0)
    few = view(splits, mode)
    assert abs(len(few.train) + len(few.held_out) - size) <= CLASSES / 2
    assert set(numbers(few.train, few.held_out)) <= set(numbers(splits.attacker.train, splits.attacker.held_out))


def test_soks_attacker_holds_a_third_and_its_owner_the_rest() -> None:
    splits = split(numbered(3000), numbered(10), 0, attacker_share=1 / 3)
    theirs = view(splits, "sok")
    assert abs(len(theirs.train) + len(theirs.held_out) - 1000) <= CLASSES / 2
    assert sorted(numbers(*parts(splits))) == list(range(3000))


@pytest.mark.parametrize(
    ("mode", "share", "fits"),
    [
        ("disjoint20", 0.2, True), ("disjoint20", 1 / 3, False), ("sok", 0.3333, True), ("sok", 0.2, False),
        ("limited-20", 0.2, True), ("limited-20", 0.1, False), ("limited-5", 0.2, True), ("same", 0.4, True),
    ],
)  # fmt: skip
def test_a_split_mode_says_when_the_attacker_lacks_its_data(mode: SplitMode, share: float, fits: bool) -> None:
    reason = lacks(mode, share)
    assert (reason is None) == fits
    assert fits or mode in str(reason)


def test_model_inputs_are_fractions_and_stored_pixels_stay() -> None:
    stored = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    assert torch.equal(to_model_input(stored), torch.tensor([[0, 0.2, 1]]))
    assert stored.tolist() == [[0, 51, 255]]
    tokens = torch.tensor([[3, 4]])
    assert to_model_input(tokens) is tokens


def test_labelled_take_join_of_class() -> None:
    data = numbered(20)
    joined = Labelled.join(data.take(slice(10, 20)), data.take(slice(0, 10)))
    assert numbers(joined) == [*range(10, 20), *range(10)]
    chosen = data.of_class(2)
    assert chosen.labels.eq(2).all()
    assert len(chosen) == int((data.labels == 2).sum())


def tracked(tracks: int, frames: int, seed: int) -> Labelled:
    """Return shuffled samples whose only pixel-like entry is their track."""
    track = torch.arange(tracks).repeat_interleave(frames)
    track = track[torch.randperm(len(track), generator=torch.Generator().manual_seed(seed))]
    return Labelled(track.float().view(-1, 1, 1, 1), track % CLASSES, track * 7 + 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 300), st.integers(1, 9), st.integers(0, 1000))
def test_groups_come_into_one_part_whole(tracks: int, frames: int, seed: int) -> None:
    train = tracked(tracks, frames, seed)
    splits = split(train, numbered(10), seed)
    assert sorted(numbers(*parts(splits))) == sorted(numbers(train))
    held = [set(numbers(part)) for part in parts(splits)]
    assert sum(map(len, held)) == tracks == len(set().union(*held))
    # Shares count groups: a fifth of each class's tracks.
    theirs = held[2] | held[3]
    for label in range(CLASSES):
        members = set(range(label, tracks, CLASSES))
        assert len(members & theirs) == round(0.2 * len(members))
    # As large as the protocol says, rounded up to a whole track.
    for party, floor in ((splits.owner, 500), (splits.attacker, 200)):
        wanted = validation_size(len(party.train) + len(party.held_out), floor)
        assert wanted <= len(party.held_out) < wanted + frames
    same = view(splits, "same")
    assert not set(numbers(same.train)) & set(numbers(same.held_out))
    assert set(numbers(same.train, same.held_out)) == held[0]


def test_groups_follow_their_samples() -> None:
    train = tracked(30, 3, 0)
    part = train.take(slice(5, 50)).to(torch.device("cpu"))
    assert part.groups is not None
    assert torch.equal(part.groups, part.inputs.flatten().long() * 7 + 3)
    assert Labelled.join(part, part).groups is None


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_answered_with_their_channels_innermost(channels: int) -> None:
    stored = torch.randint(0, 256, (4, channels, 5, 6), dtype=torch.uint8)
    ready = for_answers(stored)
    assert ready.stride() == (30 * channels, 1, 6 * channels, channels)  # of one channel too
    assert torch.equal(ready, to_model_input(stored))
    assert for_answers(torch.zeros(4, 9, dtype=torch.int64)).stride() == (9, 1)  # texts as they are
