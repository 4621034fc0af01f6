"""The command line, `assay COMMAND …`: from arguments to an exit status.

Exit status: 0 success; 1 the sweep finished with failed cells (or a check failed); 2 bad input or a system that
refuses, one line, no traceback; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

import shtab

from assay.orchestrator.command import commands, readers
from assay.orchestrator.command.console import complain, emit, flush, prepare
from assay.orchestrator.command.parser import build
from assay.results.errors import ResultsError
from assay.tasks.errors import AssayError

# What a system answers that a person can mend; any other answer is a fault of ours and shows where.
_REFUSALS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
        errno.EIO, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ESTALE, errno.EFBIG,
    }
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _completion(arguments: argparse.Namespace) -> int:
    """Print what makes a shell complete our words."""
    emit(shtab.complete(build(_HANDLERS), arguments.shell))
    return 0


_HANDLERS = {
    "list": commands.listing,
    "plan": commands.plan,
    "run": commands.run,
    "submit": commands.submit,
    "status": readers.status,
    "log": readers.log,
    "table": readers.table,
    "claims": readers.claims,
    "mlflow": readers.mlflow,
    "check": commands.check,
    "data": commands.data,
    "schema": commands.schema,
    "completion": _completion,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    prepare()
    try:
        arguments = _parsed(argv)
        status: int = arguments.command(arguments)
    except (AssayError, ResultsError) as error:
        complain(f"assay: {error}")
        return 2
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        complain(f"assay: {_refusal(error)}")
        return 2
    except KeyboardInterrupt:
        complain("assay: interrupted; what is committed is kept, run the same command again to go on")
        return 130
    return status


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return build(_HANDLERS).parse_args(argv)
    except SystemExit:
        flush()  # the help that was asked for
        raise


def _refusal(error: OSError) -> str:
    """Return in one line what the system refused, and where."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = f"{names[0]}: " if names else ""
    after = "; make room and run the same command again: what is committed is kept" if error.errno in _FULL else ""
    return f"{where}{error.strerror or os.strerror(error.errno or 0)}{after}"


if __name__ == "__main__":
    sys.exit(main())
