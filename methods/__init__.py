"""Watermarking methods, one file each; `METHODS` maps their keys to their classes."""

from __future__ import annotations

from collections.abc import Mapping

from methods.base import Method
from methods.clean import Clean

METHODS: Mapping[str, type[Method]] = {
    cls.key: cls
    for cls in (
        Clean,
    )
}  # fmt: skip
