"""Signed keys: the specification's anchors, and that nothing but the signature decides what it stands for."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.methods.parts.signature import (
    after_search,
    bits,
    canonical_bytes,
    commitment,
    committed,
    is_signed,
    num,
    opens,
    random_bytes,
    sign,
    signed_key,
)
from assay.tasks.streams import stream

ANCHOR = sign(bytes(range(32)), b"assay test owner")
PUBLIC = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
SIGNATURE = (
    "cfd3d99b0345cb7619cd0b9d0a9e1245204dea10c3f97700abc3b11fe4c2761c"
    "1a3c7a4058ae04b0175946b2dd23f615ad240bcf1159d07d31744f3b97cd5906"
)
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def test_signature_anchor() -> None:
    assert ANCHOR["public_key"].hex() == PUBLIC
    assert ANCHOR["signature"].hex() == SIGNATURE
    assert is_signed(ANCHOR)


def test_bits_anchor() -> None:
    drawn = bits("greedy-residuals/bits", ANCHOR["signature"], 256)
    packed = int("".join(map(str, drawn.tolist())), 2).to_bytes(32, "big")
    assert packed.hex() == "7d0f5ad73101dc4c3cbd25565426e870d8ac3e46fb64f765d22969719e471b84"
    assert int(drawn.sum()) == 129


def test_commitment_anchor() -> None:
    expected = "ddab59f5312cc32cd5a3bae73c745f213456fb7c0756525f6fe25af311eb71aa"
    assert commitment(b"salt", b"payload") == expected


@pytest.mark.parametrize("part", ["message", "signature", "public_key"])
def test_altered_evidence_is_not_signed(part: str) -> None:
    altered = bytes([ANCHOR[part][0] ^ 1]) + ANCHOR[part][1:]
    assert not is_signed({**ANCHOR, part: altered})
    assert not is_signed({**ANCHOR, part: b""})
    assert not is_signed({**ANCHOR, part: "text"})
    assert not is_signed({name: value for name, value in ANCHOR.items() if name != part})


def test_second_encoding_of_a_signature_is_rejected() -> None:
    # s + L verifies under a lenient check, and would give a claimant further keys from one signature.
    first, s = ANCHOR["signature"][:32], int.from_bytes(ANCHOR["signature"][32:], "little")
    assert not is_signed({**ANCHOR, "signature": first + (s + GROUP_ORDER).to_bytes(32, "little")})


@given(st.integers(1, 300), st.integers(1, 300))
def test_bits_extend_each_other(short: int, longer: int) -> None:
    short, longer = sorted((short, longer))
    one, other = (bits("domain", ANCHOR["signature"], count) for count in (short, longer))
    assert one.shape == (short,)
    assert torch.equal(one, other[:short])


@given(st.integers(0, 511))
def test_one_flipped_bit_changes_about_half_of_the_bits(position: int) -> None:
    flipped = bytearray(ANCHOR["signature"])
    flipped[position // 8] ^= 1 << position % 8
    changed = int((bits("domain", bytes(flipped), 1024) != bits("domain", ANCHOR["signature"], 1024)).sum())
    assert abs(changed - 512) < 5 * 16  # five standard deviations


@given(st.text("abc/-", min_size=1), st.binary(min_size=64, max_size=64), st.integers(1, 10**6))
def test_num_is_the_hash_modulo(domain: str, signature: bytes, modulus: int) -> None:
    digest = hashlib.sha256(domain.encode() + b"|" + signature).hexdigest()
    assert num(domain, signature, modulus) == int(digest, 16) % modulus


def test_keys_come_from_the_generator_alone() -> None:
    first, again, other = (signed_key(stream("secret", seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert is_signed(first)
    assert is_signed(other)
    assert first["message"].decode().count("|") == 1


def test_random_bytes_are_of_the_asked_number_and_spread() -> None:
    drawn = random_bytes(stream("bytes"), 4096)
    assert len(drawn) == 4096
    assert len(set(drawn)) > 250


def test_commitment_opens_for_its_own_secret_only() -> None:
    secret = {"inputs": torch.arange(6.0).view(2, 3), "labels": torch.tensor([1, 0]), "note": ["a", b"b", 1, None]}
    sealed = committed(secret, stream("salt"))
    assert opens(sealed)
    assert not opens(secret)
    assert not opens({**sealed, "labels": torch.tensor([0, 1])})
    assert not opens({**sealed, "inputs": sealed["inputs"].view(3, 2)})
    assert not opens({**sealed, "inputs": sealed["inputs"].double()})
    assert opens(committed({**sealed, "labels": torch.tensor([0, 1])}, stream("other salt")))


@pytest.mark.parametrize(
    ("one", "other"),
    [(["ab", "c"], ["a", "bc"]), ({"a": 1}, [["a", 1]]), (b"1", 1), ("1", 1), ([], {}), ([[], []], [[[]]])],
)
def test_different_trees_have_different_encodings(one: object, other: object) -> None:
    assert canonical_bytes(one) != canonical_bytes(other)


def test_encoding_ignores_the_order_of_names_and_the_layout_of_memory() -> None:
    tensor = torch.arange(6).view(2, 3)
    assert canonical_bytes({"a": 1, "b": tensor.t()}) == canonical_bytes({"b": tensor.t().contiguous(), "a": 1})


def test_a_search_multiplies_the_p_value_up_to_one() -> None:
    assert after_search(1e-6, 1000) == pytest.approx(1e-3)
    assert after_search(2.0**-50) == 2.0**-10
    assert after_search(1e-3) == 1
    assert after_search(0.25, 1) == 0.25
