"""RSA-PSS: the same key on every machine, a sound one, and evidence that only its owner can make."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from assay.methods.parts.rsa import _PADDING, is_prime, is_rsa_signed, rsa_key, rsa_sign
from assay.methods.parts.signature import bits, is_signed, sign, signed_key
from assay.tasks.streams import stream

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def evidence() -> dict[str, bytes]:
    return rsa_sign(SECRET, b"assay test owner")


def test_evidence_is_a_function_of_the_secret(evidence: Any) -> None:
    assert evidence == rsa_sign(SECRET, b"assay test owner")
    assert len(evidence["signature"]) == 256
    assert is_signed(evidence)
    assert bits("greedy-residuals/bits", evidence["signature"], 64).float().mean() not in (0, 1)


@pytest.mark.parametrize("part", ["message", "signature", "public_key"])
def test_altered_evidence_is_not_signed(part: str, evidence: Any) -> None:
    value = evidence[part]
    for altered in (value[:-1] + bytes([value[-1] ^ 1]), b"", "text"):
        assert not is_signed({**evidence, part: altered})
    assert not is_signed({name: value for name, value in evidence.items() if name != part})


def test_schemes_do_not_pass_for_each_other(evidence: Any) -> None:
    other = sign(SECRET, b"assay test owner")
    assert not is_signed({**evidence, "public_key": other["public_key"]})
    assert not is_signed({**other, "public_key": evidence["public_key"]})
    assert not is_rsa_signed(other)
    drawn = signed_key(stream("owner"), "rsa-pss-2048")
    assert is_rsa_signed(drawn)
    assert drawn["message"] == signed_key(stream("owner"))["message"]


def test_key_is_of_full_length_and_from_primes() -> None:
    numbers = rsa_key(SECRET).private_numbers()
    assert numbers.public_numbers.n.bit_length() == 2048
    assert numbers.p != numbers.q
    for prime in (numbers.p, numbers.q):
        assert prime.bit_length() == 1024
        assert all(pow(base, prime - 1, prime) == 1 for base in (2, 3, 5, 7))


def test_primality() -> None:
    known = 2**1279 - 1  # a Mersenne prime
    assert is_prime(known, SECRET)
    assert not is_prime((2**521 - 1) * (2**607 - 1), SECRET)
    assert not is_prime(known - 2, SECRET)  # 3 divides it


def test_short_keys_are_refused() -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 (the point of the test)
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    weak = {"message": b"m", "signature": key.sign(b"m", _PADDING, hashes.SHA256())}
    assert not is_rsa_signed({**weak, "public_key": key.public_key().public_bytes(*form)})
