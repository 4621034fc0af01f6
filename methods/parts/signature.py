"""Signed keys: Ed25519 signatures, what is derived from them by domain-separated hashing, and commitments.

A signature ties a mark to one key holder. It does not stop grinding: a claimant may sign many messages and keep the
best. So the p-value of a key that a signature decides is multiplied by the number of signatures tried (`after_search`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from torch import Tensor

SIGNATURE_BYTES = 64
_GRINDING = 2.0**40  # signatures that a determined claimant can try
# The time in a message is a constant: a clock would make the key, and with it every result, differ between runs.
_TIME = "1970-01-01T00:00:00+00:00"


def random_bytes(generator: torch.Generator, count: int) -> bytes:
    """Return `count` bytes drawn from a CPU generator."""
    return torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8).numpy().tobytes()


def sign(private_key: bytes, message: bytes) -> dict[str, bytes]:
    """Sign a message with an Ed25519 key of 32 bytes; return `message`, `signature` (64 bytes), `public_key` (32)."""
    key = Ed25519PrivateKey.from_private_bytes(private_key)
    return {
        "message": message,
        "signature": key.sign(message),
        "public_key": key.public_key().public_bytes_raw(),
    }


def signed_key(generator: torch.Generator) -> dict[str, bytes]:
    """Draw a private key and an owner id, and sign `<owner id>|<ISO-8601 time>`; return what `sign` returns."""
    private_key = random_bytes(generator, 32)
    owner = random_bytes(generator, 8).hex()
    return sign(private_key, f"owner-{owner}|{_TIME}".encode())


def is_signed(evidence: Mapping[str, Any]) -> bool:
    """Return whether `public_key` made `signature` over `message`; False for evidence that is not well formed."""
    try:
        key = Ed25519PublicKey.from_public_bytes(evidence["public_key"])
        key.verify(evidence["signature"], evidence["message"])
    except (InvalidSignature, ValueError, TypeError, KeyError):
        return False
    return True


def after_search(p_value: float, tried: float = _GRINDING) -> float:
    """Return a p-value corrected for a claimant who tried `tried` signatures and shows the best, at most 1."""
    return min(1.0, p_value * tried)


def bits(domain: str, signature: bytes, count: int) -> Tensor:
    """Return the first `count` bits of SHAKE-256(domain | "|" | signature), most significant first: uint8 (count,)."""
    digest = hashlib.shake_256(domain.encode() + b"|" + signature).digest(-(-count // 8))
    return torch.from_numpy(np.unpackbits(np.frombuffer(digest, np.uint8))[:count].copy())


def num(domain: str, signature: bytes, modulus: int) -> int:
    """Return the big-endian integer of SHA-256(domain | "|" | signature) modulo `modulus`."""
    return int.from_bytes(hashlib.sha256(domain.encode() + b"|" + signature).digest(), "big") % modulus


def canonical_bytes(tree: Any) -> bytes:
    """Return one byte string per secret: keys sorted, numbers as JSON, tensors as dtype, shape and raw values."""
    if isinstance(tree, Tensor):
        array = tree.detach().cpu().contiguous().numpy()
        payload = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return _framed(b"tensor", f"{tree.dtype}{list(tree.shape)}".encode(), payload)
    if isinstance(tree, Mapping):
        parts = (part for key in sorted(tree) for part in (str(key).encode(), canonical_bytes(tree[key])))
        return _framed(b"map", *parts)
    if isinstance(tree, bytes):
        return _framed(b"bytes", tree)
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return _framed(b"list", *(canonical_bytes(item) for item in tree))
    return _framed(b"value", json.dumps(tree).encode())


def _framed(kind: bytes, *parts: bytes) -> bytes:
    # Each part carries its length, so that no two trees share an encoding.
    return kind + b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def commitment(salt: bytes, payload: bytes) -> str:
    """Return SHA-256(salt | "|" | payload) in hexadecimal: published before a suspect is seen, opened in a dispute."""
    return hashlib.sha256(salt + b"|" + payload).hexdigest()


def committed(secret: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Return the secret with a fresh `salt` (16 bytes) and the `commitment` to everything else in it."""
    content = _content(secret)
    salt = random_bytes(generator, 16)
    return {**content, "salt": salt, "commitment": commitment(salt, canonical_bytes(content))}


def opens(secret: Mapping[str, Any]) -> bool:
    """Return whether a secret is the one that its `commitment` was made for; False if it carries none."""
    return commitment(secret.get("salt", b""), canonical_bytes(_content(secret))) == secret.get("commitment")


def _content(secret: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in secret.items() if name not in ("salt", "commitment")}
