"""The errors of this package: one, and a kind of it that the driver cures."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ResultsError(Exception):
    """Results, or a question about them, that cannot be used; one line: where, what was found, what to do."""


class Damaged(ResultsError):
    """A file that cannot be read as what its name says; running the grid again rebuilds it from the store."""


def unknown(what: str, found: str, allowed: Iterable[str], where: str = "") -> ResultsError:
    """Build the error for a word that does not exist, with the nearest match and the allowed ones."""
    names = list(allowed)
    close = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    place = f"{where}: " if where else ""
    return ResultsError(f"{place}unknown {what} {found!r}{hint} (allowed: {', '.join(names)})")
