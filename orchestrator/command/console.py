"""Standard output of the commands: whole lines, texts as they are, and a reader that may leave at any time.

What people wrote (names, paths, reasons) is never markup. A pipe or a file gets lines as long as they are; only a
terminal's are wrapped, and only in tables.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from assay.tasks.errors import AssayError

_UNBOUNDED = 100_000  # characters: a file or a pipe has no width

Part = str | tuple[str, str]


def say(*parts: Part) -> None:
    """Print one line of standard output; a part is a text, or a text and its style on a terminal."""
    show(Text.assemble(*parts))


def show(renderable: RenderableType) -> None:
    """Print a text or a table of `rich`."""
    terminal = sys.stdout.isatty()
    page = io.StringIO()
    width = None if terminal else _UNBOUNDED
    console = Console(
        file=page,
        force_terminal=terminal,
        width=width,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(renderable, soft_wrap=isinstance(renderable, Text))
    emit("\n".join(line.rstrip() for line in page.getvalue().removesuffix("\n").split("\n")))


def say_json(value: Any) -> None:
    """Print one JSON value on a line of its own."""
    emit(json.dumps(value, ensure_ascii=False))


def emit(text: str) -> None:
    """Print a text as it is. A reader that has gone (`| head`) is no error: it has what it wanted.

    Raises:
        AssayError: standard output takes no more, e.g. a full disk behind it.
    """
    with _writing():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def flush() -> None:
    """Print what others wrote to standard output; errors as `emit`."""
    with _writing():
        sys.stdout.flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _discard()
    except OSError as error:
        _discard()
        raise AssayError(
            f"standard output: cannot write ({error.strerror}); what is written there is not whole"
        ) from None


def complain(text: str) -> None:
    """Print a line on standard error, if somebody is still there to read it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def prepare() -> None:
    """Make both streams usable: one that is closed goes nowhere, one that lacks a character writes its escape."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        if (change := getattr(getattr(sys, name), "reconfigure", None)) is not None:
            change(errors="backslashreplace")


@contextlib.contextmanager
def others_on_stderr() -> Iterator[None]:
    """Send what plugins and libraries print to standard error, so that standard output holds our own words alone.

    Their subprocesses are included: the file descriptor is turned, too.
    """
    sys.stdout.flush()
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a closed descriptor needs no turning
            kept = os.dup(1)
            stack.callback(os.close, kept)
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
        yield


def _discard() -> None:
    """Let the rest of standard output go nowhere: Python would try to write it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
