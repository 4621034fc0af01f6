"""RSA-PSS signatures of 2,048 bits whose keys and signatures are functions of secret bytes alone.

A library draws its primes and salts from the operating system, and a stage could then not be computed twice with the
same result. Here primes come from SHAKE-256 of the secret bytes, and the salt is empty, which PSS allows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

BITS = 2048
_EXPONENT = 65537
_ROUNDS = 40  # of Miller-Rabin: a composite passes with probability below 4**-40
_PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=0)
_SIEVE = math.prod(n for n in range(3, 2000, 2) if all(n % d for d in range(3, math.isqrt(n) + 1, 2)))


def _number(secret: bytes, *path: object) -> int:
    words = "|".join(("rsa-pss", *map(str, path)))
    return int.from_bytes(hashlib.shake_256(words.encode() + b"|" + secret).digest(BITS // 16), "big")


def is_prime(candidate: int, secret: bytes) -> bool:
    """Return whether an odd number of 1,024 bits is prime; Miller-Rabin, whose bases follow from the secret bytes."""
    if math.gcd(candidate, _SIEVE) != 1:
        return False
    odd, twos = candidate - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for turn in range(_ROUNDS):
        power = pow(2 + _number(secret, "base", turn) % (candidate - 3), odd, candidate)
        if power in (1, candidate - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % candidate
            if power == candidate - 1:
                break
        else:
            return False
    return True


def _prime(secret: bytes, name: str) -> int:
    high = 3 << (BITS // 2 - 2)  # both top bits, so that the product has all its bits
    counter = 0
    while True:
        candidate = _number(secret, name, counter) | high | 1
        if candidate % _EXPONENT != 1 and is_prime(candidate, secret):
            return candidate
        counter += 1


def rsa_key(secret: bytes) -> rsa.RSAPrivateKey:
    """Return the private key of secret bytes (32 or more)."""
    p, q = _prime(secret, "p"), _prime(secret, "q")
    d = pow(_EXPONENT, -1, math.lcm(p - 1, q - 1))
    parts = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return rsa.RSAPrivateNumbers(p, q, d, *parts, rsa.RSAPublicNumbers(_EXPONENT, p * q)).private_key()


def rsa_sign(secret: bytes, message: bytes) -> dict[str, bytes]:
    """Sign a message; return `message`, `signature` (256 bytes) and `public_key` (DER)."""
    key = rsa_key(secret)
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return {
        "message": message,
        "signature": key.sign(message, _PADDING, hashes.SHA256()),
        "public_key": key.public_key().public_bytes(*form),
    }


def is_rsa_signed(evidence: Mapping[str, Any]) -> bool:
    """Return whether `public_key`, of 2,048 bits, made `signature` over `message`; False for anything ill-formed."""
    try:
        key = serialization.load_der_public_key(evidence["public_key"])
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size != BITS:
            return False
        key.verify(evidence["signature"], evidence["message"], _PADDING, hashes.SHA256())
    except (InvalidSignature, ValueError, TypeError, KeyError):
        return False
    return True
