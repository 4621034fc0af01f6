"""What can go wrong, each with a handler: one short tree under `AssayError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """A mistake or a limit that a person can act on; its text is one line: where, what was found, what is allowed."""


class BadInput(AssayError):
    """A grid, an option or a plugin that cannot be used as written (exit status 2)."""


class MissingData(BadInput):
    """A data set that is not on this machine; the text names the command that fetches it."""


class UnsupportedModel(AssayError):
    """A method or an attack met an architecture it does not apply to."""


class CapacityError(UnsupportedModel):
    """A payload larger than its carrier."""


class AccessDenied(AssayError):
    """A verifier or an attack asked for more of a model than it declares."""


class NotEmbedded(AssayError):
    """A method finished training without its own mark verifying."""


class BrokenOutcome(AssayError):
    """An attack left something behind that is none of its kind."""


class Diverged(AssayError):
    """A loss or a weight stopped being a finite number."""


def nearest(found: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest allowed word, or an empty string."""
    close = difflib.get_close_matches(found, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(what: str, found: str, allowed: Iterable[str], where: str = "") -> BadInput:
    """Build the error for a key that does not exist, with the allowed ones and the nearest match."""
    names = sorted(allowed)
    place = f"{where}: " if where else ""
    return BadInput(f"{place}unknown {what} {found!r}{nearest(found, names)} (allowed: {', '.join(names)})")
