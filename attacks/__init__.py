"""Attacks on watermarked models, one file each; `ATTACKS` maps their keys to their classes."""

from __future__ import annotations

from collections.abc import Mapping

from attacks.base import Attack
from attacks.none import NoAttack

ATTACKS: Mapping[str, type[Attack]] = {
    cls.key: cls
    for cls in (
        NoAttack,
    )
}  # fmt: skip
