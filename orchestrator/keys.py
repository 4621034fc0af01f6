"""Content keys: SHA-256 of canonical JSON. What is in a key decides what is computed again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SCHEMA = 3  # of keys and records; raise it when their meaning changes


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN; equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_key(identity: Any) -> str:
    """Return the SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()
