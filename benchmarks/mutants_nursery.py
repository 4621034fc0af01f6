"""Runs pytest in forks of a process that has imported already what takes seconds to import and no mutant changes.

    python mutants_nursery.py LOG

A line of input is a JSON array: the arguments of pytest, and seconds. The answer is one line: pytest's exit status, or
null after that many seconds. What pytest said last lies in LOG.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module

import pytest

SLOW_TO_IMPORT = ("hypothesis.strategies", "pandas", "pyarrow.parquet", "pydantic", "scipy.stats", "torch")


def run(arguments: list[str], log: str) -> int:
    """Run pytest, in a fork, with its words going to a file; return its exit status."""
    os.setsid()  # workers that the tests start belong to the fork
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said), (2, said)):
        os.dup2(file, stream)
    # Plugins that are imported already cannot be rewritten, and need not be.
    return int(pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]))


def ended(child: int, limit_s: float) -> int | None:
    """Return the exit status of a fork, None if it took longer than `limit_s`; nothing that it started is left."""
    end = time.monotonic() + limit_s
    try:
        while time.monotonic() < end:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def main() -> None:
    """Answer line by line."""
    for name in SLOW_TO_IMPORT:
        import_module(name)
    sys.path.insert(0, os.getcwd())  # as `python -m pytest` does
    for line in sys.stdin:
        arguments, limit_s = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = run(arguments, sys.argv[1])
            except BaseException:  # whatever a mutant raises, it was noticed
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        print(json.dumps(ended(child, limit_s)), flush=True)


if __name__ == "__main__":
    main()
