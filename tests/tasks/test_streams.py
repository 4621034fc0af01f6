"""Named streams: anchors, independence of the global generators, and putting their state back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.tasks.streams import global_stream, seed_global, stream, stream_seed

NAMES = st.lists(st.one_of(st.integers(0, 10**6), st.text("abc-", min_size=1, max_size=5)), min_size=1, max_size=4)


def test_anchors() -> None:
    assert stream_seed("adi", "secret", 0) == 1425004914868161928
    assert stream_seed("adi", "train", 0) == 11824212487261488815


def test_numbers_and_their_texts_name_the_same_stream() -> None:
    assert stream_seed("adi", 0) == stream_seed("adi", "0") == stream_seed("adi|0")


@given(NAMES, NAMES)
def test_other_names_give_other_seeds(one: list[str | int], other: list[str | int]) -> None:
    same = "|".join(map(str, one)) == "|".join(map(str, other))
    assert (stream_seed(*one) == stream_seed(*other)) is same
    assert 0 <= stream_seed(*one) < 2**64


def test_a_stream_does_not_depend_on_the_global_generator_nor_move_it() -> None:
    torch.manual_seed(1)
    first = torch.rand(4, generator=stream("x", 1))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(first, torch.rand(4, generator=stream("x", 1)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_global_stream_seeds_the_block_and_restores_even_after_an_error() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    with global_stream("init"):
        first = torch.rand(3)
    try:
        with global_stream("init"):
            second = torch.rand(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_seed_global_takes_every_64_bit_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        seed_global(torch.device("cpu"), "adi", "train", 0)  # above 2**63
        drawn = torch.rand(2)
        torch.manual_seed(stream_seed("adi", "train", 0))
        assert torch.equal(drawn, torch.rand(2))
