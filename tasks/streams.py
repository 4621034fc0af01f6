"""Named random streams: every draw has a name, so adding one in a place never shifts the others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(*names: str | int) -> int:
    """Return the first 8 bytes, big-endian, of SHA-256 of the names joined by `|`, in [0, 2**64)."""
    text = "|".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stream(*names: str | int) -> torch.Generator:
    """Return a CPU generator that depends on the names alone; the same on every kind of hardware."""
    return torch.Generator().manual_seed(stream_seed(*names))


@contextmanager
def global_stream(*names: str | int) -> Iterator[None]:
    """Run a block that draws from torch's global generators under a named seed, then put their state back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(*names))
        yield


def seed_global(device: torch.device, *names: str | int) -> None:
    """Seed torch's global generators of the CPU and of `device` alone; the caller puts their state back."""
    seed = stream_seed(*names)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
